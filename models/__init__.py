"""The contract between the two halves: what a compiled family is, and the store that holds it."""
