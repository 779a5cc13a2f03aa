"""The files of a comparison: which sources are chosen, and what belongs to them."""

import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from jsonargparse import Namespace

from cyclelight.errors import BadValue, MissingFile, at_least
from cyclelight.files import write_json
from cyclelight.runs.comparison import Setting
from datamodules.edit_rows import Edit, fields_of, find_table, keyed, read_edits
from datamodules.listing import Files, counterparts, list_images
from datamodules.matching import match


def choose(files: Files, n: int | None, skip: int = 0, seed: int = 0) -> Files:
    """Some of the files, by their keys: of a seeded order, `n` after the first `skip`.

    With the same seed, a larger `n` has all of a smaller one's, and what is skipped is what an `n`
    of that size has.

    Raises:
        ValueError: there are not as many.
    """
    at_least(0, **{"data.skip": skip})
    if n is not None:
        at_least(1, **{"data.n": n})
    wanted = len(files) - skip if n is None else n
    if not 0 < wanted <= len(files) - skip:
        told = f"{wanted} of {len(files)} images are not there" + f" after {skip}" * bool(skip)
        raise BadValue("data.n", f"data.n: {told}")

    def place(file: tuple[str, Path]) -> bytes:
        return blake2b(f"{seed} {file[0]}".encode(errors="surrogateescape")).digest()

    return sorted(sorted(files, key=place)[skip : skip + wanted])


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError unless they are different, and at least one."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise BadValue("seeds", f"seeds must be different integers, at least one: {seeds}")


def reference_of(folder: str | None) -> Files:
    """The real images of a folder; none of None.

    Raises:
        ValueError, FileNotFoundError: there is no such folder, or not 2 images in it.
    """
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise MissingFile("data.reference", f"data.reference: no such folder {folder}")
    files = list_images(folder)
    if len(files) < 2:
        raise BadValue("data.reference", f"data.reference: 2 images are needed in {folder}")
    return files


def truths_of(data: Namespace, files: Files, edits: Mapping[str, Edit]) -> tuple[Files, Files]:
    """(the truth of each source, among what it is looked for), as far as they are known.

    Raises:
        ValueError, FileNotFoundError: a folder or a truth is missing.
    """
    told = {key: edit.truth for key, edit in edits.items() if edit.truth is not None}
    if told and data.truth is not None:
        raise BadValue("data.truth", "data.truth stands in each row of the table: do not give it")
    if not told and data.truth is None:
        if data.candidates is not None:
            reason = "data.candidates: truths are looked for among them: give data.truth, too"
            raise BadValue("data.candidates", reason)
        return [], []
    truths = told or counterparts([key for key, _ in files], data.truth, "data.truth")
    if data.candidates is None:
        return list(truths.items()), []
    if not Path(data.candidates).is_dir():
        raise MissingFile("data.candidates", f"data.candidates: no such folder {data.candidates}")
    return list(truths.items()), list_images(data.candidates)


def edits_of(data: Namespace) -> dict[str, Edit]:
    """The edits of a table, by their keys.

    Raises:
        ValueError, FileNotFoundError: it is none, or has bad rows.
    """
    table = find_table(data.source)
    if table is None:
        told = (
            f"data.source: edits by a model are compared: give a table of them, got {data.source}"
        )
        raise BadValue("data.source", told)
    return keyed(read_edits(table, None if data.root is None else Path(data.root)))


def write_edits(path: Path, edits: Mapping[str, Edit]) -> None:
    """Write chosen edits as a table of their own, in which they keep their keys."""
    rows = []
    for key, fields in fields_of(edits).items():
        edit = edits[key]
        row = {"key": key, "image": os.path.realpath(edit.image), "group": edit.group, **fields}
        if edit.truth is not None:
            row["truth"] = os.path.realpath(edit.truth)
        if edit.region is not None:
            row["mask"] = list(edit.region)
        rows.append(row)
    write_json(path, rows)


def theirs_of(setting: Setting, found: Files, keys: Sequence[str]) -> Files:
    """(key of the source, translation) of what another program has made of these sources.

    Args:
        setting: the line of the table.
        found: all sources.
        keys: of those that are compared.

    Raises:
        ValueError: one is missing, or a translation has no source or several.
    """
    assert setting.theirs is not None
    made = {key: path for key, path, _ in match(list_images(setting.theirs), found)}
    missing = [key for key in keys if key not in made]
    if missing:
        raise ValueError(f"{setting.theirs} has no translation of {missing[0]}")
    return [(key, made[key]) for key in keys]


def stamps(files: Files) -> list[tuple[str, int, int]]:
    """What tells whether files have changed."""
    stats = [(key, path.stat()) for key, path in files]
    return [(key, stat.st_size, stat.st_mtime_ns) for key, stat in stats]
