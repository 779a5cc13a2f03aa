"""Energies of what a network says that was trained to classify."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.diffusion.noise import Noise
from cyclelight.errors import BadValue
from cyclelight.guidance.energy import (
    Energy,
    check_image,
    file_digest,
    import_named,
    read_image_file,
)
from cyclelight.metrics.features import EfficientNetLite0, feature_network

IMAGENET = 1000
"""Classes of the networks that are known by name."""


class Classified(Energy):
    """An energy of what a network trained on ImageNet says."""

    def __init__(self, network: str, weights: str | None, weight: float) -> None:
        super().__init__(weight)
        self.network, self.weights = network, weights
        self.see: Any = None

    def load(self, resolution: int) -> None:
        self.see = load_classifier(self.network, self.weights)

    def made_by(self) -> Mapping[str, str]:
        return {} if self.weights is None else {"weights": file_digest(self.weights, "weights")}


class ClassEnergy(Classified):
    """-log p of a class, or of several together: how far a classifier is from naming one of them.

    Args:
        classes: numbers of the classes, such as ImageNet's 281 for a tabby cat.
        network: efficientnet-lite0, -lite1 or -lite2, or `package.module:name` of a classifier of
            torchvision's kind or of a function that makes one: it takes images (B, 3, 224, 224)
            that are normalised as ImageNet's, and gives logits.
        weights: file of the network's weights, if it lies in no usual place.
        weight: by which it is multiplied in the sum; the published programs have 5.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        classes: list[int],
        network: str = "efficientnet-lite0",
        weights: str | None = None,
        weight: float = 5.0,
    ) -> None:
        super().__init__(network, weights, weight)
        if not classes or min(classes) < 0:
            raise BadValue("classes", f"classes must be one or more numbers from 0, got {classes}")
        if ":" not in network:
            self._check(classes, IMAGENET)
        self.classes = list(classes)

    def forward(self, images: Tensor, noise: Noise, step: int) -> Tensor:
        _, logits = self.see(images)
        self._check(self.classes, logits.shape[1])
        log_p = logits.float().log_softmax(dim=1)
        return -log_p[:, self.classes].logsumexp(dim=1)

    def _check(self, classes: list[int], count: int) -> None:
        if max(classes) >= count:
            told = f"classes must be below {count} for {self.network}, got {classes}"
            raise BadValue("classes", told)


class FeatureEnergy(Classified):
    """1 - the cosine of an image's features with those of a given one: its identity.

    Args:
        image: file of the image that is wanted.
        network: as in `ClassEnergy`; of one of your own, what it gives are the features.
        weights: file of the network's weights, if it lies in no usual place.
        weight: by which it is multiplied in the sum.

    Raises:
        FileNotFoundError: there is no such image.
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        image: str,
        network: str = "efficientnet-lite0",
        weights: str | None = None,
        weight: float = 100.0,
    ) -> None:
        super().__init__(network, weights, weight)
        check_image(image)
        self.image = image

    def load(self, resolution: int) -> None:
        super().load(resolution)
        with torch.no_grad():
            rows, _ = self.see(read_image_file(self.image, resolution))
        self.register_buffer("wanted", rows, persistent=False)

    def forward(self, images: Tensor, noise: Noise, step: int) -> Tensor:
        rows, _ = self.see(images)
        wanted: Any = self.wanted
        return 1 - F.cosine_similarity(rows, wanted.to(rows), dim=1)

    def made_by(self) -> Mapping[str, str]:
        return {**super().made_by(), "image": file_digest(self.image, "image")}


class _Normalised(nn.Module):
    """A classifier of torchvision's kind: (its logits, twice) of images in [-1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
        logits = self.network(((x + 1) / 2 - self.mean) / self.std)  # type: ignore[operator]
        return logits, logits


class _Seeing(nn.Module):
    """A feature network of ours as a differentiable function: (rows, logits)."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rows, logits = self.network.see(images)
        assert logits is not None
        return rows, logits


def load_classifier(network: str, weights: str | None = None) -> nn.Module:
    """What gives (features, logits) of images (B, 3, R, R) in [-1, 1], differentiably.

    Args:
        network, weights: as in `ClassEnergy`.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: there is no such network, or it does not classify.
    """
    if ":" not in network:
        found = feature_network(network, weights)
        if not isinstance(found, EfficientNetLite0):
            raise BadValue(
                "network",
                f"network must be efficientnet-lite0, -lite1, -lite2 or package.module:name, "
                f"got {network!r}",
            )
        return _Seeing(found)
    made = import_named(network, "network")
    if not isinstance(made, nn.Module):
        made = made() if weights is None else made(weights=weights)
    if not isinstance(made, nn.Module):
        raise BadValue("network", f"network: {network} must be, or make, a torch.nn.Module")
    return _Normalised(made)
