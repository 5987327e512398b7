"""The benchmark that the README quotes. `python -m loadtest.bench` runs it."""
