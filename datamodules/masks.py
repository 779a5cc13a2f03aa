"""Masks of images: where each may change."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from cyclelight.diffusion.pixels import FitMode, digest, fit_square
from cyclelight.errors import BadValue
from datamodules.items import Item
from datamodules.listing import Files
from datamodules.reading import OnError, read_image
from datamodules.square_images import SquareImages


def read_mask(path: Path, resolution: int, mode: FitMode) -> Tensor:
    """A mask fitted as its image is: (resolution, resolution), bool, true where it is light.

    What a letterbox adds is outside of it.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        # Inverted meanwhile, since the border of a letterbox is white.
        dark = fit_square(ImageOps.invert(read_image(path)), resolution, mode)
    except ValueError as error:
        raise BadValue("masks", f"masks: {error}") from error
    return torch.from_numpy(np.array(dark)).float().mean(-1) < 128


class MaskedImages(SquareImages):
    """`SquareImages` with `mask`, (R, R), bool, and `mask_digest`, by which to see another one.

    Args:
        files: as of `SquareImages`.
        resolution: side R in pixels.
        fit_mode: of images and masks.
        on_error: as of `SquareImages`; of a mask that cannot be read, always an error.
        masks: the file of each image's mask, by key.
        channels: as of `SquareImages`.

    Raises:
        ValueError: a file cannot be read.
    """

    def __init__(
        self,
        files: Files,
        resolution: int,
        fit_mode: FitMode,
        on_error: OnError,
        masks: dict[str, Path],
        channels: int = 3,
    ) -> None:
        self.masks = masks
        fields: dict[str, dict[str, Any]] = {}
        for key, path in masks.items():
            mask = read_mask(path, resolution, fit_mode)
            fields[key] = {"mask_digest": digest(mask.to(torch.uint8))}
        super().__init__(
            files,
            resolution,
            fit_mode,
            on_error,
            keep=False,
            fields=fields,
            channels=channels,
            put_off=True,
        )

    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        path = self.masks[item["key"]]
        return {**item, "mask": read_mask(path, self.resolution, self.fit_mode)}
