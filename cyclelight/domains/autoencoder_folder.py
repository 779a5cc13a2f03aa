"""Autoencoder folders: a diffusers AutoencoderKL or VQModel with a card, read and written.

    FOLDER/config.json  diffusion_pytorch_model.safetensors  autoencoder.json

Such a folder loads, whoever made it, if its settings scale latents by one factor and shift them by
one, and images have 1 or 3 channels; `autoencoder.json` only adds the card. A domain folder of a
latent space holds one as `vae/`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, VQModel

from cyclelight.domains.autoencoder import Autoencoder
from cyclelight.domains.model_files import (
    build,
    check_kind,
    check_size,
    check_weights,
    judged,
    load_model,
)
from cyclelight.errors import BadValue, MissingFile
from cyclelight.files import read_json, whole_folder

MARK = ("an autoencoder folder", "config.json")
"""What an autoencoder folder is called, and the file by which it is known."""
KINDS = {kind.__name__: kind for kind in (AutoencoderKL, VQModel)}


def load_autoencoder(path: str | Path, what: str = "autoencoder") -> Autoencoder:
    """An autoencoder from a folder, in float32 on the CPU.

    `what` is the argument that errors are about; their messages begin with it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not an autoencoder; the message says which part is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(what, f"{what}: {path} does not exist; give an autoencoder folder")
    if not (path / "config.json").is_file():
        nested = [path / n for n in ("autoencoder", "vae") if (path / n / "config.json").is_file()]
        hint = f"; did you mean {nested[0]}?" if nested else ""
        raise BadValue(what, f"{what}: {path} is not an autoencoder folder: no config.json{hint}")
    kind = KINDS[check_kind(read_json(path / "config.json", what), KINDS, path, what)]
    check_weights(path, what)
    card_file = path / "autoencoder.json"
    card = read_json(card_file, what) if card_file.is_file() else {}
    network = load_model(kind, path, what)
    with judged(what, path):
        return Autoencoder(network, card)


def save_autoencoder(folder: str | Path, autoencoder: Autoencoder) -> Path:
    """Write an autoencoder folder; it appears whole or not at all, in the place of an older one.

    Raises:
        ValueError: `folder` exists and is something else.
    """
    folder = Path(folder)
    copy = rebuild(autoencoder_state(autoencoder.network, autoencoder.card)).network
    with whole_folder(folder, *MARK) as made:
        copy.save_pretrained(made, safe_serialization=True)
        (made / "autoencoder.json").write_text(json.dumps(dict(autoencoder.card), indent=2) + "\n")
    return folder


def autoencoder_state(network: Any, card: Mapping[str, Any]) -> dict[str, Any]:
    """All of an autoencoder as plain values and tensors, for `rebuild`; part of checkpoints."""
    # What diffusers notes of its own, such as the path that a network came from, is left out.
    config = {k: v for k, v in json.loads(network.to_json_string()).items() if k[0] != "_"}
    return {
        "class": type(network).__name__,
        "config": config,
        "state_dict": {name: value.cpu() for name, value in network.state_dict().items()},
        "card": dict(card),
    }


def rebuild(state: Mapping[str, Any]) -> Autoencoder:
    """The autoencoder of an `autoencoder_state`.

    Raises:
        ValueError: its settings are wrong, or ask for more than it holds.
    """
    held = sum(value.numel() for value in state["state_dict"].values())
    check_size(build(state["config"], KINDS[state["class"]]), held)
    network: Any = KINDS[state["class"]].from_config(state["config"])
    network.load_state_dict(state["state_dict"])
    return Autoencoder(network, state["card"])
