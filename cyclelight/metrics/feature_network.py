"""FeatureNetwork: what judges images, as rows of numbers."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from cyclelight.diffusion.pixels import MODES, three_channels


class Features(NamedTuple):
    """What a network says about a batch.

    rows: (B, D), floating point.
    logits: (B, 1000) in ImageNet's order, of networks that classify; None of others.
    """

    rows: Tensor
    logits: Tensor | None


class FeatureNetwork(nn.Module, ABC):
    """uint8 (B, H, W, C), any size, C 3 or 1 => `Features`; of grey, of three equal channels.

    Frozen, always in evaluation mode, and in full precision even under autocast, so that the row
    of an image does not depend on its batch (but for rounding) or on the trainer's settings.
    """

    name: str
    resize: str
    """How images are brought to the network's size, in words."""
    dim: int
    """D, the length of a row."""

    def forward(self, images: Tensor) -> Features:
        """uint8 (B, H, W, C), on the network's device => `Features`.

        Raises:
            ValueError: not uint8 images, or a network of one's own does not give rows.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] not in MODES:
            raise ValueError(
                f"images must be uint8 of shape (B, H, W, 3) or (B, H, W, 1), "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.extract(three_channels(images))

    @abstractmethod
    def extract(self, images: Tensor) -> Features:
        """What `forward` gives, of checked images (B, H, W, 3)."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever a trainer asks of its modules."""
        return super().train(False)
