"""Deterministic inversion: from an image up to x_T with eta = 0 (Song et al. 2021, sec. 4.3)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cyclelight.chains.loop import last
from cyclelight.diffusion.denoiser import Denoiser
from cyclelight.diffusion.schedule import CLEAN, TimeGrid
from cyclelight.diffusion.steps import Step
from cyclelight.domains.domain import Domain


def inversion_chain(denoiser: Denoiser, x_0: Tensor, *, grid: TimeGrid) -> Iterator[Tensor]:
    """The states from the clean image up to the grid's start, each (B, C, H, W).

    The deterministic step run upwards, x_t = sqrt(abar_t) x_0_hat + sqrt(1 - abar_t) eps_hat, with
    eps_hat taken at the level that is left; the clean image has no timestep, so that the first
    step takes it at the level that is reached.
    """
    x, s = x_0, CLEAN
    for t in reversed(grid.timesteps):
        eps = denoiser(x, t if s == CLEAN else s).eps
        x, s = Step.between(denoiser.schedule, s, t, eta=0.0).mean(x, eps), t
        yield x


@torch.no_grad()
def invert(
    domain: Domain,
    images: Tensor,
    *,
    steps: int = 100,
    progress: bool = False,
) -> Tensor:
    """The x_T from which `sample(domain, x_T=..., eta=0)` with as many steps returns to the images.

    Only approximately: the error falls like 1 / steps. Unlike `encode` this draws no noise.

    Args:
        domain: the domain that the images belong to.
        images: (B, C, H, W), floating point, in [-1, 1].
        steps: number of timesteps, 1 .. T.
        progress: show a progress bar.

    Returns:
        x_T, (B, *domain.shape), near N(0, I) for images of the domain.

    Raises:
        ValueError: an argument is out of range, or the images do not fit the domain.
    """
    x_0 = domain.to_states(images)
    grid = TimeGrid.whole(domain.schedule, steps)
    states = inversion_chain(domain.denoiser, x_0, grid=grid)
    return last(states, len(grid), "invert", progress=progress)
