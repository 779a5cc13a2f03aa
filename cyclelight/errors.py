"""What errors tell: which argument they concern, and why in one line."""

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
