"""Deterministic inversion: from an image up to x_T with eta = 0 (Song et al. 2021, sec. 4.3)."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from cyclelight.chains.loop import last
from cyclelight.diffusion.denoiser import Denoiser, check_prediction
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.schedule import CLEAN
from cyclelight.diffusion.steps import Step
from cyclelight.domains.domain import Domain, check_domain

Inversion = Literal["left", "reached", "released"]
"""Which noise prediction a deterministic step upwards takes, see `inversion_chain`."""


def inversion_chain(
    denoiser: Denoiser, x_0: Tensor, *, grid: TimeGrid, inversion: Inversion = "left"
) -> Iterator[Tensor]:
    """The states from the clean image up to the grid's start, each (B, C, H, W).

    The deterministic step run upwards, x_t = sqrt(abar_t) x_0_hat + sqrt(1 - abar_t) eps_hat.

    Args:
        denoiser: whose eps_hat.
        x_0: clean states (B, C, H, W).
        grid: the timesteps to visit.
        inversion: `left` takes eps_hat at the level that is left; the clean image has no timestep,
            so that the first step takes it at the level that is reached. `reached` always does so,
            as diffusers' DDIMInverseScheduler. `released` is the program of DDIB's authors (Su et
            al. 2023): the image counts as the state of the grid's lowest timestep, and the last
            state is the noise that is predicted at its highest.
    """
    x, upwards = x_0, list(reversed(grid.timesteps))
    if inversion == "released":
        for s, t in pairwise(upwards):
            x = Step.between(denoiser.schedule, s, t, eta=0.0).mean(x, _eps(denoiser, x, s))
            yield x
        yield _eps(denoiser, x, grid.start)
        return
    for s, t in pairwise([CLEAN, *upwards]):
        eps = _eps(denoiser, x, t if s == CLEAN or inversion == "reached" else s)
        x = Step.between(denoiser.schedule, s, t, eta=0.0).mean(x, eps)
        yield x


def _eps(denoiser: Denoiser, x_t: Tensor, t: int) -> Tensor:
    prediction = denoiser(x_t, t)
    check_prediction(prediction, x_t)
    return prediction.eps


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
    check_domain("domain", domain)
    domain.check_images(images)
    x_0 = domain.to_states(images)
    grid = TimeGrid.whole(domain.schedule, steps)
    states = inversion_chain(domain.denoiser, x_0, grid=grid)
    return last(states, len(grid), "invert", progress=progress)
