"""Between two images: the codes on the way from one to the other."""

from dataclasses import replace

import torch
from torch import Tensor

from cyclelight.chains.latent_code import LatentCode
from cyclelight.errors import BadValue, whole


def interpolate(code: LatentCode, i: int, j: int, n: int) -> LatentCode:
    """The code of n images on the way from image i of a code to image j, both included.

    Each noise turns spherically, so that it stays as long as a Gaussian one is; the last residual,
    which is none, moves linearly, and so do all residuals of a code with eta 0.

    Args:
        code: what `encode` returned for at least one image.
        i, j: positions in the code's batch; negative ones count from its end.
        n: how many images, at least 2.

    Returns:
        A code of n images, which `decode` turns into a batch (n, C, H, W).

    Raises:
        ValueError: there is no such position, or n is below 2.
    """
    count = len(code.x_T)
    i, j, n = whole("i", i), whole("j", j), whole("n", n)
    for name, position in (("i", i), ("j", j)):
        if not -count <= position < count:
            raise BadValue(name, f"{name} must be in {-count}..{count - 1}, got {position}")
    if n < 2:
        raise BadValue("n", f"n must be at least 2, got {n}")
    share = torch.linspace(0, 1, n, dtype=torch.float64)
    between = linear if code.eta == 0 else spherical
    noises = [between(noise[i], noise[j], share) for noise in code.noises]
    last = code.last_residual
    return replace(
        code,
        x_T=spherical(code.x_T[i], code.x_T[j], share),
        noises=torch.stack(noises) if noises else code.noises[:, :1].repeat(1, n, 1, 1, 1),
        last_residual=None if last is None else linear(last[i], last[j], share),
    )


def linear(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """(1 - share) a + share b for each of the shares (n,): (n, *a.shape)."""
    share = share.to(a).view(-1, *[1] * a.ndim)
    return (1 - share) * a + share * b


def spherical(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """The great circle from a to b at each of the shares (n,): (n, *a.shape) (Shoemake 1985).

    sin((1 - share) w) / sin(w) a + sin(share w) / sin(w) b, with w the angle between a and b;
    straight where they point the same way or the opposite one.
    """
    cosine = torch.dot(a.flatten().double(), b.flatten().double())
    cosine = cosine / (a.double().norm() * b.double().norm()).clamp(min=1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1)).cpu()
    if angle.sin() < 1e-4:
        return linear(a, b, share)
    weights = torch.stack([((1 - share) * angle).sin(), (share * angle).sin()]) / angle.sin()
    from_a, from_b = (w.to(a).view(-1, *[1] * a.ndim) for w in weights)
    return from_a * a + from_b * b
