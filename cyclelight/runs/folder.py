"""The folder of a run: its images, their manifest, and files written whole or not at all.

images/<key>.png    the translated images, 8-bit
manifest.jsonl      one line per image: {"key", "source", "digest", "output", "seed", ...}
made_by.json        the SHA-256 of the weights that made them
.lock               held by the run that is writing here
"""

import errno
import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from sys import intern
from typing import Any, TypedDict, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cyclelight.diffusion.pixels import MODES, pil_image
from cyclelight.files import atomic, check_no_file, locked, remove_leftovers


class Entry(TypedDict):
    """A line of the manifest: these fields, and whichever the data has beside them.

    `output` is relative to the run folder, `source` as it was given; `digest` is that of the
    source's pixels, see `cyclelight.diffusion.pixels.digest`.
    """

    key: str
    source: str
    digest: str
    output: str
    seed: int


IMAGES, MANIFEST, MADE_BY = "images", "manifest.jsonl", "made_by.json"
MADE_OF_IMAGES = (
    *("metrics.json", "metrics.csv", "gallery.png", "gallery.html"),
    *("table.csv", "table.md", "table.tex"),
)
"""What a run makes of its images at the end."""
OF_THE_WAY = ("traces", "starts", "ways")
"""Folders beside the images, where these were guided."""


@contextmanager
def sole_use(root: Path) -> Iterator[None]:
    """Keep other runs out of an output folder, which is made; clear up after killed ones.

    Raises: as `locked`.
    """
    with locked(root):
        # Not in other folders, where other runs may be at work.
        inside = [(root / part).rglob for part in (IMAGES, *OF_THE_WAY)]
        for found in (root.glob, *inside, (root / "checkpoints").glob):
            remove_leftovers(found(".*.tmp"))
        yield


class RunFolder:
    """The images of one run, by their keys.

    The manifest describes what lies in `images/`: it is appended to while images are finished, by
    any number of processes, and put in order at the end.

    Args:
        root: the folder; made when something is written.
        keys: all keys of the run, relative POSIX paths, since a name may depend on the others.

    Raises:
        ValueError: a key would leave the folder, is not Unicode or occurs twice, or `root` is a
            file or a link to nothing.
    """

    def __init__(self, root: str | Path, keys: Sequence[str] = ()) -> None:
        self.root = Path(root)
        check_no_file(self.root)
        self.manifest_path = self.root / MANIFEST
        self._names = output_names(keys)

    def image_path(self, key: str) -> Path:
        """Where the image of `key` is: `images/<key>`, its suffix replaced by .png.

        Keys that differ only by suffix keep it, a.jpg and a.bmp give a.jpg.png and a.bmp.png.
        """
        return self.root / self._output(key)

    def _output(self, key: str) -> str:
        """`image_path`, relative to the run folder."""
        return f"{IMAGES}/{self._names[key]}"

    def write_image(self, key: str, pixels: Tensor) -> Path:
        """Write (H, W, C), uint8, as PNG, atomically: RGB, or grey if C is 1; the path."""
        assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[-1] in MODES
        path = self.image_path(key)
        with atomic(path) as temporary:
            pil_image(pixels).save(temporary, format="PNG")
        return path

    def add_to_manifest(
        self, key: str, source: str, digest: str, seed: int, fields: Mapping[str, Any] | None = None
    ) -> None:
        """Note that the image of `key` is finished.

        Args:
            fields: further ones of the entry, as JSON has them.
        """
        output = self._output(key)
        entry: Entry = dict(key=key, source=source, digest=digest, output=output, seed=seed)
        line = json.dumps({**entry, **(fields or {})}) + "\n"
        # One write to a file opened for appending: lines of a machine's processes never mix.
        descriptor = os.open(self.manifest_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if os.write(descriptor, line.encode()) < len(line.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.manifest_path))
        finally:
            os.close(descriptor)

    def manifest(self) -> dict[str, Entry]:
        """The entries by key, sorted; the last one of each key."""
        return dict(sorted({entry["key"]: entry for entry in self.entries()}.items()))

    def entries(self) -> Iterator[Entry]:
        """The entries as they were added.

        What is no entry is ignored, such as a line that was cut off by a crash or a full disk, also
        with another behind it: that image is not known to be finished.
        """
        if not self.manifest_path.exists():
            return
        with self.manifest_path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    entry = json.loads(line, object_pairs_hook=_one_name_for_all)
                    if _is_entry(entry):
                        yield entry

    def finished(self) -> dict[str, Entry]:
        """The manifest's entries of this run's keys whose images are there, in their order.

        An entry is written after its image, which appears whole: what is listed is complete.
        """
        return {
            key: entry
            for key, entry in self.manifest().items()
            if key in self._names and self.image_path(key).is_file()
        }

    def unlisted(self) -> list[str]:
        """This run's keys whose images are there, but not in the manifest.

        Network file systems may let one machine overwrite what another one appends.
        """
        listed = {entry["key"] for entry in self.entries()}
        unlisted = (key for key in self._names if key not in listed)
        return [key for key in unlisted if self.image_path(key).is_file()]

    def read_image(self, key: str, resolution: int, channels: int = 3) -> Tensor:
        """The image of `key` as it was written: (resolution, resolution, channels), uint8.

        Raises:
            ValueError: it cannot be read, or has another size.
        """
        path = self.image_path(key)
        try:
            with Image.open(path, formats=("PNG",)) as image:
                pixels = torch.from_numpy(np.array(image.convert(MODES[channels])))
        except OSError as error:
            raise ValueError(f"cannot read {path}, delete it and run again: {error}") from error
        height, width = pixels.shape[:2]
        if (height, width) != (resolution, resolution):
            raise ValueError(
                f"{path} is {width} x {height} pixels, not {resolution} x {resolution}: "
                f"delete it and run again"
            )
        return pixels.view(height, width, channels)

    def open_manifest(self) -> int:
        """Begin the run, or go on with it: forget what is not there; how many other images are.

        Other keys' images lie in the folder from an earlier run, so their entries stay, unless an
        image of this run will have that name. An image whose name has changed, as there are other
        keys now, is removed: it is made anew under the new one.
        """
        taken = set(self._names.values())
        entries = {}
        for key, entry in self.manifest().items():
            path = self.root / entry["output"]
            free = entry["output"].removeprefix(f"{IMAGES}/") not in taken
            ours = key in self._names
            right = entry["output"] == self._output(key) if ours else free
            if right and path.is_file():
                entries[key] = entry
            elif ours and free:
                path.unlink(missing_ok=True)
        self._rewrite(entries)
        return sum(key not in self._names for key in entries)

    def forget(self, keys: Collection[str]) -> None:
        """Take these out of the manifest: their images are to be made anew."""
        self._rewrite({key: e for key, e in self.manifest().items() if key not in keys})

    def clear(self) -> None:
        """Remove the images that the manifest lists, it, and what was made of them."""
        entries = self.manifest().values()
        for name in [*(entry["output"] for entry in entries), *MADE_OF_IMAGES, "manifest.jsonl"]:
            (self.root / name).unlink(missing_ok=True)

    def close_manifest(self) -> None:
        """End the run: the manifest sorted by key, one line each, atomically. One process only."""
        self._rewrite(self.manifest())

    def _rewrite(self, entries: dict[str, Entry]) -> None:
        path = self.manifest_path
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries.values())


