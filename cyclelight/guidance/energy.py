"""Energy: how far images are from what is wanted; low is good.

An energy is a differentiable function of clean images alone, so that any network can be one,
however it was trained (Wu and De la Torre 2023, sec. 3.5). They are summed with their weights.
"""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.pixels import fit_square, to_float
from cyclelight.errors import BadValue, MissingFile, at_least, first_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


class Energy(nn.Module, ABC):
    """A differentiable function of images; its constructor's arguments are its settings.

    They are the options of the command line: `energies` in a configuration file is a list of
    classes with their settings.

    Args:
        weight: by which it is multiplied in the sum.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        at_least(0, weight=weight)
        self.weight = weight

    @property
    def name(self) -> str:
        """In tables and files."""
        return type(self).__name__.removesuffix("Energy").lower()

    @abstractmethod
    def forward(self, images: Tensor, noise: Noise, step: int) -> Tensor:
        """The energy of each image, (B,), unweighted.

        Args:
            images: (B, 3, R, R), near [-1, 1], not clamped.
            noise: of what is random in it, if anything is, together with the step.
            step: number of the step.
        """

    def load(self, resolution: int) -> None:
        """Load what it needs, for images of that side; nothing by default.

        Raises:
            ValueError: it cannot be read.
        """

    def made_by(self) -> Mapping[str, str]:
        """The SHA-256 of the files that take part, by the setting that names them."""
        return {}

    def train(self, mode: bool = True) -> "Energy":
        """Stay in evaluation mode, whatever a trainer asks of its modules."""
        return super().train(False)


def total(energies: Sequence[Energy], values: Tensor) -> Tensor:
    """The weighted sum, (B,), of unweighted values (K, B)."""
    weights = torch.tensor([energy.weight for energy in energies]).to(values)
    return (weights[:, None] * values).sum(dim=0)


def import_named(path: str, argument: str) -> Any:
    """What `package.module:name` names.

    Raises:
        ValueError: there is no such thing; the message begins with `argument`.
    """
    module, _, name = path.rpartition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        told = f"{argument}: {path} cannot be found, as package.module:name: {first_line(error)}"
        raise BadValue(argument, told) from error


def check_image(path: str) -> None:
    """Raises FileNotFoundError unless there is such a file."""
    if not Path(path).is_file():
        raise MissingFile("image", f"image: there is no file {path}")


def read_image_file(path: str, resolution: int) -> Tensor:
    """An image file as (1, 3, R, R) in [-1, 1]."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            image = fit_square(opened.convert("RGB"), resolution)
    except OSError as error:
        raise BadValue("image", f"image: {path} cannot be read: {first_line(error)}") from error
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return to_float(pixels.view(resolution, resolution, 3))[None]


def file_digest(path: str | Path, argument: str) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        FileNotFoundError: it cannot be read; the message begins with `argument`.
    """
    try:
        with Path(path).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise MissingFile(argument, f"{argument}: {path} cannot be read") from error
