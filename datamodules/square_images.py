"""Image files as a dataset of squares, looked at once before anything is made of them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cyclelight.diffusion.pixels import FitMode, digest
from datamodules.reading import SKIP_HINT, FileContent, OnError, read_square

MEMORY_LIMIT = 512 * 2**20
"""Bytes of decoded 8-bit pixels up to which a dataset stays in memory."""
PIECE = 1024
"""Images that are looked at between two looks at what was found."""

ImageItem = dict[str, Any]
"""image: (R, R, 3), uint8; key: names the image in the run; path: where it was; and whatever
further fields the data has of it, as JSON has them, which stand in the manifest of a run."""


class SquareImages(Dataset[ImageItem]):
    """Image files as squares of one resolution.

    Every file is decoded once when the dataset is made: an unreadable one stops a run before it
    starts rather than hours later, and batches have no holes. That takes milliseconds per image,
    in threads; training or translating takes far longer. Up to `MEMORY_LIMIT` the decoded pixels
    stay in memory (3 R^2 bytes per image, in each process). Otherwise files are read anew when they
    are needed, and several processes share the first look at them: all must make the dataset.

    Args:
        files: (key, path) of each image, as from `list_images`, or its content in place of the
            path. Contents are let go once the pixels are in memory.
        resolution: side R in pixels.
        fit_mode: see `cyclelight.diffusion.pixels.fit_square`.
        on_error: `raise` a ValueError on an unreadable file, or `skip` it: then `skipped` lists
            (path, reason), and one warning tells.
        keep: whether pixels may stay in memory.
        hint: how to go on without an unreadable file; the error's end.
        fields: further fields of the items, by key.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, Path | FileContent]],
        resolution: int,
        fit_mode: FitMode = "crop",
        on_error: OnError = "raise",
        *,
        keep: bool = True,
        hint: str = f" ({SKIP_HINT})",
        fields: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.resolution, self.fit_mode, self.fields = resolution, fit_mode, fields or {}
        shape = (len(files), resolution, resolution, 3)
        small = len(files) * 3 * resolution**2 <= MEMORY_LIMIT
        pixels = torch.empty(shape, dtype=torch.uint8) if keep and small else None
        digests = np.full(len(files), "", "S16")  # Of those that this process looks at.

        def decode(index: int) -> str | None:
            """The reason why the file cannot be read, if so."""
            try:
                square = read_square(files[index][1], resolution, fit_mode)
            except (ValueError, FileNotFoundError) as error:
                return str(error)
            digests[index] = digest(square)
            if pixels is not None:
                pixels[index] = square
            return None

        rank, processes = _process() if pixels is None else (0, 1)
        mine = range(rank, len(files), processes)
        reasons = _look(mine, decode, stop=on_error == "raise")
        if processes > 1:
            reasons = _pooled(reasons)
        if reasons and on_error == "raise":
            raise ValueError(f"{reasons[min(reasons)]}{hint}")
        good = [index for index in range(len(files)) if index not in reasons]
        self.files = [files[index] for index in good]
        if pixels is not None:
            self.files = [(key, _emptied(source)) for key, source in self.files]
        self._digests = digests[good]
        self.skipped = [(str(files[i][1]), reason) for i, reason in sorted(reasons.items())]
        self._pixels = pixels[good] if pixels is not None and self.skipped else pixels
        if self.skipped:
            told = "; ".join(reason for _, reason in self.skipped[:10])
            more = f"; and {len(self.skipped) - 10} more" if len(self.skipped) > 10 else ""
            rank_zero_warn(f"skipped {len(self.skipped)} of {len(files)} images: {told}{more}")

    @property
    def in_memory(self) -> bool:
        return self._pixels is not None

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the images, in their order."""
        return [key for key, _ in self.files]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {key: index for index, key in enumerate(self.keys)}

    def pixels_of(self, key: str) -> Tensor:
        """The image of that key: (R, R, 3), uint8."""
        return self.pixels(self._index[key])

    def changed(self, entries: Iterable[Mapping[str, Any]]) -> set[str]:
        """The keys of images whose pixels or fields are others than the entry of their key says.

        Of several processes all must ask, since each knows what it has looked at.

        Args:
            entries: `key`, `digest` and the fields, such as those of a manifest; the last one of
                each key counts.
        """
        differs: dict[int, bool] = {}
        for entry in entries:
            index = self._index.get(entry["key"])
            if index is not None:
                differs[index] = self._differs(index, entry)
        found = {index: self.keys[index] for index, differ in differs.items() if differ}
        return set((_pooled(found) if _process()[1] > 1 else found).values())

    def _differs(self, index: int, entry: Mapping[str, Any]) -> bool:
        now = self._digests[index].decode()  # Empty, if another process has looked at it.
        fields = self.fields.get(self.keys[index], {})
        others = any(entry.get(name) != value for name, value in fields.items())
        return others or (bool(now) and entry["digest"] != now)

    def pixels(self, index: int) -> Tensor:
        """(R, R, 3), uint8."""
        if self._pixels is not None:
            return self._pixels[index]
        return read_square(self.files[index][1], self.resolution, self.fit_mode)

    def __getitem__(self, index: int) -> ImageItem:
        key, source = self.files[index]
        more = self.fields.get(key, {})
        return {"image": self.pixels(index), "key": key, "path": str(source), **more}


def _look(
    indices: Sequence[int], decode: Callable[[int], str | None], *, stop: bool
) -> dict[int, str]:
    """Why files cannot be read, by index; with `stop` no further than the first few found."""
    reasons: dict[int, str] = {}
    # In pieces, since a pool holds all that it was given.
    pieces = [indices[start : start + PIECE] for start in range(0, len(indices), PIECE)]
    hidden = None if _process()[0] == 0 else True  # None hides it where there is no terminal.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        bar = tqdm(pieces, "reading images", unit_scale=PIECE, delay=3, leave=False, disable=hidden)
        for piece in bar:
            found = zip(piece, pool.map(decode, piece), strict=True)
            reasons |= {index: reason for index, reason in found if reason is not None}
            if reasons and stop:
                break
    return reasons


def _emptied(source: Path | FileContent) -> Path | FileContent:
    """Where an image came from, without its content."""
    return FileContent(source.name, b"") if isinstance(source, FileContent) else source


def _process() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _pooled(found: dict[int, str]) -> dict[int, str]:
    """What all processes found, by index."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, found)
    return {index: text for part in parts for index, text in part.items()}