def _is_entry(entry: object) -> TypeGuard[Entry]:
    """Whether it may be one of ours: the file that it names may be removed."""
    if not isinstance(entry, dict):
        return False
    typed = all(isinstance(entry.get(name), kind) for name, kind in Entry.__annotations__.items())
    output = entry.get("output", "")
    return typed and output.startswith(f"{IMAGES}/") and "/../" not in output


def _one_name_for_all(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Of a million entries, the names of their fields alone would else be 0.2 GB.
    return {intern(name): value for name, value in pairs}


def output_names(keys: Sequence[str]) -> dict[str, str]:
    """The PNG's relative path for each key, all different.

    Raises:
        ValueError: a key is empty, absolute, has '..' or another odd part, is not Unicode, as a
            file's name may be, or occurs twice.
    """
    for key, count in Counter(keys).items():
        path = PurePosixPath(key)
        if not key.isascii() and key.encode(errors="replace").decode() != key:
            reads = sys.getfilesystemencoding()
            how = "rename it" if reads == "utf-8" else f"names are read as {reads}: LC_ALL=C.UTF-8"
            raise ValueError(f"the name of an image is not UTF-8: {key!r}; {how}")
        odd = ".." in path.parts or "\0" in key or str(path) != key or not path.name
        if odd or path.is_absolute():
            raise ValueError(f"an image's key must be a plain relative path, got {key!r}")
        if count > 1:
            raise ValueError(f"the key {key!r} occurs {count} times, keys must differ")
    names = {key: key.removesuffix(PurePosixPath(key).suffix) + ".png" for key in keys}
    # Repeated, since a full name such as a.jpg.png may meet the short one of a.jpg.tif.
    while shared := {name for name, count in Counter(names.values()).items() if count > 1}:
        names = {key: key + ".png" if name in shared else name for key, name in names.items()}
    return names
