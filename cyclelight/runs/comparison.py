"""The rows of a comparison: methods with their settings, and folders made by other programs."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import isabstract
from itertools import product
from pathlib import Path
from typing import Any

from cyclelight.errors import BadValue, MissingFile
from cyclelight.methods import import_methods
from cyclelight.methods.base import Method

KEYS = ("method", "over", "theirs", "optional")
EDIT_KEYS = ("scale", "source_scale", "control")
"""Of rows of edits: settings of `EditingModule`."""


@dataclass(frozen=True)
class Setting:
    """A line of the table.

    Args:
        row: the name that the configuration gives it.
        point: the settings that differ among the lines of a row, in the order of `over`.
        method: how to translate; None where another program has, and in guidance.
        theirs: the folder of what another program has made.
        edit: of an edit, the settings of `EditingModule` beside the method that the row gives; of
            guidance, those of `lightning guide`.
    """

    row: str
    point: Mapping[str, Any] = field(default_factory=dict)
    method: Method | None = None
    theirs: Path | None = None
    edit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the line is called, such as `SDEdit, strength 0.5`."""
        return ", ".join([self.row, *(f"{name} {value}" for name, value in self.point.items())])

    @property
    def folder(self) -> str:
        """What its folder is called: the label without what a file system might not take."""
        return re.sub(r"[^\w.+=-]+", "_", self.label).strip("._") or "row"

    def describe(self) -> dict[str, Any]:
        """The class and all settings, as JSON has them."""
        if self.theirs is not None:
            return {"method": "another program's"}
        if self.method is None:
            return dict(self.edit)
        kind = type(self.method)
        assert is_dataclass(self.method)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return {"method": name, **as_json(asdict(self.method)), **self.edit}

    def method_words(self) -> dict[str, Any]:
        """The method as a command line takes it."""
        assert is_dataclass(self.method)
        settings = as_json(asdict(self.method))
        return {"class_path": self.describe()["method"], "init_args": settings}

    def defaults(self) -> dict[str, Any]:
        """The method's defaults, of all settings that have one."""
        if not is_dataclass(self.method):
            return {}
        given = {f.name: f.default for f in fields(self.method) if f.default is not MISSING}
        return as_json(given)


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are read back from a file, pairs as lists."""
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read


def settings_of(
    rows: Mapping[str, Any], classifier: str | None = None, *, edits: bool = False
) -> tuple[list[Setting], dict[str, str]]:
    """The lines of the table, in order, and the rows that are left out, with what is not there.

    A row is `{method: {class_path, init_args}, over: {setting: [values]}, optional: bool}` or
    `{theirs: DIR}`. Of several settings in `over`, all combinations are lines, the last one running
    fastest. A row that is `optional` is left out if a file or folder that it names is not there.
    Rows of edits have the settings of `EDIT_KEYS`, too, the numbers among them also in `over`.

    Args:
        rows: by their names, as a configuration has them.
        classifier: the folder that methods with a `classifier` get, where the row names none.
        edits: whether rows are of text edits.

    Raises:
        ValueError: a row is not like that, a setting is out of range, or two lines would share a
            folder; the message begins with the row's place.
        FileNotFoundError: a row names what is not there.
    """
    settings, missing = list[Setting](), dict[str, str]()
    for name, row in rows.items():
        if not isinstance(row, Mapping):
            raise BadValue("rows", f"rows.{name}: it must have a method or `theirs`, got {row!r}")
        check_names(row, (*KEYS, *EDIT_KEYS) if edits else KEYS, f"rows.{name}")
        try:
            settings += _lines(str(name), row, classifier, EDIT_KEYS if edits else ())
        except FileNotFoundError as error:
            if not row.get("optional"):
                raise
            missing[str(name)] = str(error).removeprefix(f"rows.{name}.method: ")
    folders = Counter(setting.folder for setting in settings)
    for setting in settings:
        if folders[setting.folder] > 1:
            same = " and ".join(s.label for s in settings if s.folder == setting.folder)
            raise BadValue("rows", f"rows: {same} would share a folder: call one otherwise")
    return settings, missing


def _lines(
    name: str, row: Mapping[str, Any], classifier: str | None, of_edit: Sequence[str]
) -> Iterator[Setting]:
    if ("method" in row) == ("theirs" in row):
        raise BadValue("rows", f"rows.{name}: it must have either a method or `theirs`")
    if "theirs" in row:
        if "over" in row:
            raise BadValue("rows", f"rows.{name}.over: it goes with a method, not with `theirs`")
        if not Path(str(row["theirs"])).is_dir():
            raise MissingFile("rows", f"rows.{name}.theirs: no such folder {row['theirs']}")
        yield Setting(name, theirs=Path(row["theirs"]))
        return
    kind, given = _class(row["method"], f"rows.{name}.method")
    over = row.get("over") or {}
    if not isinstance(over, Mapping) or not all(isinstance(v, list) and v for v in over.values()):
        raise BadValue("rows", f"rows.{name}.over: it must be lists of values by settings' names")
    known = [known.name for known in fields(kind)]
    check_names(given, known, f"rows.{name}.method")
    numbers = [setting for setting in of_edit if setting != "control"]
    check_names(over, [*known, *numbers], f"rows.{name}.over")
    if "classifier" in known and classifier is not None:
        given = {"classifier": classifier, **given}
    for values in product(*over.values()):
        point = dict(zip(over, values, strict=True))
        try:
            own = {n: value for n, value in point.items() if n not in of_edit}
            method = kind(**{**given, **own})
        except FileNotFoundError as error:
            raise MissingFile("rows", f"rows.{name}.method: {error}") from error
        except ValueError as error:
            raise BadValue("rows", f"rows.{name}.method: {error}") from error
        edit = {n: value for n, value in {**row, **point}.items() if n in of_edit}
        yield Setting(name, point, method, edit=edit)


def _class(given: Any, place: str) -> tuple[Any, dict[str, Any]]:
    """The class and the settings that a configuration gives, which may be a name alone."""
    import_methods()
    if isinstance(given, str):
        given = {"class_path": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str):
        raise BadValue("rows", f"{place}: it must have a class_path, got {given!r}")
    check_names(given, ("class_path", "init_args"), place)
    path, settings = given["class_path"], given.get("init_args") or {}
    if not isinstance(settings, Mapping):
        raise BadValue("rows", f"{place}.init_args: they must be settings by name")
    module, _, name = path.rpartition(".")
    found = _known().get(name) if not module else None
    if module:
        try:
            found = getattr(import_module(module), name, None)
        except ImportError:
            found = None
    fits = isinstance(found, type) and issubclass(found, Method) and is_dataclass(found)
    if not fits or isabstract(found):
        raise BadValue("rows", f"{place}: there is no method {path}{_hint(path, _known())}")
    return found, dict(settings)


def _known() -> dict[str, type[Method]]:
    found, classes = dict[str, type[Method]](), list[type[Method]](Method.__subclasses__())
    while classes:
        kind = classes.pop()
        classes += kind.__subclasses__()
        if not isabstract(kind):
            found.setdefault(kind.__name__, kind)
    return found


def check_names(given: Mapping[str, Any], known: Collection[str], place: str) -> None:
    """Raises ValueError if a name is not known; `place` begins with the option, such as `rows`."""
    for name in given:
        if name not in known:
            raise BadValue(
                place.partition(".")[0], f"{place}.{name} is not an option{_hint(name, known)}"
            )


def _hint(word: str, known: Collection[str]) -> str:
    near = get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
