"""What a denoiser is trained on: the noise-prediction loss, and that of a learned variance.

Every weighting multiplies the same squared error of eps, whatever the network outputs. SNR is the
signal-to-noise ratio alpha-bar / (1 - alpha-bar).
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.special import ndtr

from cyclelight.diffusion.denoiser import NetworkDenoiser, eps_from_output
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.diffusion.steps import add_noise, eps_from_x_0, learned_log_variance

Weighting = Literal["uniform", "p2", "min_snr"]


def denoising_loss(
    denoiser: NetworkDenoiser,
    x_0: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    *,
    weighting: Weighting,
) -> Tensor:
    """The weighted squared error of the predicted noise, mean over pixels: (B,).

    Where the network learns its variance, 1e-3 T times `variance_loss` comes on top: L_hybrid of
    Nichol and Dhariwal (2021, Eq. 16).

    Args:
        x_0: clean images (B, C, H, W) in [-1, 1].
        timesteps: (B,) integers in 0 .. T - 1.
        noise: N(0, I), same shape as x_0.
    """
    schedule = denoiser.schedule
    alpha_bar_t = schedule.alpha_bars(timesteps)
    weight = loss_weight(alpha_bar_t, weighting).flatten().to(x_0.dtype)
    alpha_bar_t = alpha_bar_t.to(x_0.dtype)
    x_t = add_noise(x_0, noise, alpha_bar_t)
    out, v_range = denoiser.output(x_t, timesteps)
    eps = eps_from_output(out, x_t, alpha_bar_t, denoiser.prediction_type)
    loss = weight * (eps - noise).square().mean(dim=(1, 2, 3))
    if v_range is None:
        return loss
    return loss + 1e-3 * schedule.timesteps * variance_loss(
        schedule, timesteps, x_0, x_t, eps, v_range
    )


def loss_weight(alpha_bar: Tensor, weighting: Weighting) -> Tensor:
    """The weight of the eps error at each alpha-bar, same shape, > 0.

    - `uniform`: 1 (Ho et al. 2020, Eq. 14).
    - `p2`: 1 / (1 + SNR) (Choi et al. 2022, Eq. 8 with k = 1, gamma = 1), less weight where little
      noise is left. The models of the paper's AFHQ experiments were trained with it.
    - `min_snr`: min(SNR, 5) / SNR (Hang et al. 2023, sec. 3.4, gamma = 5).
    """
    snr = alpha_bar / (1 - alpha_bar)
    if weighting == "p2":
        return 1 / (1 + snr)
    if weighting == "min_snr":
        return snr.clamp(max=5) / snr
    return snr.new_ones(snr.shape)


def variance_loss(
    schedule: NoiseSchedule,
    timesteps: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    eps: Tensor,
    v_range: Tensor,
) -> Tensor:
    """What a learned variance costs, in bits, mean over pixels: (B,).

    For t > 0, the divergence of the step from t to t - 1 from the posterior; for t = 0, minus the
    log-likelihood of the 8-bit image (Ho et al. 2020, Eq. 5 and 13). Only the variance learns from
    it: no gradient reaches `eps`.

    Args:
        timesteps: (B,) integers.
        x_0: clean images (B, C, H, W) in [-1, 1].
        x_t: x_0 noised to the timesteps.
        eps: predicted noise.
        v_range: the network's range of the variance, in [-1, 1] (`Step.learned_sigma`).
    """
    t = timesteps.cpu()
    a_t, a_s = schedule.alphas_cumprod, torch.cat([torch.ones(1), schedule.alphas_cumprod[:-1]])
    beta = 1 - a_t / a_s
    beta_tilde = beta * (1 - a_s) / (1 - a_t)
    beta_tilde[:1] = beta_tilde[1:2] if len(beta) > 1 else beta  # 0 has no logarithm
    slope = beta / ((1 - a_t) * a_t / a_s).sqrt()  # of the step's mean in eps

    def at_t(table: Tensor) -> Tensor:
        return table[t].view(-1, 1, 1, 1).to(x_0)

    log_variance = learned_log_variance(v_range, at_t(beta.log()), at_t(beta_tilde.log()))
    gap = at_t(slope) * (eps.detach() - eps_from_x_0(x_t, x_0, at_t(a_t)))
    divergence = log_variance - at_t(beta_tilde.log()) - 1
    divergence = (divergence + (at_t(beta_tilde) + gap.square()) / log_variance.exp()) / 2
    # The posterior's mean at t = 0 is x_0, so that the gap is how far the step's mean is from it.
    sigma = (log_variance / 2).exp()
    above = ndtr((gap + 1 / 255) / sigma).where(x_0 < 0.999, 1)
    below = ndtr((gap - 1 / 255) / sigma).where(x_0 > -0.999, 0)
    surprise = -(above - below).clamp(min=1e-12).log()
    first = (t == 0).view(-1, 1, 1, 1).to(x_0.device)
    return surprise.where(first, divergence).mean(dim=(1, 2, 3)) / math.log(2)


def covariance_loss(
    denoiser: NetworkDenoiser, x_0: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """The squared error of a covariance head, mean over pixels: (B,).

    Its target is eps^2 for SN-DDPM (Bao et al. 2022, Eq. 13), and (eps - eps_hat)^2 for NPR-DDPM
    (Eq. 16), through which no gradient goes.

    Args:
        denoiser: has a covariance head: `second_head` is `sn` or `npr`.
        x_0: clean images (B, C, H, W) in [-1, 1].
        timesteps: (B,) integers in 0 .. T - 1.
        noise: N(0, I), same shape as x_0.
    """
    alpha_bar_t = denoiser.schedule.alpha_bars(timesteps).to(x_0.dtype)
    x_t = add_noise(x_0, noise, alpha_bar_t)
    out, head = denoiser.output(x_t, timesteps)
    assert head is not None
    target = noise
    if denoiser.second_head == "npr":
        target = noise - eps_from_output(out, x_t, alpha_bar_t, denoiser.prediction_type).detach()
    return (target.square() - head).square().mean(dim=(1, 2, 3))


def finite(loss: Tensor, step: int) -> Tensor:
    """`loss` as it is: to be asked before its gradient reaches the weights, and these a checkpoint.

    Raises:
        RuntimeError: it is infinite or NaN.
    """
    if not loss.isfinite():
        raise RuntimeError(
            f"the loss is {loss.item()} at step {step}: try a lower learning_rate, a longer "
            f"warmup_steps or trainer.gradient_clip_val; the checkpoints are kept"
        )
    return loss
