"""What is in a folder of images: `lightning quickstart` looks before it trains."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import median

from tabulate import tabulate

from cyclelight.diffusion.pixels import digest
from datamodules.listing import list_images
from datamodules.reading import open_image
from datamodules.square_images import SquareImages

LEAST = 10
"""Images that a folder must have."""
SHOWN = 12
"""Images that are held out and translated after each turn, at most a fifth of all."""


@dataclass(frozen=True)
class Survey:
    """What is in a folder.

    Args:
        folder: where.
        files: the readable images.
        unreadable: why others cannot be read.
        duplicates: images that another one equals at 64 pixels.
        side: median of the shorter sides, in pixels.
        digests: one for each image, by which to know it again.
    """

    folder: Path
    files: list[Path]
    unreadable: list[str]
    duplicates: int
    side: int
    digests: frozenset[str]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    def link(self, place: Path) -> None:
        """Folders `train` and `val` of links to the images, held out by a hash of their names."""
        held = max(1, min(SHOWN, len(self.files) // 5))
        shutil.rmtree(place, ignore_errors=True)
        order = sorted(self.files, key=lambda path: blake2b(os.fsencode(path.name)).digest())
        for index, path in enumerate(order):
            part = place / ("val" if index < held else "train")
            part.mkdir(parents=True, exist_ok=True)
            os.symlink(path.resolve(), part / f"{index:06}_{path.name}")


def survey(folder: Path) -> Survey:
    """Look at every image of a folder once.

    Raises:
        ValueError: there is no such folder, or it has too few images.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    files = list_images(folder)
    images = SquareImages(files, 64, on_error="skip") if files else None
    if images is None or len(images) < LEAST:
        found = 0 if images is None else len(images)
        raise ValueError(f"{folder}: at least {LEAST} images are needed, found {found}")
    digests = [digest(images.pixels(index)) for index in range(len(images))]
    return Survey(
        folder,
        [path for _, path in images.files if isinstance(path, Path)],
        [reason for _, reason in images.skipped],
        len(digests) - len(set(digests)),
        int(median(_sides(images))),
        frozenset(digests),
    )


def _sides(images: SquareImages) -> Iterator[int]:
    for _, path in images.files[:500]:
        assert isinstance(path, Path)
        with open_image(path) as image:
            yield min(image.size)


def table(surveys: list[Survey]) -> str:
    """The surveys, and what of them should be looked at."""
    head = ("folder", "images", "unreadable", "duplicates", "median side")
    cells = [
        (str(s.folder), len(s.files), len(s.unreadable), s.duplicates, f"{s.side} pixels")
        for s in surveys
    ]
    lines = [tabulate(cells, head)]
    lines += [f"unreadable: {reason}" for s in surveys for reason in s.unreadable[:3]]
    both = len(surveys[0].digests & surveys[1].digests)
    if both:
        lines.append(f"{both} images are in both folders: each should be in one")
    if any(len(s.files) < 200 for s in surveys):
        lines.append("fewer than 200 images of a kind are learned by heart rather than understood")
    return "\n".join(lines)
