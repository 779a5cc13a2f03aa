"""CycleDiffusion (Wu and De la Torre 2023, sec. 3.2): one latent space, two decoders."""

from collections.abc import Iterator

from torch import Tensor

from cyclelight.chains.decode import stream as decode_stream
from cyclelight.chains.encode import CodeRecipe, LastResidual, check_chain
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import TimeGrid
from cyclelight.domains.domain import Domain
from cyclelight.methods.base import Method
from cyclelight.methods.sdedit import cleanup_grid, cleanup_stream


class CycleDiffusion(Method):
    """Encode with the source, decode with the target in lockstep, clean up with the target.

    Args:
        source: the domain that the images belong to.
        target: the domain to translate into; schedule, resolution, channels and autoencoder are
            the source's.
        steps: number of timesteps of the whole grid, 1 .. T.
        eta: 0 .. 1; see `encode`.
        strength: in (0, 1]: the share of the grid that is run, counted from the clean end.
        cleanup: SDEdit on the target afterwards (Meng et al. 2022): steps of a training schedule of
            1000 to go back; 0 for none.
        cleanup_eta: eta of the cleanup.
        last_residual: `keep` or `drop`; see `encode`.
        seed: seed of the noise.

    Raises:
        ValueError: a setting is out of range, or the domains cannot be paired.
    """

    def __init__(
        self,
        source: Domain,
        target: Domain,
        *,
        steps: int = 100,
        eta: float = 0.1,
        strength: float = 1.0,
        cleanup: int = 0,
        cleanup_eta: float = 1.0,
        last_residual: LastResidual = "keep",
        seed: int = 0,
    ) -> None:
        super().__init__(source, target, seed=seed)
        check_chain(eta, last_residual)
        check_chain(cleanup_eta)
        self.grid = TimeGrid.truncated(source.schedule, steps, strength)
        self.cleanup_grid = cleanup_grid(target.schedule, steps, cleanup)
        self.eta, self.cleanup_eta = eta, cleanup_eta
        self.last_residual: LastResidual = last_residual

    def __len__(self) -> int:
        return len(self.grid) + (len(self.cleanup_grid) if self.cleanup_grid else 0)

    def stream(self, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The states of the target chain, then those of the cleanup."""
        y = x_0
        code = CodeRecipe(self.source, x_0, self.grid, self.eta, noise, self.last_residual)
        for y in decode_stream(self.target, code):
            yield y
        if self.cleanup_grid is not None:
            yield from cleanup_stream(
                self.target.denoiser,
                y,
                schedule=self.target.schedule,
                grid=self.cleanup_grid,
                eta=self.cleanup_eta,
                noise=noise,
            )
