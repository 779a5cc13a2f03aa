"""NetworkFolder: a folder with one network and a card, by which it is known.

FOLDER/config.json  diffusion_pytorch_model.safetensors  CARD.json
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

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
from cyclelight.errors import BadValue, MissingFile
from cyclelight.files import read_json, whole_folder

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class NetworkFolder(Generic[N]):
    """What folders of one kind are, and how they are read and written.

    Args:
        what: what such a folder is called.
        card: its file beside the network's, such as `classifier.json`.
        product: what a fit calls it that makes one.
        kind: the class of the network.
    """

    what: str
    card: str
    product: str
    kind: type[N]

    @property
    def mark(self) -> tuple[str, str]:
        """What it is called, and the file by which it is known."""
        return self.what, self.card

    def check(self, path: str | Path, argument: str) -> Path:
        """The folder, if it is one of these; looks at names only.

        Raises:
            FileNotFoundError, ValueError: it is none; the message begins with `argument`.
        """
        path = Path(path)
        if not path.exists():
            raise MissingFile(argument, f"{argument}: {path} does not exist; give {self.what}")
        for name in ("config.json", self.card):
            if not (path / name).is_file():
                nested = path / self.product
                hint = f"; did you mean {nested}?" if (nested / self.card).is_file() else ""
                told = f"{argument}: {path} is not {self.what}: it has no {name}{hint}"
                raise BadValue(argument, told)
        return path

    def read(self, path: str | Path, argument: str) -> tuple[N, dict[str, Any]]:
        """(the network without weights, the card); all but the weights' values is checked.

        Raises:
            FileNotFoundError, ValueError: as `check`, or the message says which part is wrong.
        """
        path = self.check(path, argument)
        config, card = (read_json(path / name, argument) for name in ("config.json", self.card))
        check_kind(config, {self.kind.__name__: self.kind}, path, argument)
        check_weights(path, argument)
        with judged(argument, path / "config.json"):
            network: N = build(config, self.kind)
            check_size(network, held(path))
        return network, card

    def load(self, path: str | Path, argument: str, network: N, device: str | torch.device) -> N:
        """The network of `read` with its weights, frozen, in evaluation mode and float32.

        On `meta` no weights are read.
        """
        if torch.device(device).type != "meta":
            network = load_model(self.kind, Path(path), argument)
        return nn.Module.to(network.requires_grad_(False).eval(), device=device)

    def write(
        self,
        folder: str | Path,
        network: Any,
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write a folder; it appears whole or not at all, in the place of an older one.

        Args:
            folder: where to write.
            network: it is not changed.
            card: what the card says.
            weights: those of the network, where it holds only a part of them.

        Raises:
            ValueError: `folder` exists and is something else.
        """
        folder, kind = Path(folder), self.kind
        # What diffusers notes of its own, such as the path that a network came from, is left out.
        config = {name: value for name, value in network.config.items() if name[0] != "_"}
        copy: Any = kind.from_config(config)  # type: ignore[attr-defined]
        copy.load_state_dict(network.state_dict() if weights is None else weights)
        with whole_folder(folder, *self.mark) as made:
            copy.save_pretrained(made, safe_serialization=True)
            (made / self.card).write_text(json.dumps(dict(card), indent=2) + "\n")
        return folder

    def fingerprint(self, path: Path) -> str:
        """The SHA-256 of weights and settings, in hexadecimal; the card may change."""
        weights = path.glob("diffusion_pytorch_model*")
        return file_digest([*weights, path / "config.json"], path)
