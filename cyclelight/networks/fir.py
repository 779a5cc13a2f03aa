"""Half and twice the resolution through a small smoothing filter (Zhang 2019; StyleGAN2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.networks.scaled import conv


def _kernel(x: Tensor, gain: float = 1.0) -> Tensor:
    """One filter for each channel: (C, 1, 4, 4), the product of (1, 3, 3, 1) / 8, times `gain`."""
    # Computed where it is needed: to send it to a GPU, each step would wait for it.
    taps = 4 - 2 * (torch.arange(4, dtype=x.dtype, device=x.device) - 1.5).abs()
    return (torch.outer(taps, taps) * (gain / 64)).expand(x.shape[1], 1, -1, -1)


def halved(x: Tensor) -> Tensor:
    """(B, C, H, W) => (B, C, H / 2, W / 2), H and W even."""
    return F.conv2d(x, _kernel(x), stride=2, padding=1, groups=x.shape[1])


def stretched(x: Tensor) -> Tensor:
    """(B, C, H, W) => (B, C, 2 H, 2 W)."""
    return F.conv_transpose2d(x, _kernel(x, 4.0), stride=2, padding=1, groups=x.shape[1])


class FIRConv(nn.Module):
    """The filter, then a 3 x 3 convolution of stride 2: half the resolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.Conv2d_0 = conv(c_in, c_out, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.conv2d(x, _kernel(x), padding=2, groups=x.shape[1])
        y: Tensor = self.Conv2d_0(smooth)
        return y
