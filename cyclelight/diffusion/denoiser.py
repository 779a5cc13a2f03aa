"""Denoiser: a network and its schedule behind the one interface that everything else knows."""

from dataclasses import dataclass
from math import pi, sqrt
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.diffusion.steps import (
    AlphaBar,
    Step,
    covariance_of_x_0,
    eps_from_v,
    eps_from_x_0,
    x_0_from_eps,
)
from cyclelight.errors import BadValue, kind_of

PredictionType = Literal["epsilon", "v_prediction", "sample"]
"""What a network was trained to output, in diffusers' words: the noise eps, the velocity
v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho 2022), or the clean image x_0."""

Variance = Literal["fixed", "learned"]
"""Whether the variance of a step is the schedule's or the one that the network has learned."""

SecondHead = Literal["range", "sn", "npr"]
"""What the channels after the prediction are: a range of the variance (Nichol and Dhariwal 2021),
or of Bao et al. 2022 the mean of eps^2 (SN-DDPM) or of (eps - eps_hat)^2 (NPR-DDPM)."""


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says about a noisy image.

    Args:
        eps: the predicted noise, same shape as x_t.
        v_range: learned range of the variance in [-1, 1], same shape (`Step.learned_sigma`); None
            where the variance is fixed.
        cov_x_0: variance of each pixel of the clean image given x_t, same shape; None if not
            known. The optimal variance of a step follows from it (`Step.optimal_sigma`).
        last_sigma: the most that the optimal sigma may be at the lowest level; None for any.
        x_0: the clean image, if it is not what eps implies: clamped, and not folded back into eps.
    """

    eps: Tensor
    v_range: Tensor | None = None
    cov_x_0: Tensor | None = None
    last_sigma: float | None = None
    x_0: Tensor | None = None


class Denoiser(Protocol):
    """Anything with a `schedule` that is called as (x_t, t) -> `Prediction`.

    x_t has shape (B, C, H, W); t is a training timestep, an integer for the whole batch or a tensor
    (B,) of one for each image. Whatever else a network is told, such as a class or a text, is
    closed into the object.
    """

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule it was trained under."""

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction: ...


