"""Tables of edits: an image, what it shows, what it is to show."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cyclelight.errors import BadValue, MissingFile, first_line, printable, real

TABLES = (".json", ".csv")
"""Suffixes of files that are tables rather than images."""
PIE_BENCH = "mapping_file.json"
"""The table of PIE-Bench (Ju et al. 2024), by which its folder is known."""
PIE_IMAGES = "annotation_images"
NAMES = {
    "image": ("image", "img_path", "image_path"),
    "source_text": ("source_text", "encode_text", "original_prompt"),
    "target_text": ("target_text", "decode_text", "editing_prompt"),
}
OPTIONAL = ("key", "truth", "group")
"""Texts that a table of ours may have beside these."""
"""What a table may call a field: by our name, in the list published with CycleDiffusion, and in
PIE-Bench."""
SCALES = ("scale", "source_scale")
TOLD = 3
"""Bad rows that are told of; of more, how many."""


@dataclass(frozen=True)
class Edit:
    """One row.

    Args:
        image: its path.
        source_text: what it shows.
        target_text: what it is to show.
        scale, source_scale: of guidance, if the table has any.
        key: what the edit is called; None for the name of its image.
        truth: the right result, an image, if it is known.
        group: the kinds of edits that it is one of, divided by semicolons, such as
            `hair; held out`: comparisons tell their figures apart. Empty for none.
        region: where the image is to change, as PIE-Bench has it, see `decode_runs`; None where
            nothing is said of it. Figures alone heed it, methods do not.
    """

    image: Path
    source_text: str
    target_text: str
    scale: float | None = None
    source_scale: float | None = None
    key: str | None = None
    truth: Path | None = None
    group: str = ""
    region: tuple[int, ...] | None = None

    @property
    def groups(self) -> list[str]:
        """The kinds of edits that it is one of."""
        return [name for name in map(str.strip, self.group.split(";")) if name]


def find_table(source: str) -> Path | None:
    """The table that `source` is, or the one of the PIE-Bench folder that it is; else None."""
    path = Path(source)
    if path.is_dir():
        table = path / PIE_BENCH
        if (path / PIE_IMAGES).is_dir() and not table.is_file():
            raise MissingFile(
                "source", f"source: {path} is half a PIE-Bench: it has no {PIE_BENCH}"
            )
        return table if table.is_file() else None
    return path if path.suffix.lower() in TABLES else None


def read_edits(table: Path, root: Path | None = None) -> list[Edit]:
    """The rows of a table: a JSON list of objects, a CSV file with a heading, or PIE-Bench's.

    Args:
        table: the file. What its fields may be called, see `NAMES`; those of `SCALES` and
            `OPTIONAL` may be there, and anything else.
        root: the folder that the names of images are relative to; None for the table's own, and
            for PIE-Bench its folder of images.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table, or has bad rows; the message names them by number and reason.
    """
    if not table.is_file():
        raise MissingFile("source", f"source: no such file {table}")
    rows = _rows(table)
    if not rows:
        raise BadValue("source", f"source: {table} has no rows")
    pie = table.name == PIE_BENCH
    if root is None:
        root = table.parent / PIE_IMAGES if pie else table.parent
    if not root.is_dir():
        half = f"{table.parent} is half a PIE-Bench: it" if pie else str(table)
        raise MissingFile("source", f"source: {half} has no folder {root.name} of images")
    found, bad = list[Edit](), list[str]()
    for name, row in rows:
        try:
            found.append(_edit(row, root, marked=pie))
        except ValueError as error:
            bad.append(f"{name}: {first_line(error)}")
    if bad:
        more = f"; and {len(bad) - TOLD} more" if len(bad) > TOLD else ""
        told = printable("; ".join(bad[:TOLD]))
        raise BadValue("source", f"source: {table} has {len(bad)} bad rows: {told}{more}")
    for field, what in (("truth", "truths"), ("region", "masks")):
        have = [getattr(edit, field) is not None for edit in found]
        if any(have) and not all(have):
            name = rows[have.index(False)][0]
            raise BadValue("source", f"source: {table} has {what}, but {name} has none")
    return found


def _rows(table: Path) -> list[tuple[str, Any]]:
    """(what to call it, its fields) of each row."""
    try:
        if table.suffix.lower() == ".csv":
            with table.open(newline="", encoding="utf-8-sig") as file:
                return [(f"row {n}", row) for n, row in enumerate(csv.DictReader(file), 1)]
        value = json.loads(table.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, csv.Error) as error:
        told = f"source: {table} cannot be read as {table.suffix[1:].upper()}: {first_line(error)}"
        raise BadValue("source", told) from error
    if isinstance(value, Mapping):
        return [(f"row {name}", row) for name, row in value.items()]
    if not isinstance(value, list):
        raise BadValue("source", f"source: {table} must hold a list of objects, one for each edit")
    return [(f"row {n}", row) for n, row in enumerate(value, 1)]


def _edit(row: Any, root: Path, *, marked: bool) -> Edit:
    """One edit; ValueError says what is wrong with it."""
    if not isinstance(row, Mapping):
        raise ValueError(f"not an object, but {type(row).__name__}")
    given = {}
    for field, names in NAMES.items():
        value = next((row[name] for name in names if row.get(name) is not None), None)
        if not isinstance(value, str) or (not value.strip() and field != "source_text"):
            raise ValueError(f"no {field} ({', '.join(names)})")
        # PIE-Bench has the words that change in brackets.
        given[field] = value.replace("[", "").replace("]", "") if marked else value
    image = root / given.pop("image")
    texts = {name: row.get(name) or None for name in OPTIONAL}
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise ValueError(f"{name} must be a text, got {text!r}")
    truth = None if texts["truth"] is None else root / texts["truth"]
    for path in (image, truth):
        if path is not None and not path.is_file():
            raise ValueError(f"no such image {path}")
    scales = {name: _scale(name, row.get(name)) for name in SCALES}
    told = {"region": _runs(row.get("mask")), "group": texts["group"] or ""}
    if marked and not told["group"] and row.get("editing_type_id") is not None:
        told["group"] = f"type {row['editing_type_id']}"
    return Edit(image, **given, **scales, **told, key=texts["key"], truth=truth)  # type: ignore[arg-type]


def _runs(value: Any) -> tuple[int, ...] | None:
    if value is None or value == "":
        return None
    runs = value if isinstance(value, list) else None
    if runs is None or len(runs) % 2 or not all(type(n) is int and n >= 0 for n in runs):
        raise ValueError("mask must be a list of pairs: where a run begins, and its length")
    return tuple(runs)


def _scale(name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):  # As CSV has it.
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r}") from None
    return real(name, value)


def keyed(edits: Iterable[Edit]) -> dict[str, Edit]:
    """The edits by their keys, sorted.

    The key of an image's first edit is its name; of further ones with their number, `photo-2.png`;
    but a row may have a key of its own.

    Raises:
        ValueError: two edits would have one key.
    """
    edits = list(edits)
    names = _names(edit.image for edit in edits)
    found: dict[str, Edit] = {}
    counts: dict[Path, int] = {}
    for edit in edits:
        key = edit.key
        if key is None:
            counts[edit.image] = number = counts.get(edit.image, 0) + 1
            name = PurePosixPath(names[edit.image])
            key = name.as_posix() if number == 1 else str(name.with_stem(f"{name.stem}-{number}"))
        if key in found:
            raise BadValue("source", f"source: two edits would be called {printable(key)}")
        found[key] = edit
    return dict(sorted(found.items()))


def groups_of(edits: Mapping[str, Edit]) -> dict[str, set[str]]:
    """The keys of the edits of each group, by its name; none where the table has none."""
    found: dict[str, set[str]] = {}
    for key, edit in edits.items():
        for name in edit.groups:
            found.setdefault(name, set()).add(key)
    return dict(sorted(found.items()))


def fields_of(edits: Mapping[str, Edit]) -> dict[str, dict[str, Any]]:
    """What batches have of each edit beside its image, by key; of each the same."""
    own = [n for n in SCALES if any(getattr(edit, n) is not None for edit in edits.values())]
    names = ("source_text", "target_text", *own)
    return {key: {name: getattr(edit, name) for name in names} for key, edit in edits.items()}


def _names(images: Iterable[Path]) -> dict[Path, str]:
    """Each image's path below the folder that all of them lie in."""
    paths = list(dict.fromkeys(images))
    parents = [path.resolve().parent for path in paths]
    common = parents[0]
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return {
        path: (parent / path.name).relative_to(common).as_posix()
        for path, parent in zip(paths, parents, strict=True)
    }
