"""Protocols: thin adapters over the engine."""
