"""The chart, and what generates the parts of it that follow from the code (`python -m helm.generate`)."""
