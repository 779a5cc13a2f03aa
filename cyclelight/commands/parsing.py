"""What jsonargparse and constructors refuse, in one line that names the option."""

import re
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _typehints
from jsonargparse._util import import_object

from cyclelight.commands.guard import UsageError
from cyclelight.errors import argument_of

_KEY = re.compile(r'Parser key "([^"]+)":\s*(.*)')
# Lines that lead to a reason or repeat what was given. None is every option's alternative.
_FRAME = re.compile(
    r"Does not validate against any of|Subtypes:|Errors:|Given value|Problem with given class_path"
    r"|Expected a <class 'NoneType'>|Expected a path but"
)
# The reasons that people meet, in fewer words; {at} is the option with a dot, or the dashes.
_WORDINGS = [
    (r"Option '(?P<name>[^']+)' is not accepted", "{at}{name} is not an option"),
    (r"unrecognized arguments: --(?P<name>[^=\s]+).*", "{at}{name} is not an option"),
    (r"unrecognized arguments: (?P<name>.+)", "unexpected argument {name}"),
    (r"the following arguments are required: (?P<name>.+)", "{at}{name} is required"),
    (r"Expected a .+\. Got value: None", "{option} is required"),
    (
        r"(Expected a list or )?Expected a dot import path string: (?P<name>.+)",
        "{option}: there is no class {name}",
    ),
    (r"Problems parsing config: (?P<name>.+)", "--config: {name}"),
]


def make_parser(
    command: str, arguments: str, description: str, epilog: str | None = None
) -> ArgumentParser:
    """The parser of `lightning COMMAND ARGUMENTS`, for options yet to be added."""
    return ArgumentParser(
        prog=f"lightning {command}",
        usage=f"lightning {command} {arguments}",
        description=description,
        epilog=epilog,
        exit_on_error=False,
    )


@contextmanager
def usage() -> Iterator[None]:
    """Whatever is refused meanwhile was asked for wrongly: UsageError, in one line."""
    try:
        yield
    except ArgumentError as error:
        raise UsageError(explain(str(error))) from error
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def explain(message: str) -> str:
    """The reason and the option that it concerns, out of jsonargparse's message.

    Such a message is a tree: each `Parser key` and each type that was tried indents what follows.
    The reason is the deepest line; the keys above it, joined, are the option.
    """
    rows = _rows(message)
    reasons = [row for row in rows if not row[1].startswith("key:") and not _FRAME.match(row[1])]
    if len(rows) == len(reasons):  # no tree: a message of argparse or of the YAML reader
        return _word(" ".join(message.split()), "")
    depth = max(indent for indent, _ in reasons)
    texts = [text for indent, text in reasons if indent == depth]
    keys: list[str] = []
    indent = depth
    for above, text in reversed(rows[: rows.index((depth, texts[0]))]):
        if above < indent:
            indent = above
            if text.startswith("key:"):
                keys.insert(0, text.removeprefix("key:"))
    given = next((text for _, text in rows if text.startswith("Given value:")), "")
    reason = " or ".join(dict.fromkeys(texts))
    if reason.endswith(">") or reason.endswith("]"):  # a bare type: say what was there instead
        reason += f". Got value: {given.removeprefix('Given value:').strip()}"
    return _word(reason, "--" + ".".join(keys))


def _rows(message: str) -> list[tuple[int, str]]:
    """(indent, text) of each line; `Parser key "k": rest` becomes `key:k` and a row below it."""
    rows = []
    for line in message.splitlines():
        text = line.lstrip(" -")
        indent = len(line) - len(text)
        if match := _KEY.match(text):
            rows.append((indent, f"key:{match[1]}"))
            indent, text = indent + 1, match[2]
        if text:
            rows.append((indent, text))
    return rows


def _word(reason: str, option: str) -> str:
    """`reason` in our words, beginning with `option`, which may be empty."""
    reason = reason.replace('in "<unicode string>", ', "at ")
    for pattern, wording in _WORDINGS:
        if match := re.fullmatch(pattern, reason):
            at = f"{option}." if option else "--"
            return wording.format(option=option, at=at, name=match.groupdict().get("name"))
    reason = re.sub(r"<class '([^']+)'>", r"\1", reason).replace("typing.Literal", "one of ")
    reason = reason.replace(" or Expected a ", " or ").replace("Expected a ", "expected ")
    return f"{option}: " * bool(option) + reason.replace(". Got value: ", ", got ")


def keep_settings_apart(base: type) -> None:
    """Let nothing of one subclass of `base` be taken for another's where settings share a name.

    When a class is chosen in place of another one, be it the default or that of a configuration
    file, jsonargparse 4.53 keeps whatever settings the new one would accept, too: SDEdit would run
    with the strength of CycleDiffusion.
    """
    discard: Any = _typehints.discard_init_args_on_class_path_change

    def discard_all(parser: Any, previous: Any, value: Any) -> None:
        if previous and "init_args" in previous and previous["class_path"]:
            name = previous["class_path"].rpartition(".")[2]
            changed = name != str(value["class_path"]).rpartition(".")[2]
            if changed and issubclass(import_object(previous["class_path"]), base):
                previous["init_args"] = Namespace()  # type: ignore[no-untyped-call]
        discard(parser, previous, value)

    _typehints.discard_init_args_on_class_path_change = discard_all


def option_of(error: BaseException, config: Mapping[str, Any]) -> str | None:
    """The option that set the argument which an error is about, such as `model.method.eta`.

    Two classes may have arguments of one name: it is that of the innermost object which was at
    work when the error was raised, and has such a setting.
    """
    argument = argument_of(error)
    if argument is None:
        return None
    places = [
        (option, name)
        for key, value in config.items()
        for option, name, settings in _places(key, value)
        if argument in settings
    ]
    frames = reversed(list(traceback.walk_tb(error.__traceback__)))
    owners = (type(frame.f_locals.get("self")).__name__ for frame, _ in frames)
    of_owner = [option for owner in owners for option, name in places if owner == name]
    of_plain = [option for option, name in places if name is None]  # Settings without a class.
    found = next(iter([*of_owner, *of_plain]), None)
    return None if found is None else f"{found}.{argument}"


def _places(option: str, value: Any) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """(option, name of its class if it has one, settings) of `value` and of what is within it."""
    if not isinstance(value, Mapping):
        return
    settings, name = value, None
    if "class_path" in value:
        name, settings = value["class_path"].rpartition(".")[2], value.get("init_args") or {}
    yield option, name, settings
    for key, inner in settings.items():
        yield from _places(f"{option}.{key}", inner)
