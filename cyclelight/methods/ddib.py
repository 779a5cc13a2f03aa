"""DDIB (Su et al. 2023): up with the source, down with the target, both deterministic."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from cyclelight.chains.invert import Inversion, inversion_chain
from cyclelight.chains.lockstep import Blending, lockstep
from cyclelight.chains.sample import reverse_chain
from cyclelight.chains.source import descending_chain
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import one_of
from cyclelight.methods.base import Domains, Method


@dataclass(frozen=True)
class DDIB(Method):
    """The image's x_T by the source's deterministic chain, decoded by the target's.

    Su et al. 2023, Algorithm 1. No noise is drawn. Even with equal models the image comes back only
    approximately: the error falls like 1 / steps. A target that is controlled by the source's
    attention has the source beside it on its way down (Hertz et al. 2022, sec. 4), which costs as
    many calls more.

    Args:
        steps: number of timesteps of the whole grid, 1 .. T; as many calls of each network. The
            authors have 1000.
        inversion: where a step upwards takes the predicted noise, see `inversion_chain`; `released`
            is the authors' program.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 100
    inversion: Inversion = "left"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(get_args(Inversion), inversion=self.inversion)

    def grid(self, schedule: NoiseSchedule) -> TimeGrid:
        """The timesteps that are run, upwards and downwards."""
        return TimeGrid.whole(schedule, self.steps)

    def length(self, schedule: NoiseSchedule) -> int:
        return 2 * len(self.grid(schedule))

    def stream(self, domains: Domains, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The states of the source's chain upwards, then those of the target's down."""
        source, target = domains["source"].denoiser, domains["target"].denoiser
        grid, x = self.grid(source.schedule), x_0
        for x in inversion_chain(source, x_0, grid=grid, inversion=self.inversion):
            yield x
        if isinstance(target, Blending):
            yield from lockstep(target, descending_chain(source, x, grid=grid))
            return
        yield from reverse_chain(target, x, grid=grid, eta=0.0, noise=noise, purpose="ddib")
