"""Image files as a dataset of squares, looked at once before anything is made of them."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from datamodules.reading import SKIP_HINT, FileContent, OnError, looks_whole, read_square

MEMORY_LIMIT = 2 * 2**30
"""Bytes of decoded 8-bit pixels up to which a dataset stays in memory, unless it is told others."""
PIECE = 1024
"""Images that are looked at between two looks at what was found."""


class SquareImages(Items):
    """Image files as squares of one resolution.

    Every file is decoded once when the dataset is made: an unreadable one stops a run before it
    starts rather than hours later, and batches have no holes. That takes milliseconds per image,
    in threads. Up to `memory` the decoded pixels stay in memory (C R^2 bytes per image, in each
    process). Otherwise files are read anew when they are needed, and several processes share the
    first look at them: all must make the dataset.

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
        put_off: with `raise`, decode files that `looks_whole` when they are used, or when `changed`
            asks for them, whose errors then are those of this first look. Not with pixels in
            memory, nor under `skip`, where the batches depend on what can be read.
        memory: GiB of pixels up to which they stay in memory; by default `MEMORY_LIMIT`.
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
        put_off: bool = False,
        memory: float | None = None,
    ) -> None:
        self.resolution, self.fit_mode, self.channels = resolution, fit_mode, channels
        shape = (len(files), resolution, resolution, channels)
        limit = MEMORY_LIMIT if memory is None else memory * 2**30
        pixels = torch.empty(shape, dtype=torch.uint8) if keep and prod(shape) <= limit else None
        self._pixels, self._hint = pixels, hint
        self.files = list(files)
        self._put_off = put_off and pixels is None and on_error == "raise"
        self._digests = np.full(len(files), "", "S16")  # Of those that this process looks at.
        reasons = self._look_at(range(len(files)), stop=on_error == "raise", decode=self._first)
        good = [index for index in range(len(files)) if index not in reasons]
        self.files = [files[index] for index in good]
        if pixels is not None:
            self.files = [(key, _without_content(source)) for key, source in self.files]
        super().__init__([key for key, _ in self.files], fields)
        self.skipped = [(str(files[i][1]), reason) for i, reason in sorted(reasons.items())]
        if self.skipped:
            self._digests = self._digests[good]
            self._pixels = _those(good, pixels) if pixels is not None else None
            told = "; ".join(reason for _, reason in self.skipped[:10])
            more = f"; and {len(self.skipped) - 10} more" if len(self.skipped) > 10 else ""
            rank_zero_warn(f"skipped {len(self.skipped)} of {len(files)} images: {told}{more}")

    def _first(self, index: int) -> str | None:
        """The first look at a file: the reason why it cannot be read, if so."""
        source = self.files[index][1]
        if self._put_off and isinstance(source, Path) and looks_whole(source):
            return None
        return self._decode(index)

    def _decode(self, index: int) -> str | None:
        """Read a file, know its digest, and keep its pixels if they may be; or why it cannot be."""
        try:
            square = read_square(
                self.files[index][1], self.resolution, self.fit_mode, self.channels
            )
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        self._digests[index] = digest(square)
        if self._pixels is not None:
            self._pixels[index] = square
        return None

    def _look_at(
        self, indices: Iterable[int], *, stop: bool, decode: Callable[[int], str | None]
    ) -> dict[int, str]:
        """Decode files, each process its share, or all of them if each is to have the pixels.

        Returns: why some cannot be read, by index, those of all processes.

        Raises:
            ValueError: one cannot be read, and that is to `stop` it.
        """
        rank, processes = _process() if self._pixels is None else (0, 1)
        reasons = _look([i for i in indices if i % processes == rank], decode, stop=stop)
        if processes > 1:
            reasons = _pool(reasons)
        if reasons and stop:
            raise ValueError(f"{reasons[min(reasons)]}{self._hint}")
        return reasons

    @property
    def in_memory(self) -> bool:
        return self._pixels is not None

    def changed(self, entries: Iterable[Mapping[str, Any]]) -> set[str]:
        """As `Items.changed`; of images, each process knows those that it has looked at.

        Raises:
            ValueError: an image that was put off until now cannot be read.
        """
        then: dict[int, str] = {}

        def noted() -> Iterator[Mapping[str, Any]]:
            for entry in entries:
                index = self.index.get(entry["key"])
                if index is not None:
                    then[index] = entry["digest"]
                yield entry

        found = self.differing(noted())
        if self._put_off:
            self._look_at(
                (i for i in sorted(then) if not self._digests[i]), stop=True, decode=self._decode
            )
        for index, told in then.items():
            now = self._digests[index].decode()  # Empty, if another process has looked at it.
            if now and now != told:
                found[index] = self.keys[index]
        return set((_pool(found) if _process()[1] > 1 else found).values())

    def pixels_of(self, key: str) -> Tensor:
        """The image of that key: (R, R, C), uint8."""
        return self.pixels(self.index[key])

    def pixels(self, index: int) -> Tensor:
        """(R, R, C), uint8."""
        if self._pixels is not None:
            return self._pixels[index]
        try:
            return read_square(self.files[index][1], self.resolution, self.fit_mode, self.channels)
        except ValueError as error:
            raise ValueError(f"{error}{self._hint}") from error

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


def _those(good: Sequence[int], pixels: Tensor) -> Tensor:
    """The rows of these indices, which rise; in place, since pixels may fill much of the memory."""
    for new, old in enumerate(good):
        if new != old:
            pixels[new] = pixels[old]
    return pixels[: len(good)]


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
