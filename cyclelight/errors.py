"""What errors tell: which argument they concern, and why in one line.

Whatever refuses an argument stands on this.
"""

from collections.abc import Iterable


class BadValue(ValueError):
    """An argument has a value that it cannot have; the message says which one would be right."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.argument, str(self))


class MissingFile(FileNotFoundError):
    """An argument names a file or folder that is not there."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.argument, str(self))


def argument_of(error: BaseException | None) -> str | None:
    """The argument that an error, or else the one that caused it, is about; None if not known."""
    while error is not None:
        if isinstance(error, BadValue | MissingFile):
            return error.argument
        error = error.__cause__
    return None


def at_least(least: float, **values: float) -> None:
    """Raises ValueError, naming the argument, unless all values are `least` or more."""
    for argument, value in values.items():
        if not value >= least:  # So that NaN fails too.
            raise BadValue(argument, f"{argument} must be at least {least}, got {value}")


def one_of(allowed: Iterable[str], **values: str) -> None:
    """Raises ValueError, naming the argument, unless all values are among the allowed ones."""
    known = list(allowed)
    for argument, value in values.items():
        if value not in known:
            raise BadValue(argument, f"{argument} must be one of {', '.join(known)}, got {value!r}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or what it is if it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0]
