"""What errors tell: which argument they concern, and why in one line.

Whatever refuses an argument stands on this.
"""

from collections.abc import Iterable
from typing import TypeVar

E = TypeVar("E", bound=Exception)


def about(argument: str, error: E) -> E:
    """`error`, known to concern the constructor's or function's argument of that name."""
    error.__dict__["argument"] = argument
    return error


def argument_of(error: BaseException | None) -> str | None:
    """The argument that an error, or else the one that caused it, is about; None if not known."""
    while error is not None:
        if "argument" in error.__dict__:
            return str(error.__dict__["argument"])
        error = error.__cause__
    return None


def at_least(least: float, **values: float) -> None:
    """Raises ValueError, naming the argument, unless all values are `least` or more."""
    for argument, value in values.items():
        if not value >= least:  # So that NaN fails too.
            told = f"{argument} must be at least {least}, got {value}"
            raise about(argument, ValueError(told))


def one_of(allowed: Iterable[str], **values: str) -> None:
    """Raises ValueError, naming the argument, unless all values are among the allowed ones."""
    known = list(allowed)
    for argument, value in values.items():
        if value not in known:
            told = f"{argument} must be one of {', '.join(known)}, got {value!r}"
            raise about(argument, ValueError(told))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or what it is if it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0]
