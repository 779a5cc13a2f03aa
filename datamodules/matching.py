"""Which translation is of which source: by the names that programs give them."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from cyclelight.errors import BadValue
from cyclelight.runs.folder import output_names
from datamodules.listing import Files


def match(
    translated: Files, sources: Files, argument: str = "--translated"
) -> list[tuple[str, Path, Path]]:
    """(key of the source, translation, source) of each translation.

    The source is the one whose translation `predict` would give that name, or else the one of the
    very same name, or else the only one with the same path but for the suffix. If there is none,
    Unicode's two forms of a letter are one: programs and file systems differ in which they keep.

    Args:
        translated: the translations.
        sources: what they may be of.
        argument: the option that errors are about; their messages begin with it.

    Raises:
        ValueError: no images, a translation without a source or with several, or two of one source.
    """
    if not translated:
        raise BadValue(argument, f"{argument}: no images there")
    paths = dict(sources)
    names = {name: [key] for key, name in output_names(list(paths)).items()}
    ways: list[Callable[[str], str]] = [str, _stem, _composed, lambda key: _stem(_composed(key))]
    known = [names, *(_by(way, paths) for way in ways)]
    found: dict[str, tuple[str, Path, Path]] = {}
    for name, path in translated:
        sought = [name, *(way(name) for way in ways)]
        matches = (keys.get(wanted) for keys, wanted in zip(known, sought, strict=True))
        keys = next(filter(None, matches), [])
        if len(keys) != 1:
            several = f"has several sources: {', '.join(keys)}"
            told = several if keys else "has no source"
            raise BadValue(argument, f"{argument}: {name} {told}")
        if keys[0] in found:
            other = found[keys[0]][1]
            raise BadValue(argument, f"{argument}: {other} and {path} have the same source")
        found[keys[0]] = (keys[0], path, paths[keys[0]])
    return [found[key] for key in sorted(found)]


def _by(way: Callable[[str], str], keys: Iterable[str]) -> Mapping[str, list[str]]:
    found = defaultdict(list)
    for key in keys:
        found[way(key)].append(key)
    return dict(found)


def _stem(key: str) -> str:
    return key.removesuffix(PurePosixPath(key).suffix)


def _composed(key: str) -> str:
    return unicodedata.normalize("NFC", key)
