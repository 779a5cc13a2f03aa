"""What errors tell: which argument they concern, and why in one line.

Whatever refuses an argument stands on this.
"""

import math
from collections.abc import Iterable
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, get_type_hints


class Refusal(Exception):
    """An error that knows the argument which it is about."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.argument, str(self))


class BadValue(Refusal, ValueError):
    """An argument has a value that it cannot have; the message says which one would be right."""


class MissingFile(Refusal, FileNotFoundError):
    """An argument names a file or folder that is not there."""


def argument_of(error: BaseException | None) -> str | None:
    """The argument that an error, or else the one that caused it, is about; None if not known."""
    while error is not None:
        if isinstance(error, Refusal):
            return error.argument
        error = error.__cause__
    return None


def at_least(least: float, **values: float) -> None:
    """Raises ValueError, naming the argument, unless all values are `least` or more."""
    for argument, value in values.items():
        if not value >= least:  # So that NaN fails too.
            raise BadValue(argument, f"{argument} must be at least {least}, got {value}")


def real(argument: str, value: object) -> float:
    """A finite number as a plain float, be it Python's, NumPy's or a tensor without dimensions.

    What is computed from a setting is float64 then, and can be written as JSON.

    Raises:
        ValueError: it is something else, such as a bool, text or NaN.
    """
    number = _plain(value)
    if isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number):
        return float(number)
    raise BadValue(argument, f"{argument} must be a number, got {_shown(value)}")


def whole(argument: str, value: object) -> int:
    """An integer as a plain int, be it Python's, NumPy's or a tensor without dimensions.

    Raises:
        ValueError: it is something else, such as 2.5, 2.0 or a bool.
    """
    number = _plain(value)
    if isinstance(number, Integral) and not isinstance(number, bool):
        return int(number)
    raise BadValue(argument, f"{argument} must be an integer, got {_shown(value)}")


def plain_numbers(settings: Any) -> None:
    """Make the int and float fields of a dataclass plain numbers, in place, frozen or not.

    Raises:
        ValueError: one was given as something else.
    """
    kinds = get_type_hints(type(settings))
    for field in fields(settings):
        make = {int: whole, float: real}.get(kinds[field.name])
        if make is not None:
            value = make(field.name, getattr(settings, field.name))
            object.__setattr__(settings, field.name, value)


def _plain(value: object) -> object:
    """NumPy's numbers, and arrays and tensors without dimensions, as Python's."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


def _shown(value: object) -> str:
    return printable(" ".join(repr(value).split()), 80)


def one_of(allowed: Iterable[str], **values: str) -> None:
    """Raises ValueError, naming the argument, unless all values are among the allowed ones."""
    known = list(allowed)
    for argument, value in values.items():
        if value not in known:
            raise BadValue(argument, f"{argument} must be one of {', '.join(known)}, got {value!r}")


def kind_of(value: object) -> str:
    """What a value is, in a few words: `2.5`, `None`, `a NumPy array`, `a str`."""
    if value is None or isinstance(value, int | float):
        return repr(value)
    known = {"ndarray": "a NumPy array", "Tensor": "a tensor"}
    return known.get(type(value).__name__, f"a {type(value).__name__}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or what it is if it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def printable(text: object, most: int | None = None) -> str:
    """`text` with what would act on a terminal, or cannot be encoded, as Python would write it.

    Names of files and of domains are anyone's, and may hold control characters, directions of
    writing and lone surrogates.

    Args:
        text: its `str` is taken; line breaks stay.
        most: characters; of a longer text, beginning and end.
    """
    told = str(text)
    if most is not None and len(told) > most:
        head = (most - 3) // 2
        told = f"{told[:head]}...{told[len(told) - (most - 3 - head) :]}"
    if told.isprintable():
        return told
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in told
    )
