"""What is wrong with a replay's inputs."""

from __future__ import annotations


class ReplayError(Exception):
    """The message names the option and the remedy."""
