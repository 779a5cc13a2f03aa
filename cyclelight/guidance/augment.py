"""Differentiable augmentation (Zhao et al. 2020): a judge that sees many views is fooled less."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.special import ndtr

from cyclelight.diffusion.noise import Noise

SHIFT, STRETCH, CUTOUT = 0.125, 0.2, 0.5
"""At most: shift and change of size as shares of the side; the side of the hole."""
NUMBERS = 8
"""Random numbers that an augmentation takes."""


def augment(images: Tensor, copies: int, noise: Noise, step: int) -> Tensor:
    """Each image `copies` times, each time another: (B copies, C, R, R), image by image.

    Colour (brightness, saturation, contrast), translation, resize and cutout, in this order.

    Args:
        images: (B, C, R, R) in [-1, 1].
        copies: L.
        noise: called for ("augment", step).
        step: number of the step.
    """
    drawn = noise("augment", step, images.new_empty(len(images), copies, NUMBERS))
    u = ndtr(drawn).flatten(0, 1)  # From N(0, 1) to the unit interval.
    x = images.repeat_interleave(copies, dim=0)
    return _cut_out(_move(_recolour(x, u[:, :3]), u[:, 3:6]), u[:, 6:])


def _recolour(x: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = (u[:, i].view(-1, 1, 1, 1) for i in range(3))
    x = x + brightness - 0.5
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * 2 * saturation
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _move(x: Tensor, u: Tensor) -> Tensor:
    signed = 2 * u - 1
    affine = x.new_zeros(len(x), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 1 + STRETCH * signed[:, 2]
    affine[:, :, 2] = 2 * SHIFT * signed[:, :2]  # The grid goes from -1 to 1.
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _cut_out(x: Tensor, u: Tensor) -> Tensor:
    at = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    far_y, far_x = ((at - u[:, i : i + 1]).abs() > CUTOUT / 2 for i in range(2))
    return x * (far_y[:, None, :, None] | far_x[:, None, None, :])
