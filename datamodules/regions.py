"""Where images are to change, in PIE-Bench's form."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 512
"""Of PIE-Bench's images and masks."""


def decode_runs(runs: Sequence[int], side: int = SIDE) -> Tensor:
    """A mask of PIE-Bench (Ju et al. 2024) => (side, side), bool: where the image is to change.

    Of the pixels, row after row, `runs` has in turn where some begin that are in, and how many. The
    outermost pixels are always in, as annotations go wrong there.
    """
    flat = np.zeros(side * side, dtype=bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = True
    mask = torch.from_numpy(flat.reshape(side, side))
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        edge[:] = True
    return mask


class Regions(Mapping[str, Tensor]):
    """The masks of images by key: (R, R), bool; decoded when they are asked for.

    Args:
        runs: of each, see `decode_runs`.
        resolution: side R in pixels; a pixel is in if most of what it covers is.
    """

    def __init__(self, runs: Mapping[str, Sequence[int]], resolution: int) -> None:
        self.runs, self.resolution = runs, resolution

    def __getitem__(self, key: str) -> Tensor:
        mask = decode_runs(self.runs[key])
        if self.resolution == SIDE:
            return mask
        image = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
        small = image.resize((self.resolution, self.resolution), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small)) >= 128

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)
