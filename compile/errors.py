"""What can go wrong while compiling, as types. Every message names the field or gate and the remedy."""

from __future__ import annotations


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


class Busy(CompileError):
    """Another run holds the work folder."""


class RequirementFailed(CompileError):
    """A pass was given inputs that it cannot work on."""


class GateFailed(CompileError):
    """A pass ran, but one of its postconditions does not hold; the message gives measured value and limit."""

    def __init__(self, pass_name: str, label: str, misses: list[str]) -> None:
        self.pass_name, self.label, self.misses = pass_name, label, misses
        super().__init__(f"{label}: pass '{pass_name}' misses its gate: {'; '.join(misses)}")
