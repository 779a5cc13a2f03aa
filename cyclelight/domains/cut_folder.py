"""Translator: CUT's generator, which translates images in one call, and the folder it is kept in.

    FOLDER/config.json  diffusion_pytorch_model.safetensors  cut.json

`cut.json` is the card: what it makes, of which images it was trained, for how long.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.diffusion.pixels import check_images
from cyclelight.domains.model_files import (
    build,
    check_kind,
    check_size,
    check_weights,
    file_digest,
    held,
    judged,
    load_model,
)
from cyclelight.errors import BadValue, MissingFile, printable
from cyclelight.files import read_json, whole_folder
from cyclelight.networks.cut import CUTGenerator

MARK = ("a folder of a CUT generator", "cut.json")
"""What such a folder is called, and the file by which it is known."""


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
        check_images("images", images, self.channels, self.resolution)

    def to_images(self, states: Tensor) -> Tensor:
        """The images (B, C, R, R) as they are."""
        return states


def check_translator_path(path: str | Path, argument: str = "generator") -> Path:
    """The folder, if it is a CUT generator's; looks at names only.

    Raises:
        FileNotFoundError, ValueError: it is none; the message begins with `argument`.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(argument, f"{argument}: {path} does not exist; give {MARK[0]}")
    for name in ("config.json", MARK[1]):
        if not (path / name).is_file():
            nested = path / "generator"
            hint = f"; did you mean {nested}?" if (nested / MARK[1]).is_file() else ""
            raise BadValue(argument, f"{argument}: {path} is not {MARK[0]}: it has no {name}{hint}")
    return path


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
    path = check_translator_path(path, argument)
    config, card = (read_json(path / name, argument) for name in ("config.json", MARK[1]))
    check_kind(config, {CUTGenerator.__name__: CUTGenerator}, path, argument)
    check_weights(path, argument)
    with judged(argument, path / "config.json"):
        network: CUTGenerator = build(config, CUTGenerator)
        check_size(network, held(path))
    if torch.device(device).type != "meta":
        network = load_model(CUTGenerator, path, argument)
    frozen = nn.Module.to(network.requires_grad_(False).eval(), device=device)
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
    folder, network = Path(folder), translator.network
    # What diffusers notes of its own, such as the path that a network came from, is left out.
    copy = CUTGenerator.from_config({k: v for k, v in network.config.items() if k[0] != "_"})
    copy.load_state_dict(network.state_dict() if weights is None else weights)
    card = {**translator.card, "name": translator.name}
    with whole_folder(folder, *MARK) as made:
        copy.save_pretrained(made, safe_serialization=True)
        (made / MARK[1]).write_text(json.dumps(card, indent=2) + "\n")
    return folder


def translator_fingerprint(path: Path) -> str:
    """The SHA-256 of a translator's weights and settings, in hexadecimal; its card may change."""
    weights = path.glob("diffusion_pytorch_model*")
    return file_digest([*weights, path / "config.json"], path)
