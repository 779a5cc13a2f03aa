"""SDEdit (Meng et al. 2022, sec. 3): a little noise, then the target's own denoising."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cyclelight.chains.sample import Adjust, reverse_chain
from cyclelight.diffusion.denoiser import Denoiser
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import CLEAN, NoiseSchedule
from cyclelight.diffusion.steps import EtaOrPair, Step, add_noise
from cyclelight.methods.base import Domains, GridMethod, Role


@dataclass(frozen=True)
class SDEdit(GridMethod):
    """Noise an image up to a level, and denoise it with the target; no source domain is needed.

    Args:
        steps: number of timesteps of the whole grid, 1 .. T.
        eta: 0 (DDIM) .. 1 (DDPM).
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end: how much
            of the image the noise hides. The paper has 0.5.
        spacing: how the timesteps are spread, see `Spacing`.

    Raises:
        ValueError: a setting is out of range.
    """

    strength: float = 0.5

    needs: ClassVar[tuple[Role, ...]] = ("target",)
    masks: ClassVar[bool] = True

    def stream(
        self, domains: Domains, x_0: Tensor, noise: Noise, mask: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The states of the target's chain."""
        target = domains["target"].denoiser
        grid = self.grid(target.schedule)
        return renoised_chain(
            target, x_0, grid=grid, eta=self.eta, noise=noise, purpose="sdedit", mask=mask
        )


def renoised_chain(
    target: Denoiser,
    x_0: Tensor,
    *,
    grid: TimeGrid,
    eta: EtaOrPair,
    noise: Noise,
    purpose: str,
    mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """The states (B, C, H, W) of a chain from x_0, noised to the grid's start, back to a clean one.

    `noise` is called for (purpose + " start", grid.start) and (purpose, t).

    Args:
        target: the denoiser.
        x_0: clean states.
        grid: the timesteps to visit.
        eta: see `Step`.
        noise: a source of noise, also for (purpose + " mask", t) where there is a mask.
        purpose: names the draws.
        mask: (B, 1, H, W), bool: elsewhere the states are drawn from q(x_s | x_t, x_0), so that x_0
            stays as it is, bit for bit.
    """

    start = noise(f"{purpose} start", grid.start, x_0)
    x_t = add_noise(x_0, start, target.schedule.alpha_bar(grid.start))
    return reverse_chain(
        target,
        x_t,
        grid=grid,
        eta=eta,
        noise=noise,
        purpose=purpose,
        adjust=outside_kept(target.schedule, x_0, eta, noise, purpose, mask),
    )


def outside_kept(
    schedule: NoiseSchedule,
    x_0: Tensor,
    eta: EtaOrPair,
    noise: Noise,
    purpose: str,
    mask: Tensor | None,
) -> Adjust | None:
    """What keeps x_0 outside of a mask on the way of a chain, see `renoised_chain`."""
    if mask is None:
        return None

    def kept(x_t: Tensor, x_s: Tensor, t: int, s: int) -> Tensor:
        still = s == CLEAN or eta == 0
        drawn = torch.zeros_like(x_0) if still else noise(f"{purpose} mask", t, x_0)
        outside = Step.between(schedule, t, s, eta).posterior(x_t, x_0, drawn)
        return torch.where(mask, x_s, outside)

    return kept
