"""Which files of a folder, or of a pattern, are images; what is passed over is told."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from lightning.pytorch.utilities import rank_zero_warn

from cyclelight.errors import BadValue, MissingFile

Files = list[tuple[str, Path]]
"""(key, path) of each image."""

SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".gif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".qoi"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    )
)
"""Of the formats in `datamodules.reading.FORMATS`."""
NO_IMAGES = frozenset(
    (
        *("", ".txt", ".md", ".rst", ".pdf", ".html", ".css", ".js", ".log", ".py", ".sh", ".ini"),
        *(".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".db", ".lock"),
        *(".zip", ".tar", ".gz", ".sha256", ".md5", ".npy", ".npz", ".pt", ".ckpt", ".safetensors"),
    )
)
"""Suffixes of what nobody takes for an image; not told of."""


def is_image_name(path: PurePath) -> bool:
    """Whether the name has a known suffix, in any case, and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def list_images(root: str | Path) -> Files:
    """The image files below `root` as (key, path), sorted by key.

    The key is the POSIX path relative to `root`, suffix included. Known suffixes in any case;
    hidden files and folders are left out. Links to folders are followed, each folder once: one that
    lies below `root` too is found there. A warning tells how many files of which suffixes, and
    links that lead nowhere, were passed over.

    Raises:
        FileNotFoundError: `root` is not a folder.
        OSError: a folder cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder of images: {root}")
    files, passed = list[tuple[str, Path]](), Counter[str]()
    for path in walk(root):
        if path.is_symlink() and not path.exists():
            passed["links that lead nowhere"] += 1
        elif not is_image_name(path):
            passed[path.suffix.lower()] += 1
        elif path.is_file():
            files.append((path.relative_to(root).as_posix(), path))
    _tell(root, passed)
    return sorted(files)


def find_images(source: str) -> Files:
    """(key, path) of the images that a file, folder or pattern means, sorted by key.

    Raises:
        FileNotFoundError: `source` is none of the three.
        ValueError: no images there.
        OSError: a folder cannot be read.
    """
    files = _find(source)
    if not files:
        raise BadValue("source", f"source: no images found by {source}")
    return files


def _find(source: str) -> Files:
    path = Path(source)
    if path.is_file():  # Before the pattern: a real name may hold brackets.
        return [(path.name, path)]
    if path.is_dir():
        return list_images(path)
    if not glob.has_magic(source):
        raise MissingFile("source", f"source: no such file or folder {source}")
    root = _fixed_part(path)
    pattern = path.relative_to(root).parts
    if "**" in pattern:
        # Not by glob, which would follow links in a circle.
        found = [p for p in walk(root) if fits(p.relative_to(root).parts, pattern)]
    else:
        found = _each_once(map(Path, glob.glob(source)))
    return sorted(
        (file.relative_to(root).as_posix(), file)
        for file in found
        if is_image_name(file) and file.is_file()
    )


def counterparts(keys: Sequence[str], folder: str, argument: str) -> dict[str, Path]:
    """The file that belongs to each image, such as its mask: that of its path, with any suffix.

    Args:
        keys: of the images.
        folder: below which the files lie.
        argument: what errors are about.

    Raises:
        FileNotFoundError: there is no such folder, or no file for an image.
        ValueError: there are two files for an image.
    """
    if not Path(folder).is_dir():
        raise MissingFile(argument, f"{argument}: no such folder {folder}")
    found: dict[str, Path] = {}
    for key, path in list_images(folder):
        name = _bare(key)
        if name in found:
            raise BadValue(argument, f"{argument}: {found[name]} and {path} are of the same image")
        found[name] = path
    lacking = [key for key in keys if _bare(key) not in found]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise MissingFile(argument, f"{argument}: {folder} has none for {lacking[0]}{more}")
    return {key: found[_bare(key)] for key in keys}


def _bare(key: str) -> str:
    return str(PurePosixPath(key).with_suffix(""))


def walk(root: Path) -> Iterator[Path]:
    """What lies below a folder and is no folder, but for what is hidden.

    Links to folders are followed, last, and no folder is looked into twice.

    Raises:
        OSError: a folder cannot be read.
    """
    seen, links = set[Path](), [root]
    while links:
        folders = [links.pop(0)]
        while folders:
            folder = folders.pop()
            real = folder.resolve()
            if real in seen:
                continue
            seen.add(real)
            with os.scandir(folder) as entries:
                visible = (entry for entry in entries if not entry.name.startswith("."))
                found = sorted(visible, key=lambda entry: entry.name)
            for entry in found:
                if not entry.is_dir():
                    yield folder / entry.name
                else:
                    (links if entry.is_symlink() else folders).append(folder / entry.name)


def fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path's parts are those that a pattern's mean; `**` means any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(fits(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and fits(parts[1:], pattern[1:])


def _each_once(paths: Iterator[Path]) -> list[Path]:
    """Of paths that lead to one folder's file, through links to folders, the one without."""
    found: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: (path.parent != path.parent.resolve(), path)):
        found.setdefault(path.parent.resolve() / path.name, path)
    return list(found.values())


def _fixed_part(pattern: Path) -> Path:
    """The folders of `pattern` before the first one with a wildcard."""
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern


def _tell(root: Path, passed: Counter[str]) -> None:
    told = [f"{count} {kind}" for kind, count in passed.most_common() if kind not in NO_IMAGES]
    if told:
        more = f" and {len(told) - 10} more kinds" if len(told) > 10 else ""
        rank_zero_warn(
            f"{root}: passed over {', '.join(told[:10])}{more}: no images, or in a format "
            f"that is not read here; convert those to PNG or JPEG"
        )
