"""DomainClassifier: what tells the domains of noisy images apart, and the folder it is kept in.

FOLDER/config.json  diffusion_pytorch_model.safetensors  classifier.json
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.model_files import judged
from cyclelight.domains.network_folder import NetworkFolder
from cyclelight.networks.classifier import ClassifierUNet

FOLDER = NetworkFolder("a classifier folder", "classifier.json", "classifier", ClassifierUNet)
MARK = FOLDER.mark


@dataclass(frozen=True)
class DomainClassifier:
    """A classifier of noisy images of several domains, at every timestep of a schedule.

    Args:
        network: called as network(x_t, timesteps) for logits; frozen by `load_classifier`.
        schedule: the schedule it was trained under.
        classes: the names of the domains, in the order of the logits.
        card: where it comes from: training data and licence, steps, versions.
    """

    network: ClassifierUNet
    schedule: NoiseSchedule
    classes: tuple[str, ...]
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        """Height and width of its images in pixels."""
        return int(self.network.config.sample_size)

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return int(self.network.config.in_channels)

    def logits(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Logits (B, classes) of noisy images (B, C, R, R) at t, one timestep or (B,)."""
        logits: Tensor = self.network(x_t.to(self._dtype), t)
        return logits.to(x_t.dtype)

    def features(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The last feature map (B, C', H', W') of noisy images (B, C, H, W) of any size at t."""
        return self.network.features(x_t.to(self._dtype), t).to(x_t.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


def check_classifier_path(path: str | Path, argument: str = "classifier") -> Path:
    """The folder, if it is a classifier's; looks at names only.

    Raises:
        FileNotFoundError, ValueError: it is none; the message begins with `argument`.
    """
    return FOLDER.check(path, argument)


def load_classifier(
    path: str | Path,
    argument: str = "classifier",
    *,
    device: str | torch.device = "cpu",
) -> DomainClassifier:
    """A classifier from its folder, frozen, in evaluation mode and float32.

    Args:
        path: the folder.
        argument: what errors are about; their messages begin with it.
        device: where the network goes; on `meta` no weights are read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a classifier; the message says which part is wrong.
    """
    network, card = FOLDER.read(path, argument)
    with judged(argument, Path(path) / FOLDER.card):
        schedule = NoiseSchedule.from_diffusers(card["schedule"])
        classes = tuple(map(str, card["classes"]))
        if len(classes) != network.config.num_classes:
            raise ValueError(f"classes must be {network.config.num_classes}, got {len(classes)}")
    frozen = FOLDER.load(path, argument, network, device)
    return DomainClassifier(frozen, schedule, classes, card)


def save_classifier(
    folder: str | Path,
    classifier: DomainClassifier,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a classifier folder; it appears whole or not at all, in the place of an older one.

    Args:
        folder: where to write.
        classifier: it is not changed.
        weights: those of the network, where it holds only a part of them.

    Raises:
        ValueError: `folder` exists and is something else.
    """
    card = {
        **classifier.card,
        "classes": list(classifier.classes),
        "schedule": classifier.schedule.to_diffusers(),
    }
    return FOLDER.write(folder, classifier.network, card, weights)


def classifier_fingerprint(path: Path) -> str:
    """The SHA-256 of a classifier's weights and settings, in hexadecimal; its card may change."""
    return FOLDER.fingerprint(path)
