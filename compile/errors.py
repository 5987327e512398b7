"""What can go wrong while compiling, as types. Every message names the field or gate and the remedy."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compile.artifact import Artifact


class CompileError(Exception):
    """Base of the errors that a user can act on; the command line prints them without a traceback."""


class InputError(CompileError):
    """A recipe, a data set or base weights cannot be used as given (exit code 2)."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        self.field, self.problem, self.remedy = field, problem, remedy
        super().__init__(f"{field}: {problem}. Remedy: {remedy}.")


class RecipeError(InputError):
    """The recipe is missing, is not YAML, or a field of it is wrong."""


class DataError(InputError):
    """The recipe's `data` cannot be loaded or is unfit for training."""


class BaseError(InputError):
    """The recipe's `base` names no usable weights."""


class FloorError(InputError):
    """No candidate for full quality meets a floor of the recipe; the nearest miss is named. Nothing is published."""


class StorageError(InputError):
    """The store or the work folder cannot be written: read-only, no permission, or full."""


class Busy(CompileError):
    """Another run holds the work folder."""


class Unfinished(CompileError):
    """The machine failed the run: too little memory, or a check that took too long. What was made is kept."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}. Remedy: free the machine, then run the same command; it goes on where this stopped.")


class RequirementFailed(CompileError):
    """A pass was given inputs that it cannot work on."""


@dataclass(frozen=True)
class Miss:
    """A postcondition that does not hold: in words, measured value and limit, and the recipe's field that sets it."""

    described: str
    measured: float
    limit: float
    field: str = ""


class GateFailed(CompileError):
    """A pass ran, but one of its postconditions does not hold; the message gives measured value and limit.

    `made` is what it made and what that cost, which nobody may take for finished.
    """

    def __init__(self, pass_name: str, label: str, misses: Sequence[Miss], made: Artifact | None = None) -> None:
        self.pass_name, self.label, self.misses, self.made = pass_name, label, tuple(misses), made
        words = "; ".join(miss.described for miss in misses)
        super().__init__(f"{label}: pass '{pass_name}' misses its gate: {words}")

    @property
    def floor(self) -> Miss | None:
        """The miss of a limit that the recipe sets, where that is the only kind of miss."""
        return self.misses[0] if all(miss.field for miss in self.misses) else None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# torch and safetensors tell of a full disk in words alone.
_FULL_WORDS = re.compile(r"No space left on device|File too large|PytorchStreamWriter failed|Disk quota exceeded")
_FORBIDDEN_WORDS = re.compile(r"Read-only file system|Permission denied|Operation not permitted")


def storage_error(error: BaseException, store: Path, work: Path) -> StorageError | None:
    """The typed error for a failure to write, whichever library met it; None if `error` is something else."""
    number = error.errno if isinstance(error, OSError) else None
    words = str(error)
    if number in _FULL or (number is None and _FULL_WORDS.search(words)):
        kind, remedy = "no space is left to write", "free space or give another folder, then run the same command"
    elif number in _FORBIDDEN or (number is None and _FORBIDDEN_WORDS.search(words)):
        kind, remedy = "cannot be written", "give a folder that you may write to"
    else:
        return None
    # Copying names the source first: a version is copied out of the work folder into the store.
    places = [getattr(error, name, None) for name in ("filename", "filename2")]
    field, folder = ("store", store) if any(_inside(place, store) for place in places) else ("work", work)
    return StorageError(field, f"{kind} ({words.splitlines()[0][:200]}); the folder is {folder}", remedy)


def of_the_machine(error: BaseException) -> bool:
    """Whether a failure says nothing of what was tried: the disk or the memory failed, and another time it may work."""
    return isinstance(error, OSError | MemoryError) or bool(_FULL_WORDS.search(str(error)))


def _inside(place: object, folder: Path) -> bool:
    return isinstance(place, str | Path) and Path(place).absolute().is_relative_to(folder.absolute())
