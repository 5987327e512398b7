"""Labelled texts: the built-in generator, local files, hub data sets."""
