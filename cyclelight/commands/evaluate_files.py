"""Which translation is of which source, and what size all of them have."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from cyclelight.runs.folder import output_names
from datamodules.listing import Files
from datamodules.reading import open_image

GREYS = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
"""Pillow's modes of images without colours."""


def match(translated: Files, sources: Files) -> list[tuple[str, Path, Path]]:
    """(key of the source, translation, source) of each translation.

    The source is the one whose translation `predict` would give that name, or else the one of the
    very same name, or else the only one with the same path but for the suffix. If there is none,
    Unicode's two forms of a letter are one: programs and file systems differ in which they keep.

    Raises:
        ValueError: no images, a translation without a source or with several, or two of one source.
    """
    if not translated:
        raise ValueError("--translated: no images there")
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
            raise ValueError(f"--translated: {name} {several if keys else 'has no source'}")
        if keys[0] in found:
            raise ValueError(f"--translated: {found[keys[0]][1]} and {path} have the same source")
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


def common_shape(paths: list[Path]) -> tuple[int, int]:
    """(the side of square images of one size, in pixels; 1 if all files are grey, or else 3).

    Raises:
        ValueError: one is not square, of another size than the first, or unreadable.
    """
    sizes, grey = [], True
    for path in paths:
        try:
            with open_image(path) as image:
                sizes.append(image.size)
                grey = grey and image.mode in GREYS
        except OSError as error:
            raise ValueError(f"--translated: cannot read image {path}: {error}") from error
        (width, height), first = sizes[-1], sizes[0]
        if width != height or (width, height) != first:
            wanted = f"{first[0]} x {first[0]} pixels as {paths[0]}" if len(sizes) > 1 else "square"
            raise ValueError(f"--translated: {path} is {width} x {height} pixels, not {wanted}")
    return sizes[0][0], 1 if grey else 3
