"""The few large steps of a denoising diffusion GAN (Xiao, Kreis and Vahdat 2022).

t = 0 is one step from the clean image: the generator says x_0 at t, and x_{t-1} is drawn from the
posterior; at t = 0 that is x_0 itself.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cyclelight.errors import BadValue, at_least

FIRST = 1e-3
"""Where on the continuous way from image to noise, 0 .. 1, the chain's clean end stands."""


@dataclass(frozen=True)
class DDGANSchedule:
    """The variance-preserving way of Song et al. (2021), cut into a few equal parts.

    Args:
        timesteps: steps from noise to image.
        beta_min: rate of the noise at the clean end.
        beta_max: rate of the noise at the other end.

    Raises:
        ValueError: a value is out of range.
    """

    timesteps: int = 4
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        at_least(1, timesteps=self.timesteps)
        if not 0 < self.beta_min < self.beta_max:
            raise BadValue(
                "beta_min", f"beta_min must lie between 0 and beta_max, got {self.beta_min}"
            )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha-bar of the states x_0, x_1, .., x_T: (T + 1,), float64; 1 first.

        Relative to that at `FIRST`, where the clean image is taken to be.
        """
        u = torch.linspace(0, 1, self.timesteps + 1, dtype=torch.float64) * (1 - FIRST) + FIRST
        log_mean = -0.25 * u**2 * (self.beta_max - self.beta_min) - 0.5 * u * self.beta_min
        return (2 * (log_mean - log_mean[0])).exp()

    def _at(self, values: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device)[t].view(-1, *(1,) * (like.ndim - 1)).to(like)

    def add_noise(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from q(x_t | x_0); x_0 itself at t = 0.

        Args:
            x_0: clean images (B, C, H, W).
            t: (B,) integers, 0 .. T: how many steps.
            noise: N(0, I), same shape as x_0.
        """
        a = self.alphas_cumprod
        return self._at(a.sqrt(), t, x_0) * x_0 + self._at((1 - a).sqrt(), t, x_0) * noise

    def forward_step(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_{t+1} from q(x_{t+1} | x_t).

        Args:
            x_t: states (B, C, H, W) after t steps.
            t: (B,) integers, 0 .. T - 1.
            noise: N(0, I), same shape as x_t.
        """
        alpha = self.alphas_cumprod[1:] / self.alphas_cumprod[:-1]
        return self._at(alpha.sqrt(), t, x_t) * x_t + self._at((1 - alpha).sqrt(), t, x_t) * noise

    def posterior(self, x_0: Tensor, x_next: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from q(x_t | x_{t+1}, x_0) (Ho et al. 2020, Eq. 6-7); x_0 itself at t = 0.

        Args:
            x_0: clean images (B, C, H, W).
            x_next: states after t + 1 steps, same shape.
            t: (B,) integers, 0 .. T - 1.
            noise: N(0, I), same shape.
        """
        mean_x_0, mean_x_next, sigma = (self._at(c, t, x_0) for c in self.posterior_coefficients)
        return mean_x_0 * x_0 + mean_x_next * x_next + sigma * noise

    @cached_property
    def posterior_coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """(of x_0, of x_{t+1}, standard deviation), t = 0 .. T - 1: (T,) each, float64."""
        s, t = self.alphas_cumprod[:-1], self.alphas_cumprod[1:]
        alpha = t / s
        of_x_0 = s.sqrt() * (1 - alpha) / (1 - t)
        of_x_next = alpha.sqrt() * (1 - s) / (1 - t)
        return of_x_0, of_x_next, ((1 - alpha) * (1 - s) / (1 - t)).sqrt()
