"""Translator: CUT's generator, which translates images in one call, and the folder it is kept in.

    FOLDER/config.json  diffusion_pytorch_model.safetensors  cut.json

`cut.json` is the card: what it makes, of which images it was trained, for how long.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclelight.diffusion.pixels import check_images
from cyclelight.domains.network_folder import NetworkFolder
from cyclelight.errors import printable
from cyclelight.networks.cut import CUTGenerator

FOLDER = NetworkFolder("a folder of a CUT generator", "cut.json", "generator", CUTGenerator)
MARK = FOLDER.mark


@dataclass(frozen=True)
class Translator:
    """A network that makes images of one domain of those of another, in one call.

    Args:
        network: called with images (B, C, R, R) in [-1, 1]; frozen by `load_translator`.
        name: what to call what it makes, such as dog.
        card: where it comes from: training data and licence, steps, versions.
    """

    network: CUTGenerator
    name: str = "target"
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        """Height and width of its images in pixels."""
        return int(self.network.config.sample_size)

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return int(self.network.config.in_channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, R, R) of its images."""
        return self.channels, self.resolution, self.resolution

    def to_states(self, images: Tensor) -> Tensor:
        """The images (B, C, R, R) as they are."""
        return images

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless they are images of this size; see `pixels.check_images`."""
        whose = f"the generator of {self.name!r}"
        check_images("images", images, self.channels, self.resolution, whose)

    def to_images(self, states: Tensor) -> Tensor:
        """The images (B, C, R, R) as they are."""
        return states


def check_translator_path(path: str | Path, argument: str = "generator") -> Path:
    """The folder, if it is a CUT generator's; looks at names only.

    Raises:
        FileNotFoundError, ValueError: it is none; the message begins with `argument`.
    """
    return FOLDER.check(path, argument)


def load_translator(
    path: str | Path, argument: str = "generator", *, device: str | torch.device = "cpu"
) -> Translator:
    """A translator from its folder, frozen, in evaluation mode and float32.

    Args:
        path: the folder.
        argument: what errors are about; their messages begin with it.
        device: where the network goes; on `meta` no weights are read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a CUT generator's; the message says which part is wrong.
    """
    network, card = FOLDER.read(path, argument)
    frozen = FOLDER.load(path, argument, network, device)
    # Anyone's card may name it, and every table and title does.
    return Translator(frozen, printable(card.get("name", "target"), 80), card)


def save_translator(
    folder: str | Path, translator: Translator, weights: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a translator's folder; it appears whole or not at all, in the place of an older one.

    Args:
        folder: where to write.
        translator: it is not changed.
        weights: those of the network, where it holds only a part of them.

    Raises:
        ValueError: `folder` exists and is something else.
    """
    card = {**translator.card, "name": translator.name}
    return FOLDER.write(folder, translator.network, card, weights)


def translator_fingerprint(path: Path) -> str:
    """The SHA-256 of a translator's weights and settings, in hexadecimal; its card may change."""
    return FOLDER.fingerprint(path)
