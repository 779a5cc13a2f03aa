"""Generator folders: a network that makes images without being a domain, read and written.

    FOLDER/generator.json  network/config.json  network/diffusion_pytorch_model.safetensors

`generator.json` is the card: where the weights come from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cyclelight.domains.model_files import check_kind, check_weights, load_model
from cyclelight.errors import BadValue, MissingFile
from cyclelight.files import read_json, whole_folder
from cyclelight.networks.ddgan import DDGANGenerator
from cyclelight.networks.diffae import DiffusionAutoencoder

MARK = ("a generator folder", "generator.json")
"""What a generator folder is called, and the file by which it is known."""

GeneratorNetwork: TypeAlias = DDGANGenerator | DiffusionAutoencoder
KINDS: dict[str, type[GeneratorNetwork]] = {
    kind.__name__: kind for kind in (DDGANGenerator, DiffusionAutoencoder)
}


def save_generator(
    folder: str | Path,
    network: GeneratorNetwork,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a generator folder; it appears whole or not at all, in the place of an older one.

    Args:
        folder: where to write.
        network: it is not changed.
        card: contents of `generator.json`.
        dtype: dtype of the weights on disk.
        weights: those of `network`, where it holds only a part of them.

    Raises:
        ValueError: `folder` exists and is something else.
    """
    folder = Path(folder)
    copy = type(network).from_config({k: v for k, v in network.config.items() if k[0] != "_"})
    copy.load_state_dict(network.state_dict() if weights is None else weights)
    nn.Module.to(copy, dtype)
    with whole_folder(folder, *MARK) as made:
        copy.save_pretrained(made / "network", safe_serialization=True)
        (made / MARK[1]).write_text(json.dumps(dict(card), indent=2) + "\n")
    return folder


def load_generator(
    path: str | Path, what: str = "generator"
) -> tuple[GeneratorNetwork, dict[str, Any]]:
    """(the network, in float32, evaluation mode and without gradients; its card).

    `what` is the argument that errors are about; their messages begin with it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a generator folder; the message says which part is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(what, f"{what}: {path} does not exist; give a generator folder")
    if not (path / MARK[1]).is_file():
        inner = path / "generator"
        hint = f"; did you mean {inner}?" if (inner / MARK[1]).is_file() else ""
        raise BadValue(what, f"{what}: {path} is not {MARK[0]}: it has no {MARK[1]}{hint}")
    if not (path / "network" / "config.json").is_file():
        raise BadValue(what, f"{what}: {path} is not whole: it has no network/config.json")
    config = read_json(path / "network" / "config.json", what)
    kind = KINDS[check_kind(config, KINDS, path, what)]
    check_weights(path / "network", what)
    network: GeneratorNetwork = load_model(kind, path / "network", what)
    nn.Module.to(network.requires_grad_(False).eval(), torch.float32)
    return network, read_json(path / MARK[1], what)
