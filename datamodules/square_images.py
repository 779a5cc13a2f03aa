"""Image files as a dataset of squares, looked at once before anything is made of them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from cyclelight.diffusion.pixels import FitMode, digest
from datamodules.items import Item, Items
from datamodules.reading import SKIP_HINT, FileContent, OnError, read_square

MEMORY_LIMIT = 512 * 2**20
"""Bytes of decoded 8-bit pixels up to which a dataset stays in memory."""
PIECE = 1024
"""Images that are looked at between two looks at what was found."""


class SquareImages(Items):
    """Image files as squares of one resolution.

    Every file is decoded once when the dataset is made: an unreadable one stops a run before it
    starts rather than hours later, and batches have no holes. That takes milliseconds per image,
    in threads; training or translating takes far longer. Up to `MEMORY_LIMIT` the decoded pixels
    stay in memory (C R^2 bytes per image, in each process). Otherwise files are read anew when they
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
        channels: C: 3 for RGB, or 1 for grey.
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
        channels: int = 3,
    ) -> None:
        self.resolution, self.fit_mode, self.channels = resolution, fit_mode, channels
        shape = (len(files), resolution, resolution, channels)
        small = prod(shape) <= MEMORY_LIMIT
        pixels = torch.empty(shape, dtype=torch.uint8) if keep and small else None
        digests = np.full(len(files), "", "S16")  # Of those that this process looks at.

        def decode(index: int) -> str | None:
            """The reason why the file cannot be read, if so."""
            try:
                square = read_square(files[index][1], resolution, fit_mode, channels)
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
            reasons = _pool(reasons)
        if reasons and on_error == "raise":
            raise ValueError(f"{reasons[min(reasons)]}{hint}")
        good = [index for index in range(len(files)) if index not in reasons]
        self.files = [files[index] for index in good]
        if pixels is not None:
            self.files = [(key, _without_content(source)) for key, source in self.files]
        super().__init__([key for key, _ in self.files], fields)
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

    def changed(self, entries: Iterable[Mapping[str, Any]]) -> set[str]:
        """As `Items.changed`; of images, each process knows those that it has looked at."""
        found = self.differing(entries)
        return set((_pool(found) if _process()[1] > 1 else found).values())

    def _differs(self, index: int, entry: Mapping[str, Any]) -> bool:
        now = self._digests[index].decode()  # Empty, if another process has looked at it.
        return super()._differs(index, entry) or (bool(now) and entry["digest"] != now)

    def pixels_of(self, key: str) -> Tensor:
        """The image of that key: (R, R, C), uint8."""
        return self.pixels(self.index[key])

    def pixels(self, index: int) -> Tensor:
        """(R, R, C), uint8."""
        if self._pixels is not None:
            return self._pixels[index]
        return read_square(self.files[index][1], self.resolution, self.fit_mode, self.channels)

    def all_pixels(self) -> Tensor:
        """Those of all images: (N, R, R, C), uint8."""
        if self._pixels is not None:
            return self._pixels
        return torch.stack([self.pixels(index) for index in range(len(self))])

    def __getitem__(self, index: int) -> Item:
        image, path = self.pixels(index), str(self.files[index][1])
        return {**super().__getitem__(index), "image": image, "path": path}


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


def _without_content(source: Path | FileContent) -> Path | FileContent:
    """Where an image came from, without its content."""
    return FileContent(source.name, b"") if isinstance(source, FileContent) else source


def _process() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _pool(found: dict[int, str]) -> dict[int, str]:
    """What all processes found, by index."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, found)
    return {index: text for part in parts for index, text in part.items()}
