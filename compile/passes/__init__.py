"""Compile passes, one topic a file. A pass's postconditions are its gates (see `compile.passes.base`)."""
