"""What can go wrong with a job beyond what can with any request."""

from __future__ import annotations

from server.engine.errors import EngineError


class UnknownJob(EngineError):
    """There is no such job, or it is another client's, or it has been deleted since."""


class JobConflict(EngineError):
    """The job is not in a state that allows this."""


class JobStoreError(Exception):
    """The file of the jobs cannot be used; the message names it and the remedy."""
