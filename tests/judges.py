"""Functions and networks of a user's own, named by `module:name` in tests of guidance."""

import torch
from torch import Tensor, nn


def redness(images: Tensor) -> Tensor:
    """How far images are from red, by the mean of their channels."""
    red, green, blue = images.mean(dim=(2, 3)).unbind(dim=1)
    return green + blue - red


def wrong_shape(images: Tensor) -> Tensor:
    """A scalar, in place of one for each image."""
    return images.sum()


class Colour(nn.Module):
    """A classifier of torchvision's kind: red, green or blue."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 4 * x.mean(dim=(2, 3))
        return logits


class Rows(nn.Module):
    """A feature network of the metrics' kind: uint8 (B, H, W, 3) => mean colours (B, 3)."""

    dim = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 2)) + torch.tensor([1.0, 2.0, 3.0])
