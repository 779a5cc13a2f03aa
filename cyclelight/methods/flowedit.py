"""FlowEdit (Kulikov et al. 2025) between two domains."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from cyclelight.chains.lockstep import lockstep
from cyclelight.chains.sample import reverse_chain
from cyclelight.chains.source import source_chain
from cyclelight.diffusion.grid import TimeGrid, check_strength
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import BadValue, at_least
from cyclelight.methods.base import Domains, Method, check_parallel
from cyclelight.methods.sdedit import outside_kept


@dataclass(frozen=True)
class FlowEdit(Method):
    """Follow the difference of the target's and the source's velocity, at fresh noise each step.

    Z_s = Z_t + (s - t) (V_target(Z_t + X_t - x_0) - V_source(X_t)), where X_t is the noised image
    (Kulikov et al. 2025, Algorithm 1). That is lockstep with sigma 0 and independent draws, so that
    domains that are no flows are taken, too.

    Args:
        steps: number of timesteps of the whole grid, 1 .. T. The paper has 50 for Stable Diffusion
            3, 28 for FLUX.
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end. In the
            authors' words n_max / steps: 33 / 50 for Stable Diffusion 3, 24 / 28 for FLUX.
        n_avg: over how many noises the difference is averaged at each step; each costs a forward of
            both.
        n_min: how many of the last steps are the target's alone, from the state reached with noise
            drawn once more. The paper has 0.
        parallel: how many states one call of the source's network may take; see `CycleDiffusion`.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 50
    strength: float = 0.66
    n_avg: int = 1
    n_min: int = 0
    parallel: int = 0

    masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parallel(self.parallel)
        check_strength(self.strength)
        at_least(1, n_avg=self.n_avg)
        at_least(0, n_min=self.n_min)

    def grid(self, schedule: NoiseSchedule) -> TimeGrid:
        """The timesteps that are run."""
        return TimeGrid.truncated(schedule, self.steps, self.strength)

    def length(self, schedule: NoiseSchedule) -> int:
        length = len(self.grid(schedule))
        if self.n_min >= length:
            told = f"n_min must be below the {length} steps that are run, got {self.n_min}"
            raise BadValue("n_min", told)
        return length

    def stream(
        self, domains: Domains, x_0: Tensor, noise: Noise, mask: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The states of the target chain, of the first noise where there are several."""
        source, target = domains["source"].denoiser, domains["target"].denoiser
        grid, y = self.grid(source.schedule), x_0
        several = (self.n_avg, 1, 1, 1)
        chain = source_chain(
            source,
            x_0.repeat(several),
            grid=grid,
            eta=0.0,
            noise=self._each(noise),
            draw="independent",
            parallel=self.parallel,
        )
        masks = None if mask is None else mask.repeat(several)
        states = lockstep(target, chain, draws=self.n_avg, mask=masks)
        for y in islice(states, len(grid) - self.n_min):
            y = y[: len(x_0)]
            yield y
        if self.n_min:
            purpose = "flowedit"
            kept = outside_kept(target.schedule, x_0, 0.0, noise, purpose, mask)
            end = TimeGrid(grid.timesteps[-self.n_min :])
            yield from reverse_chain(
                target, y, grid=end, eta=0.0, noise=noise, purpose=purpose, adjust=kept
            )

    def _each(self, noise: Noise) -> Noise:
        """A noise of its own for each of the draws of an image, which follow one another."""

        def drawn(purpose: str, timestep: int, like: Tensor) -> Tensor:
            # A single draw is the one of other methods.
            names = [purpose, *(f"{purpose} {number}" for number in range(1, self.n_avg))]
            parts = zip(names, like.chunk(self.n_avg), strict=True)
            return torch.cat([noise(name, timestep, part) for name, part in parts])

        return drawn
