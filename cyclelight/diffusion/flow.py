"""Rectified flow (Liu et al. 2023) by a change of variables: a schedule and a denoiser like others.

A flow's states are (1 - u) x_0 + u n, u from 0 to 1, and its network predicts v = n - x_0. Divided
by sqrt((1 - u)^2 + u^2) they are those of a schedule whose variance is kept, with

    abar = (1 - u)^2 / ((1 - u)^2 + u^2)

so that chains and methods need not know of flows; with eta 0 their step is Euler's of the flow.
Only u = 1, where abar is 0, stays out of every grid.
"""

import numpy as np
from torch import Tensor, nn

from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import BadValue, real, whole


def flow_schedule(shift: float = 1.0, levels: int = 1000) -> NoiseSchedule:
    """The schedule of u = (t + 1) / levels for t = 0 .. levels - 2, shifted.

    Args:
        shift: moves levels up, to u shift / (1 + (shift - 1) u), for images of more pixels (Esser
            et al. 2024, Eq. 23); above 0, 1 for none.
        levels: of the flow's training, u = 1 among them.

    Raises:
        ValueError: an argument is out of range, or nothing of the image is left below u = 1.
    """
    shift, levels = real("shift", shift), whole("levels", levels)
    if not shift > 0 or levels < 2:
        raise BadValue("shift", f"shift must be above 0 and levels above 1, got {shift}, {levels}")
    u = np.arange(1, levels) / levels
    u = shift * u / (1 + (shift - 1) * u)
    alpha_bar = (1 - u) ** 2 / ((1 - u) ** 2 + u**2)
    with np.errstate(invalid="ignore"):  # Where abar is 0 at several levels, which is refused.
        betas = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    return NoiseSchedule("given", timesteps=len(betas), given_betas=tuple(betas.tolist()))


class FlowDenoiser(NetworkDenoiser):
    """A flow's network, read as a `Denoiser`; where there is nothing else it is asked as it was.

    eps = (x_t + sqrt(abar) v) / (sqrt(abar) + sqrt(1 - abar)), where the flow's own state is x_t
    over the same sum, and u is sqrt(1 - abar) over it.

    Args:
        network: called as network(state, factor * u, ...) with factor * u of shape (B,), in the
            dtype of the states; returns v, or an object with it as `.sample`.
        schedule: a `flow_schedule`.
        factor: what u is told times, such as the levels of the training.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, factor: float = 1000.0) -> None:
        super().__init__(network, schedule)
        self.factor = factor

    def output(self, x_t: Tensor, timesteps: Tensor, *told: Tensor) -> tuple[Tensor, Tensor | None]:
        """(eps, None); see `NetworkDenoiser.output`."""
        # In float64, since 1 - abar is tiny near the clean end.
        alpha_bar = self.schedule.alpha_bars(timesteps)
        total = alpha_bar.sqrt() + (1 - alpha_bar).sqrt()
        u = ((1 - alpha_bar).sqrt() / total).flatten()
        root, total = alpha_bar.sqrt().to(x_t), total.to(x_t)
        v, second = super().output(x_t / total, (self.factor * u).to(x_t.dtype), *told)
        if second is not None:
            raise ValueError("a flow's network must make as many channels as the states have")
        return (x_t + root * v) / total, None
