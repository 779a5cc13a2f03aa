"""DDCM, the consistency model behind InfEdit (Xu et al. 2024), between two domains."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cyclelight.chains.lockstep import lockstep
from cyclelight.chains.source import source_chain
from cyclelight.diffusion.grid import TimeGrid, check_strength
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.methods.base import Domains, Method, check_parallel


@dataclass(frozen=True)
class DDCM(Method):
    """The source's error in predicting the image corrects the target's prediction, at fresh noise.

    With sigma at its maximum nothing of the old noise stays, so that lockstep is the paper's step:
    x_s = sqrt(abar_s) x_0' + sqrt(1 - abar_s) noise, where
    x_0' = x_0_hat_target(y_t) + x_0 - x_0_hat_source(x_t).

    Args:
        steps: number of timesteps of the whole grid, 1 .. T. On closed-form domains more of them
            bring the result nearer to the image, not to the target.
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end.
        parallel: how many states one call of the source's network may take; see `CycleDiffusion`.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 15
    strength: float = 0.85
    parallel: int = 0

    masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parallel(self.parallel)
        check_strength(self.strength)

    def grid(self, schedule: NoiseSchedule) -> TimeGrid:
        """The timesteps that are run."""
        return TimeGrid.truncated(schedule, self.steps, self.strength)

    def length(self, schedule: NoiseSchedule) -> int:
        return len(self.grid(schedule))

    def stream(
        self, domains: Domains, x_0: Tensor, noise: Noise, mask: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The states of the target chain."""
        source, target = domains["source"].denoiser, domains["target"].denoiser
        grid = self.grid(source.schedule)
        chain = source_chain(
            source,
            x_0,
            grid=grid,
            eta="maximum",
            noise=noise,
            draw="independent",
            parallel=self.parallel,
        )
        return lockstep(target, chain, mask=mask)
