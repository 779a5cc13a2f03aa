"""Images for the Python functions: files, folders and PIL images as one tensor."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cyclelight.diffusion.pixels import FitMode, fit_square, to_float
from cyclelight.domains.domain import Domain, check_domain
from cyclelight.errors import BadValue, kind_of
from datamodules.listing import find_images
from datamodules.reading import prepare, read_image

Source = str | PathLike[str] | Image.Image
"""A file, a folder, a pattern such as `cats/*.png`, or an image of Pillow."""


def load_images(
    images: Source | Sequence[Source], domain: Domain, *, fit_mode: FitMode = "crop"
) -> Tensor:
    """Images as the functions of this package take them: (B, channels, R, R), float32, [-1, 1].

    Files are read as `predict` reads them: upright, in sRGB, transparency on white.

    Args:
        images: a file, a folder (searched recursively), a pattern, an image of Pillow, or several
            of them; those of a folder come in the order of their paths.
        domain: whose size R and channels they get.
        fit_mode: `crop` to the largest centred square, or `letterbox` on white.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is no image, a folder has none, or something else was given.
    """
    check_domain("domain", domain)
    given = [images] if isinstance(images, str | PathLike | Image.Image) else images
    if not isinstance(given, Sequence):
        raise BadValue("images", f"images must be paths or PIL images, got {kind_of(images)}")
    read = [image for source in given for image in _read(source)]
    if not read:
        raise BadValue("images", "images must be at least one path or PIL image, got none")
    side, channels = domain.resolution, domain.channels
    squares = [fit_square(image, side, fit_mode, channels) for image in read]
    pixels = np.stack([np.asarray(square) for square in squares])
    return to_float(torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)))


def _read(source: object) -> list[Image.Image]:
    if isinstance(source, Image.Image):
        return [prepare(source)]
    if not isinstance(source, str | PathLike):
        raise BadValue("images", f"images must be paths or PIL images, got {kind_of(source)}")
    return [read_image(path) for _, path in find_images(str(Path(source)))]
