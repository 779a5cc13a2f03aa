"""Low-pass filters of images: reduced and enlarged again, as ILVR and EGSDE compare them.

Neither equals torch's or Pillow's resizing: at the border, those cut the kernel off, these mirror.
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from cyclelight.errors import BadValue, at_least

Kernel = Literal["linear", "cubic"]
"""`cubic` is that of Keys with a = -0.5 (ILVR), `linear` the triangle (EGSDE)."""

RADIUS: dict[Kernel, int] = {"linear": 1, "cubic": 2}


def low_pass(x: Tensor, factor: int, kernel: Kernel) -> Tensor:
    """phi_N of images (B, C, H, W): reduced by `factor` N, enlarged by it; same shape and dtype.

    Choi et al. 2021, sec. 3.2. Linear in x, but no projection: phi(phi(x)) is another image.

    Raises:
        ValueError: the factor does not divide height and width.
    """
    check_factor("factor", factor, *x.shape[-2:])
    rows, columns = (_round_trip(side, factor, kernel).to(x) for side in x.shape[-2:])
    # Autocast would round what the sums over all pixels lead a chain by.
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x @ columns.T


def check_factor(argument: str, factor: int, *sides: int) -> None:
    """Raises ValueError, naming the argument, unless it divides the sides of the states."""
    at_least(1, **{argument: factor})
    for side in sides:
        if side % factor:
            raise BadValue(argument, f"{argument} {factor} does not divide {side}, their side")


@cache
def _round_trip(side: int, factor: int, kernel: Kernel) -> Tensor:
    reduced = side // factor
    enlarge = resize_matrix(reduced, factor, kernel, enlarge=True)
    return enlarge @ resize_matrix(side, factor, kernel, enlarge=False)


def resize_matrix(size: int, factor: int, kernel: Kernel, *, enlarge: bool) -> Tensor:
    """The matrix (size * N or size / N, size), float64, that resizes one axis by N = `factor`.

    Output o looks at p = (o + 1/2) / scale - 1/2 of the input, whose sample j has the weight
    k((p - j) / stretch). To reduce, the kernel is stretched by N. Weights sum to 1 before what lies
    beyond the border is mirrored, the edge sample repeated.
    """
    scale, stretch = (factor, 1) if enlarge else (1 / factor, factor)
    count = size * factor if enlarge else -(-size // factor)
    p = (torch.arange(count, dtype=torch.float64) + 0.5) / scale - 0.5
    radius = RADIUS[kernel] * stretch
    j = (p - radius).floor()[:, None] + torch.arange(2 * radius + 2)
    weights = _KERNELS[kernel]((p[:, None] - j) / stretch)
    weights = weights / weights.sum(dim=1, keepdim=True)
    period = j.long().remainder(2 * size)
    mirrored = torch.where(period < size, period, 2 * size - 1 - period)
    return torch.zeros(count, size, dtype=torch.float64).scatter_add(1, mirrored, weights)


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, inner, torch.where(x <= 2, outer, 0))


_KERNELS = {"linear": _linear, "cubic": _cubic}