class NetworkDenoiser(nn.Module):
    """A network such as diffusers' UNet2DModel, read as a `Denoiser`.

    Args:
        network: called as network(x_t, timesteps, ...) with timesteps of shape (B,) and what else
            it is told, if anything; returns a tensor, or an object with `.sample`, of C channels,
            or 2 C where the second half is a learned range of the variance.
        schedule: the schedule it was trained under.
        prediction_type: what its first C channels mean.
        variance: `fixed` ignores a learned variance as the authors' program of CycleDiffusion does;
            `learned` uses it.
        clip_x_0: clamp the predicted clean image to [-1, 1] and fold that back into eps; a learned
            variance of its pixels is clamped to [0, 1], then, without which one of a head that was
            trained for a short time may leave specks.
        second_head: what the second half of 2 C channels means.
        fold: False leaves eps as it is when x_0 is clamped, as SN-DDIM's program does and diffusers
            where use_clipped_model_output is off; for eta below 1.
        last_pixels: the most that the noise of an optimal variance may be at the lowest level, as a
            mean absolute value in 8-bit pixels; None for any.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction_type: PredictionType = "epsilon",
        variance: Variance = "fixed",
        clip_x_0: bool = False,
        second_head: SecondHead = "range",
        fold: bool = True,
        last_pixels: float | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.variance = variance
        self.clip_x_0 = clip_x_0
        self.second_head = second_head
        self.fold = fold
        # E|sigma noise| = sigma sqrt(2 / pi), and a pixel is 2 / 255.
        self.last_sigma = None if last_pixels is None else 2 / 255 * last_pixels * sqrt(pi / 2)

    def output(self, x_t: Tensor, timesteps: Tensor, *told: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the network itself says: (its prediction, its second head or None).

        Args:
            x_t: (B, C, H, W); cast to the network's dtype and back.
            timesteps: (B,) integers.
            told: what else the network is told, such as texts; floats (B, ...), cast, too.
        """
        dtype = next(self.network.parameters()).dtype
        out = self.network(x_t.to(dtype), timesteps, *(each.to(dtype) for each in told))
        out = out if isinstance(out, Tensor) else getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            raise ValueError(
                f"a network must return a tensor, or an object with one as .sample, "
                f"got {kind_of(out)}"
            )
        out, channels = out.to(x_t.dtype), x_t.shape[1]
        right = [(len(x_t), many * channels, *x_t.shape[2:]) for many in (1, 2)]
        if tuple(out.shape) not in right:
            raise ValueError(
                f"of states {tuple(x_t.shape)} a network must make as many channels, or twice as "
                f"many with a range of the variance, got {tuple(out.shape)}"
            )
        return out[:, :channels], out[:, channels:] if out.shape[1] > channels else None

    def forward(self, x_t: Tensor, t: int | Tensor, *told: Tensor) -> Prediction:
        """The prediction at timestep t, whatever the network was trained to output.

        Args:
            x_t: (B, C, H, W).
            t: an integer, or (B,) integers.
            told: see `output`. Who calls a `Denoiser` tells it nothing: a text is closed into one
                that does (`Guided`).

        Raises:
            ValueError: a learned variance is asked of a network that has none, or its output is not
                of the states' shape.
        """
        alpha_bar_t: AlphaBar
        if isinstance(t, Tensor):
            timesteps, alpha_bar_t = t, self.schedule.alpha_bars(t).to(x_t)
        else:
            timesteps = torch.full((len(x_t),), t, device=x_t.device)
            alpha_bar_t = self.schedule.alpha_bar(t)
        out, second = self.output(x_t, timesteps, *told)
        if self.variance == "learned" and second is None:
            raise BadValue(
                "variance", "variance is 'learned', but the network has no variance channels"
            )
        eps = eps_from_output(out, x_t, alpha_bar_t, self.prediction_type)
        cov_x_0, x_0 = None, None
        if self.variance == "learned" and self.second_head != "range":
            assert second is not None
            spread = second - eps.square() if self.second_head == "sn" else second
            cov_x_0 = covariance_of_x_0(spread, alpha_bar_t)
        if self.clip_x_0:
            x_0 = x_0_from_eps(x_t, eps, alpha_bar_t).clamp(-1, 1)
            eps = eps_from_x_0(x_t, x_0, alpha_bar_t) if self.fold else eps
            cov_x_0 = None if cov_x_0 is None else cov_x_0.clamp(0, 1)
        ranged = self.variance == "learned" and self.second_head == "range"
        kept = None if self.fold else x_0
        return Prediction(eps, second if ranged else None, cov_x_0, self.last_sigma, kept)


def mean_and_sigma(
    step: Step, x_t: Tensor, prediction: Prediction
) -> tuple[Tensor, float | Tensor]:
    """mu and sigma of the reverse step that a prediction gives.

    Raises:
        ValueError: the prediction has a learned variance and eta is not 1, or it is none of x_t.
    """
    check_prediction(prediction, x_t)
    mean = step.mean(x_t, prediction.eps, prediction.x_0)
    if prediction.cov_x_0 is not None:
        return mean, step.optimal_sigma(prediction.cov_x_0, prediction.last_sigma)
    if prediction.v_range is None:
        return mean, step.sigma
    if step.eta != 1:
        raise ValueError(f"a learned variance goes with eta 1, got eta {step.eta}")
    return mean, step.learned_sigma(prediction.v_range)


def check_prediction(prediction: object, x_t: Tensor) -> None:
    """Raises ValueError unless a denoiser has answered x_t with a prediction of its shape."""
    if not isinstance(prediction, Prediction):
        raise ValueError(
            f"a denoiser must return Prediction(eps), got {kind_of(prediction)}; of a network that "
            f"returns a tensor or diffusers' output, NetworkDenoiser(network, schedule) is one"
        )
    for name in ("eps", "v_range"):
        values = getattr(prediction, name)
        if values is None and name == "v_range":
            continue
        got = tuple(values.shape) if isinstance(values, Tensor) else kind_of(values)
        if got != tuple(x_t.shape):  # Another one would be broadcast without a word.
            raise ValueError(
                f"a denoiser's {name} must have the shape of x_t, {tuple(x_t.shape)}, got {got}"
            )


def eps_from_output(
    out: Tensor, x_t: Tensor, alpha_bar_t: AlphaBar, prediction_type: PredictionType
) -> Tensor:
    """The noise prediction that a network's output `out` means at x_t; all (B, C, H, W)."""
    if prediction_type == "sample":
        return eps_from_x_0(x_t, out, alpha_bar_t)
    if prediction_type == "v_prediction":
        return eps_from_v(x_t, out, alpha_bar_t)
    return out
