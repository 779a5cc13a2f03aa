"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024) between two domains."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cyclelight.chains.lockstep import lockstep
from cyclelight.chains.source import source_chain
from cyclelight.diffusion.noise import Noise
from cyclelight.methods.base import Domains, GridMethod, check_parallel


@dataclass(frozen=True)
class EditFriendly(GridMethod):
    """As CycleDiffusion, but each x_t of the source is drawn with fresh noise, not from the last.

    The noises that such states imply are larger than N(0, 1), and bind the result more closely to
    the image. The paper has 100 steps of which the first 36 are skipped, a strength of 0.64.

    Args:
        steps: number of timesteps of the whole grid, 1 .. T.
        eta: 0 .. 1; the paper has 1.
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end.
        spacing: how the timesteps are spread, see `Spacing`.
        parallel: how many states one call of the source's network may take; see `CycleDiffusion`.

    Raises:
        ValueError: a setting is out of range.
    """

    parallel: int = 0

    masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parallel(self.parallel)

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
            eta=self.eta,
            noise=noise,
            draw="independent",
            parallel=self.parallel,
        )
        return lockstep(target, chain, mask=mask)
