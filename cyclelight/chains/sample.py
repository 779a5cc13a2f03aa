"""The plain reverse loop: images from noise."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cyclelight.chains.loop import last
from cyclelight.chains.source import check_eta
from cyclelight.diffusion.denoiser import Denoiser, mean_and_sigma
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import Noise, noise_for
from cyclelight.diffusion.schedule import CLEAN
from cyclelight.diffusion.steps import EtaOrPair, Step
from cyclelight.domains.domain import Domain, check_domain
from cyclelight.errors import at_least, whole

Adjust = Callable[[Tensor, Tensor, int, int], Tensor]
"""(x_t, x_s, t, s) => the state to go on from in the place of x_s, the one that a step reached."""


def reverse_chain(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    grid: TimeGrid,
    eta: EtaOrPair,
    noise: Noise,
    purpose: str,
    adjust: Adjust | None = None,
) -> Iterator[Tensor]:
    """The states of a reverse chain that starts at x_T, (B, C, H, W); the last is the clean one.

    `noise` is called for (purpose, t) at every t but the last, and not at all where eta is 0 and
    the variance fixed. `adjust` leads the chain from outside.
    """
    x = x_T
    for t, s in grid.pairs:
        step = Step.between(denoiser.schedule, t, s, eta)
        mean, sigma = mean_and_sigma(step, x, denoiser(x, t))
        still = s == CLEAN or (isinstance(sigma, float) and sigma == 0)
        x_s = mean if still else mean + sigma * noise(purpose, t, x)
        x = x_s if adjust is None else adjust(x, x_s, t, s)
        yield x


@torch.no_grad()
def sample(
    domain: Domain,
    count: int | None = None,
    *,
    x_T: Tensor | None = None,
    steps: int = 100,
    eta: float = 1.0,
    seed: int = 0,
    keys: Sequence[str | int] | None = None,
    noise: Noise | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample images of a domain (Song et al. 2021, Eq. 12), or decode given x_T.

    Args:
        domain: what to sample.
        count: how many images; not with `x_T`.
        x_T: where the chains start, (B, *domain.shape), such as `invert` returns; drawn if None.
        steps: number of timesteps, 1 .. T.
        eta: 0 (DDIM) .. 1 (DDPM).
        seed, keys, noise: as in `encode`.
        progress: show a progress bar.

    Returns:
        Images (B, C, H, W), near [-1, 1], not clamped.

    Raises:
        ValueError: an argument is out of range, or neither or both of count and x_T are given.
    """
    eta = check_eta("eta", eta)
    check_domain("domain", domain)
    if (count is None) == (x_T is None):
        raise ValueError("give either count or x_T")
    grid = TimeGrid.whole(domain.schedule, steps)
    if x_T is None:
        assert count is not None
        count = whole("count", count)
        at_least(1, count=count)
        parameter = next(getattr(domain.denoiser, "parameters", lambda: iter(()))(), None)
        device = parameter.device if parameter is not None else None
        noise = noise_for(count, noise, seed, keys)
        x_T = noise("sample start", grid.start, torch.empty((count, *domain.shape), device=device))
    domain.check_states(x_T)
    noise = noise_for(len(x_T), noise, seed, keys)
    states = reverse_chain(domain.denoiser, x_T, grid=grid, eta=eta, noise=noise, purpose="sample")
    return domain.to_images(last(states, len(grid), "sample", progress=progress))
