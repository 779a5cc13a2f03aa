"""CycleDiffusion (Wu and De la Torre 2023, sec. 3.2): one latent space, two decoders."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from cyclelight.chains.lockstep import LastResidual, check_last_residual, lockstep
from cyclelight.chains.source import Draw, check_eta, source_chain
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import BadValue, one_of
from cyclelight.methods.base import Domains, GridMethod, check_parallel
from cyclelight.methods.sdedit import renoised_chain

TRAINING_STEPS = 1000
"""The length of the training schedule that `cleanup` is counted on."""


@dataclass(frozen=True)
class CycleDiffusion(GridMethod):
    """Encode with the source, decode with the target in lockstep, clean up with the target.

    The defaults come from a search with demo domains of 48 pixels (docs/settings.md);
    `fast` needs a third of the calls, `paper` and `released` have the published settings.

    Args:
        steps: number of timesteps of the whole grid, 1 .. T (1000).
        eta: 0 .. 1: how stochastic the chain is. Small keeps more of the image, 1 makes a code that
            is truly Gaussian. Two numbers are its values at the clean end of the schedule and at
            the noisy one, between which it changes linearly.
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end. Less
            keeps more.
        spacing: how the timesteps are spread: `leading` evenly, as published; `quadratic` and
            `logsnr` with more of them near the clean end.
        cleanup: SDEdit on the target afterwards (Meng et al. 2022): steps of a training schedule of
            1000 to go back; 0 for none. More is more realistic and less faithful.
        cleanup_eta: eta of the cleanup.
        last_residual: keep, so that equal models give the image back, or drop, as the authors'
            program does.
        parallel: how many states one call of the source's network may take. Above the batch size,
            several timesteps of the encoding go in one call: faster for few images on a GPU, and
            equal to a level of 255. 0 for one timestep a call.
        draw: the source's states: `chain`, each from the posterior of the one before, as published;
            `independent`, each with fresh noise; or `one`, all with the same noise.

    Raises:
        ValueError: a setting is out of range.
    """

    cleanup: int = 100
    cleanup_eta: float = 1.0
    last_residual: LastResidual = "keep"
    parallel: int = 0
    draw: Draw = "chain"

    masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta("cleanup_eta", self.cleanup_eta)
        check_last_residual(self.last_residual)
        check_parallel(self.parallel)
        one_of(get_args(Draw), draw=self.draw)
        if not 0 <= self.cleanup <= TRAINING_STEPS:
            raise BadValue("cleanup", f"cleanup must be in 0..{TRAINING_STEPS}, got {self.cleanup}")

    @classmethod
    def fast(cls) -> "CycleDiffusion":
        """Those of the recipe `cat2dog_fast` (docs/settings.md): more faithful, less realistic."""
        return cls(steps=15, eta=(1.0, 0.0))

    @classmethod
    def paper(cls, cleanup: int = 100) -> "CycleDiffusion":
        """The settings of the paper's Table 1 (sec. 4.1).

        Args:
            cleanup: 100 for cats to dogs, 125 for wild animals to dogs.
        """
        return cls(steps=1000, eta=0.1, strength=0.85, cleanup=cleanup)

    @classmethod
    def released(cls, cleanup: int = 100) -> "CycleDiffusion":
        """The settings of the authors' program.

        Args:
            cleanup: 100 for cats to dogs, 150 for wild animals to dogs.
        """
        return cls(steps=1000, eta=0.1, strength=0.85, cleanup=cleanup, last_residual="drop")

    def length(self, schedule: NoiseSchedule) -> int:
        cleanup = self._cleanup_grid(schedule)
        return super().length(schedule) + (len(cleanup) if cleanup else 0)

    def stream(
        self, domains: Domains, x_0: Tensor, noise: Noise, mask: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The states of the target chain, then those of the cleanup."""
        source, target = domains["source"].denoiser, domains["target"].denoiser
        grid, y = self.grid(source.schedule), x_0
        chain = source_chain(
            source,
            x_0,
            grid=grid,
            eta=self.eta,
            noise=noise,
            draw=self.draw,
            parallel=self.parallel,
        )
        for y in lockstep(target, chain, last_residual=self.last_residual, mask=mask):
            yield y
        cleanup_grid = self._cleanup_grid(target.schedule)
        if cleanup_grid is not None:
            yield from renoised_chain(
                target,
                y,
                grid=cleanup_grid,
                eta=self.cleanup_eta,
                noise=noise,
                purpose="cleanup",
                mask=mask,
            )

    def _cleanup_grid(self, schedule: NoiseSchedule) -> TimeGrid | None:
        """The points of the whole grid below `cleanup`, the same share of any schedule."""
        if self.cleanup == 0:
            return None
        top = max(1, round(self.cleanup * schedule.timesteps / TRAINING_STEPS))
        return TimeGrid.spaced(schedule, self.steps, 1.0, self.spacing).below(top)
