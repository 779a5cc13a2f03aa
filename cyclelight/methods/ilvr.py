"""ILVR (Choi et al. 2021): samples of the target whose low frequencies are the image's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cyclelight.chains.sample import reverse_chain
from cyclelight.chains.source import check_eta
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.lowpass import check_factor, low_pass
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.diffusion.steps import add_noise
from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue, at_least
from cyclelight.methods.base import Domains, Method, Role


@dataclass(frozen=True)
class ILVR(Method):
    """Sample the target from noise, led after each step by the noised image; no source is needed.

    x_s <- x_s' + phi_N(q_s) - phi_N(x_s') (Choi et al. 2021, Algorithm 1), where x_s' is the
    target's own step, q_s a draw from q(x_s | x_0) of the image, and phi_N reduces by N and
    enlarges again by a cubic kernel.

    Args:
        steps: number of timesteps of the whole grid, 1 .. T. The authors' program has 100.
        eta: 0 (DDIM) .. 1 (DDPM).
        down_N: how far the images that are compared are reduced; it divides their side. More leaves
            the target more freedom. The authors have 32 for cats to dogs of 256 pixels, which then
            have 8 x 8.
        range_t: the steps that leave the grid's lowest range_t + 1 timesteps are the target's
            alone. The authors' program has 20.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 100
    eta: float = 1.0
    down_N: int = 8
    range_t: int = 20

    needs: ClassVar[tuple[Role, ...]] = ("target",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta("eta", self.eta)
        at_least(1, down_N=self.down_N)
        at_least(0, range_t=self.range_t)

    def length(self, schedule: NoiseSchedule) -> int:
        grid = TimeGrid.whole(schedule, self.steps)
        if self.range_t >= len(grid):
            raise BadValue(
                "range_t", f"range_t must be below steps = {self.steps}, got {self.range_t}"
            )
        return len(grid)

    def choose(self, domains: Mapping[Role, Domain | None]) -> Domains:
        chosen = super().choose(domains)
        check_factor("down_N", self.down_N, *chosen["target"].shape[1:])
        return chosen

    def stream(self, domains: Domains, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The states of the target's chain."""
        target = domains["target"].denoiser
        grid = TimeGrid.whole(target.schedule, self.steps)
        free = set(grid.timesteps[-self.range_t - 1 :])

        def led(x_t: Tensor, x_s: Tensor, t: int, s: int) -> Tensor:
            if t in free:
                return x_s
            q = add_noise(x_0, noise("ilvr reference", s, x_0), target.schedule.alpha_bar(s))
            return x_s + low_pass(q, self.down_N, "cubic") - low_pass(x_s, self.down_N, "cubic")

        x_T = noise("ilvr start", grid.start, x_0)
        return reverse_chain(
            target, x_T, grid=grid, eta=self.eta, noise=noise, purpose="ilvr", adjust=led
        )
