"""The formulas of one step, each written once.

Symbols: x_t the state at timestep t, s the next lower timestep of the grid, alpha_bar the
cumulative alpha (`schedule.py`), eps the noise prediction, sigma the step's standard deviation.
Coefficients are float64 Python numbers: a float32 state meets them already rounded once only.
"""

from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

import torch
from torch import Tensor

from cyclelight.diffusion.schedule import NoiseSchedule

AlphaBar = float | Tensor
"""One alpha-bar for the whole batch, or a tensor (B, 1, 1, 1) with one for each image."""


EtaOrPair = float | tuple[float, float]
"""How stochastic steps are: 0 (deterministic) .. 1 (DDPM); or a pair, at timestep 0 and at T,
between which it changes linearly with the timestep."""
Eta = EtaOrPair | Literal["maximum"]
"""That, or `maximum`, where sigma is all of the noise of the level that is reached,
sqrt(1 - abar_s), and nothing of the old noise stays."""


def add_noise(x_0: Tensor, noise: Tensor, alpha_bar_t: AlphaBar) -> Tensor:
    """A draw from q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Ho et al. 2020, Eq. 4)."""
    return alpha_bar_t**0.5 * x_0 + (1 - alpha_bar_t) ** 0.5 * noise


def x_0_from_eps(x_t: Tensor, eps: Tensor, alpha_bar_t: AlphaBar) -> Tensor:
    """The clean image that a noise prediction implies: `add_noise` solved for x_0."""
    return (x_t - (1 - alpha_bar_t) ** 0.5 * eps) / alpha_bar_t**0.5


def eps_from_x_0(x_t: Tensor, x_0: Tensor, alpha_bar_t: AlphaBar) -> Tensor:
    """The noise that a clean image implies: `add_noise` solved for the noise."""
    return (x_t - alpha_bar_t**0.5 * x_0) / (1 - alpha_bar_t) ** 0.5


def eps_from_v(x_t: Tensor, v: Tensor, alpha_bar_t: AlphaBar) -> Tensor:
    """The noise that a velocity v = sqrt(abar) eps - sqrt(1 - abar) x_0 implies.

    Salimans and Ho 2022, sec. 4 and appendix D.
    """
    return alpha_bar_t**0.5 * v + (1 - alpha_bar_t) ** 0.5 * x_t


def covariance_of_x_0(spread: Tensor, alpha_bar_t: AlphaBar) -> Tensor:
    """The variance of each pixel of x_0 given x_t that follows from that of the noise.

    (1 - abar_t) / abar_t times `spread`, which is E[eps^2 | x_t] - E[eps | x_t]^2 (Bao et al. 2022,
    Eq. 9) or E[(eps - eps_hat)^2 | x_t] (Eq. 14).
    """
    return (1 - alpha_bar_t) / alpha_bar_t * spread


def learned_log_variance(v: Tensor, log_beta: AlphaBar, log_beta_tilde: AlphaBar) -> Tensor:
    """(v+1)/2 log beta + (1-v)/2 log beta_tilde (Nichol and Dhariwal 2021, Eq. 15)."""
    share = (v + 1) / 2
    return share * log_beta + (1 - share) * log_beta_tilde


