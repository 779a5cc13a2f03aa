"""Translator: a network that translates images in one call, and the folder it is kept in.

    FOLDER/config.json  diffusion_pytorch_model.safetensors  cut.json or student.json

The last is the card: what it makes, of which images it was trained, for how long. There are CUT's
generators, and students of this project's own translations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclelight.diffusion.pixels import check_images
from cyclelight.domains.network_folder import NetworkFolder
from cyclelight.errors import BadValue, printable
from cyclelight.networks.cut import CUTGenerator
from cyclelight.networks.one_step import OneStepUNet

CUT = NetworkFolder("a folder of a CUT generator", "cut.json", "generator", CUTGenerator)
STUDENT = NetworkFolder("a folder of a student", "student.json", "generator", OneStepUNet)


@dataclass(frozen=True)
class Translator:
    """A network that makes images of one domain of those of another, in one call.

    Args:
        network: called with images (B, C, R, R) in [-1, 1]; frozen by `load_translator`.
        names: what to call what it makes, such as dog; of each way that it goes.
        card: where it comes from: training data and licence, steps, versions.
        direction: which way it goes here, the number of its name.
    """

    network: CUTGenerator | OneStepUNet
    names: tuple[str, ...] = ("target",)
    card: Mapping[str, Any] = field(default_factory=dict)
    direction: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, R, R) in [-1, 1] => their translations, near [-1, 1]."""
        if isinstance(self.network, OneStepUNet):
            return self.network(images, self.direction)
        return self.network(images)

    @property
    def name(self) -> str:
        """What to call what it makes here."""
        return self.names[self.direction]

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


def kind_at(path: str | Path) -> NetworkFolder[Any]:
    """Which kind of folder it is; of neither, a student's, by which it is refused."""
    return CUT if (Path(path) / CUT.card).is_file() else STUDENT


def load_translator(
    path: str | Path,
    argument: str = "generator",
    *,
    direction: int = 0,
    device: str | torch.device = "cpu",
) -> Translator:
    """A translator from its folder, frozen, in evaluation mode and float32.

    Args:
        path: the folder.
        argument: what errors are about; their messages begin with it.
        direction: which of its ways it is to go.
        device: where the network goes; on `meta` no weights are read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a translator's, the message says which part is wrong; or there is no
            such direction.
    """
    kind = kind_at(path)
    network, card = kind.read(path, argument)
    count = network.config.directions if isinstance(network, OneStepUNet) else 1
    told = card.get("names")
    if not isinstance(told, list) or len(told) != count:
        told = ["target"] * count
    # Anyone's card may name it, and every table and title does.
    names = tuple(printable(name, 80) for name in told)
    if not 0 <= direction < count:
        ways = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise BadValue("direction", f"direction must be one of {path}: {ways}; got {direction}")
    return Translator(kind.load(path, argument, network, device), names, card, direction)


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
    card = {**translator.card, "names": list(translator.names)}
    kind: NetworkFolder[Any] = CUT if isinstance(translator.network, CUTGenerator) else STUDENT
    return kind.write(folder, translator.network, card, weights)
