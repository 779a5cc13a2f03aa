"""Layers that begin as those of NCSN++ and DDGAN: what goes through them keeps its size.

PyTorch's own begin with a third of the variance and less, by which a latent or a discriminator's
logits have vanished after some layers. Biases begin at 0.
"""

from math import sqrt

from torch import nn


def dense(c_in: int, c_out: int) -> nn.Linear:
    """A linear layer whose weights have the variance 1 / c_out."""
    layer = nn.Linear(c_in, c_out)
    _begin(layer, c_out)
    return layer


def conv(
    c_in: int,
    c_out: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = True,
    scale: float = 1.0,
) -> nn.Conv2d:
    """A convolution whose weights have `scale` over the mean of its fans as their variance.

    Args:
        c_in, c_out: channels.
        size: of the square kernel.
        stride, padding: as of `nn.Conv2d`; without padding given the resolution stays.
        bias: whether it adds a bias.
        scale: 0 for a layer that a residual block begins without.
    """
    padding = size // 2 if padding is None else padding
    layer = nn.Conv2d(c_in, c_out, size, stride=stride, padding=padding, bias=bias)
    _begin(layer, (c_in + c_out) / 2 * size**2, max(scale, 1e-10))
    return layer


def _begin(layer: nn.Linear | nn.Conv2d, fan: float, scale: float = 1.0) -> None:
    bound = sqrt(3 * scale / fan)
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