@dataclass(frozen=True)
class Step:
    """One step between two noise levels, of the DDIM family (Song et al. 2021, Eq. 12).

    x_s = mean(x_t, eps) + sigma * noise. eta = 1 is the ancestral step of DDPM with the posterior
    ("fixed small") variance; eta = 0 is deterministic and may also run upwards (s > t).

    Args:
        alpha_bar_t: alpha-bar of the level that is left, in (0, 1]; 1 is the clean image.
        alpha_bar_s: alpha-bar of the level that is reached, in (0, 1].
        eta: 0 .. 1, or `maximum`, see `Eta`.
        lowest: whether the level that is reached is the schedule's lowest, timestep 0.
    """

    alpha_bar_t: float
    alpha_bar_s: float
    eta: float | Literal["maximum"]
    lowest: bool = False

    @classmethod
    def between(cls, schedule: NoiseSchedule, t: int, s: int, eta: Eta) -> "Step":
        """The step from timestep t to timestep s of a schedule."""
        if isinstance(eta, tuple):
            clean, noisy = eta
            eta = clean + (noisy - clean) * t / schedule.timesteps
        return cls(schedule.alpha_bar(t), schedule.alpha_bar(s), eta, s == 0)

    @property
    def sigma(self) -> float:
        """eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s) (Song et al., Eq. 16)."""
        a_t, a_s = self.alpha_bar_t, self.alpha_bar_s
        if self.eta == "maximum":
            return sqrt(1 - a_s)
        if self.eta == 0:
            return 0.0
        return self.eta * sqrt((1 - a_s) / (1 - a_t)) * sqrt(1 - a_t / a_s)

    def learned_sigma(self, v: Tensor) -> Tensor | float:
        """Standard deviation from a learned range v in [-1, 1] (Nichol and Dhariwal 2021, Eq. 15).

        beta = 1 - abar_t / abar_s, beta_tilde = beta (1 - abar_s) / (1 - abar_t). The last step, to
        the clean image, has none: beta_tilde is 0 there.
        """
        if self.alpha_bar_s == 1:
            return 0.0
        beta = 1 - self.alpha_bar_t / self.alpha_bar_s
        beta_tilde = beta * (1 - self.alpha_bar_s) / (1 - self.alpha_bar_t)
        return torch.exp(0.5 * learned_log_variance(v, log(beta), log(beta_tilde)))

    def optimal_sigma(self, cov_x_0: Tensor, last: float | None = None) -> Tensor | float:
        """Standard deviation that also holds what the clean image leaves open (Bao et al. 2022).

        sigma^2 + (sqrt(abar_s) - sqrt((1 - abar_s - sigma^2) abar_t / (1 - abar_t)))^2 cov_x_0, the
        square of what `mean` has of x_0 at a given x_t (Eq. 8). Not 0 for eta 0. The last step, to
        the clean image, has none: its mean is taken.

        Args:
            cov_x_0: variance of each pixel of x_0 given x_t; a negative one, which a network may
                give, lowers sigma, at most to 0.
            last: the most that sigma may be where the lowest level is reached: that noise is seen
                in the image (Bao et al. 2022, appendix).
        """
        a_t, a_s = self.alpha_bar_t, self.alpha_bar_s
        if a_s == 1:
            return 0.0
        kept = max(0.0, 1 - a_s - self.sigma**2)
        slope = sqrt(a_s) - sqrt(kept * a_t / (1 - a_t))
        sigma = (self.sigma**2 + slope**2 * cov_x_0).clamp(min=0).sqrt()
        return sigma.clamp(max=last) if self.lowest and last is not None else sigma

    def mean(self, x_t: Tensor, eps: Tensor, x_0: Tensor | None = None) -> Tensor:
        """mu = sqrt(abar_s) x_0_hat + sqrt(1 - abar_s - sigma^2) eps (Song et al. 2021, Eq. 12).

        x_0_hat is `x_0` if given, else what eps implies.
        """
        x_0 = x_0_from_eps(x_t, eps, self.alpha_bar_t) if x_0 is None else x_0
        mean = sqrt(self.alpha_bar_s) * x_0
        if self.eta == "maximum":  # Where the root would be 0 but for rounding.
            return mean
        # Rounding can leave a tiny negative number where eta = 1 and s is the lowest timestep.
        direction = max(0.0, 1 - self.alpha_bar_s - self.sigma**2)
        return mean + sqrt(direction) * eps

    def posterior(self, x_t: Tensor, x_0: Tensor, noise: Tensor) -> Tensor:
        """A draw from q(x_s | x_t, x_0) (Song et al. 2021, Eq. 7): the step with the true noise.

        Its marginals are q(x_s | x_0) for every eta. The step to the clean image returns x_0
        itself, exactly.
        """
        if self.alpha_bar_s == 1:
            return x_0
        return self.mean(x_t, eps_from_x_0(x_t, x_0, self.alpha_bar_t)) + self.sigma * noise
