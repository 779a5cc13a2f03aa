"""From a latent code to images (Wu and De la Torre 2023, Eq. 4), stored or in lockstep."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cyclelight.chains.encode import CodeRecipe, EncodedStep, LastResidual, mean_and_sigma, scale
from cyclelight.chains.latent_code import LatentCode
from cyclelight.chains.loop import last
from cyclelight.diffusion.denoiser import Denoiser
from cyclelight.diffusion.schedule import CLEAN, NoiseSchedule
from cyclelight.diffusion.steps import Step
from cyclelight.domains.domain import Domain, check_pair


def decode_stream(
    target: Denoiser, code: LatentCode, *, schedule: NoiseSchedule
) -> Iterator[Tensor]:
    """The target chain y_s = mu(y_t) + sigma noise of a stored code, each (B, C, H, W).

    The last state is the decoded image.
    """
    y = code.x_T
    for t, s, noise in code.steps():
        mean, sigma = mean_and_sigma(Step.between(schedule, t, s, code.eta), y, target(y, t))
        y = mean if noise is None else mean + scale(sigma) * noise
        yield y


def lockstep(
    target: Denoiser,
    encoded_steps: Iterable[EncodedStep],
    *,
    schedule: NoiseSchedule,
    eta: float,
    last_residual: LastResidual = "keep",
) -> Iterator[Tensor]:
    """The target chain beside a running encoder, each state (B, C, H, W); nothing is stored.

        y_s = x_s + (mu_target(y_t) - mu_source(x_t))
                  + (sigma_target / sigma_source - 1) (x_s - mu_source(x_t))

    the last line only where variances are learned: fixed ones cancel. Algebraically this is
    y_s = mu_target(y_t) + sigma_target eps_t; written so, the same network on both sides gives back
    the image bit for bit, since both brackets are then exactly zero.
    """
    y: Tensor | None = None
    for encoded in encoded_steps:
        y = encoded.x_t if y is None else y
        step = Step.between(schedule, encoded.t, encoded.s, eta)
        mean, sigma = mean_and_sigma(step, y, target(y, encoded.t))
        if encoded.s == CLEAN and last_residual == "drop":
            y = mean
        else:
            y = encoded.x_s + (mean - encoded.mean)
            if isinstance(sigma, Tensor) or isinstance(encoded.sigma, Tensor):
                stretch = scale(sigma) / scale(encoded.sigma) - 1
                y = y + stretch * (encoded.x_s - encoded.mean)
        yield y


def stream(target: Domain, code: LatentCode | CodeRecipe) -> Iterator[Tensor]:
    """The states of the target chain of either kind of code; the last is the clean one.

    Raises:
        ValueError: the target cannot be paired with what made the code.
    """
    if isinstance(code, CodeRecipe):
        check_pair(code.source, target)
        return lockstep(
            target.denoiser,
            code.steps(),
            schedule=target.schedule,
            eta=code.eta,
            last_residual=code.last_residual,
        )
    target.check_states(code.x_T)
    if code.space != target.space:
        raise ValueError(
            f"the code of {code.source!r} cannot be decoded by {target.name!r}: "
            f"they differ in space: {code.space} and {target.space}"
        )
    difference = code.schedule.difference(target.schedule)
    if difference is not None:
        raise ValueError(
            f"the code of {code.source!r} cannot be decoded by {target.name!r}: "
            f"their noise schedules differ in {difference}"
        )
    return decode_stream(target.denoiser, code, schedule=target.schedule)


@torch.no_grad()
def decode(target: Domain, code: LatentCode | CodeRecipe, *, progress: bool = False) -> Tensor:
    """Decode a latent code with a domain.

    With the domain that encoded, a code with its last residual kept gives back the images: to
    rounding from a stored code, bit for bit from a recipe; where there is an autoencoder, what it
    makes of them.

    Args:
        target: the domain to decode into; its schedule, resolution, channels and autoencoder are
            the source's.
        code: what `encode` returned.
        progress: show a progress bar.

    Returns:
        Images (B, C, H, W), in [-1, 1] but for what the model overshoots: nothing is clamped.

    Raises:
        ValueError: the code and the target do not go together.
    """
    states = stream(target, code)
    return target.to_images(last(states, len(code.grid), "decode", progress=progress))
