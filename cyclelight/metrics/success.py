"""Whether images are what was wanted, by a judge that did not guide them; their diversity."""

from collections.abc import Callable, Collection
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from cyclelight.errors import BadValue
from cyclelight.metrics.faithfulness import square_distances
from cyclelight.metrics.feature_network import FeatureNetwork

BATCH = 32
"""Images that a network sees at a time."""


def classified_as(network: FeatureNetwork, classes: Collection[int]) -> Callable[[Tensor], Tensor]:
    """Whether a network's first choice is one of the classes: uint8 (B, H, W, C) => (B,), bool.

    Raises:
        ValueError: the network does not classify, or has no such class.
    """
    count = _logits(network, torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape[1]
    if min(classes) < 0 or max(classes) >= count:
        told = f"judge_classes must be in 0..{count - 1} for {network.name}, got {sorted(classes)}"
        raise BadValue("judge_classes", told)

    def judge(images: Tensor) -> Tensor:
        logits = torch.cat([_logits(network, part) for part in torch.split(images, BATCH)])
        return torch.isin(logits.argmax(dim=1), torch.tensor(sorted(classes)))

    return judge


def _logits(network: FeatureNetwork, images: Tensor) -> Tensor:
    logits = network(images).logits
    if logits is None:
        raise BadValue("judge", f"judge: network {network.name} is no classifier")
    return logits


def nearest_to(network: FeatureNetwork, rows: Tensor, wanted: Tensor) -> Callable[[Tensor], Tensor]:
    """Whether the nearest of some real images, by the cosine of features, is one that is wanted.

    Args:
        network: gives the features.
        rows: what it says of the real images, (N, D).
        wanted: which of them are, (N,), bool.
    """
    rows = F.normalize(rows, dim=1)

    def judge(images: Tensor) -> Tensor:
        nearest = (F.normalize(features(network, images), dim=1) @ rows.T).argmax(dim=1)
        return wanted[nearest]

    return judge


def nearest_in_pixels(known: Tensor, wanted: Tensor) -> Callable[[Tensor], Tensor]:
    """Whether the nearest of some real images, by L2 on pixels, is one that is wanted.

    Args:
        known: the real images, uint8 (N, H, W, C).
        wanted: which of them are, (N,), bool.
    """

    def judge(images: Tensor) -> Tensor:
        return wanted[square_distances(images, known).argmin(dim=1)]

    return judge


def features(network: FeatureNetwork, images: Tensor) -> Tensor:
    """What the network says of uint8 images (B, H, W, C): (B, D)."""
    return torch.cat([network(part).rows for part in torch.split(images, BATCH)]).float()


def diversity(rows: Tensor) -> tuple[float, float | None]:
    """(mean of 1 - cosine over all pairs of rows (n, D), its standard error if n > 2); n > 1.

    The standard error is the jackknife's, over images, since pairs share images.
    """
    n = len(rows)
    rows = F.normalize(rows.double(), dim=1)
    distance = 1 - rows @ rows.T
    of_each = distance.sum(dim=1) - distance.diagonal()
    total = of_each.sum()
    mean = float(total / (n * (n - 1)))
    if n < 3:
        return mean, None
    without = (total - 2 * of_each) / ((n - 1) * (n - 2))
    return mean, sqrt(float((n - 1) / n * (without - without.mean()).square().sum()))
