"""Layers that begin as those of NCSN++ and DDGAN: what goes through them keeps its size.

PyTorch's own begin with a third of the variance and less, by which a latent or a discriminator's
logits have vanished after some layers. Biases begin at 0. The variance of the weights is one over a
fan: of NCSN++'s layers the mean of both; of those that DDGAN adds (the discriminator, the latent's
embedding, and the norms that it scales) the outgoing one, as its program has it.
"""

from math import sqrt
from typing import Literal

from torch import nn

Fan = Literal["mean", "out"]


def dense(c_in: int, c_out: int, fan: Fan = "mean") -> nn.Linear:
    """A linear layer."""
    layer = nn.Linear(c_in, c_out)
    _begin(layer, c_in, c_out, fan)
    return layer


def conv(
    c_in: int,
    c_out: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = True,
    fan: Fan = "mean",
    scale: float = 1.0,
) -> nn.Conv2d:
    """A convolution.

    Args:
        c_in, c_out: channels.
        size: of the square kernel.
        stride, padding: as of `nn.Conv2d`; without padding given the resolution stays.
        bias: whether it adds a bias.
        fan: see above.
        scale: multiplies the variance; 0 for a layer that a residual block begins without.
    """
    padding = size // 2 if padding is None else padding
    layer = nn.Conv2d(c_in, c_out, size, stride=stride, padding=padding, bias=bias)
    _begin(layer, c_in * size**2, c_out * size**2, fan, max(scale, 1e-10))
    return layer


def _begin(
    layer: nn.Linear | nn.Conv2d, fan_in: int, fan_out: int, fan: Fan, scale: float = 1.0
) -> None:
    bound = sqrt(3 * scale / (fan_out if fan == "out" else (fan_in + fan_out) / 2))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
