"""From a stored latent code to images (Wu and De la Torre 2023, Eq. 4)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cyclelight.chains.latent_code import LatentCode
from cyclelight.chains.loop import last
from cyclelight.chains.source import scale
from cyclelight.diffusion.denoiser import Denoiser, mean_and_sigma
from cyclelight.diffusion.steps import Step
from cyclelight.domains.domain import Domain, check_domain
from cyclelight.errors import BadValue, kind_of


def decoder_chain(target: Denoiser, code: LatentCode) -> Iterator[Tensor]:
    """The target chain y_s = mu(y_t) + sigma noise of a stored code, each (B, C, H, W).

    The last state is the decoded one.
    """
    y = code.x_T
    for t, s, noise in code.steps():
        step = Step.between(target.schedule, t, s, code.eta)
        mean, sigma = mean_and_sigma(step, y, target(y, t))
        y = mean if noise is None else mean + scale(sigma) * noise
        yield y


@torch.no_grad()
def decode(target: Domain, code: LatentCode, *, progress: bool = False) -> Tensor:
    """Decode a latent code with a domain.

    With the domain that encoded, a code with its last residual kept gives back the images, to
    rounding; where there is an autoencoder, what it makes of them.

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
    check_domain("target", target)
    if not isinstance(code, LatentCode):
        told = f"code must be a LatentCode, such as encode returns, got {kind_of(code)}"
        raise BadValue("code", told)
    target.check_states(code.x_T)
    who = f"the code of {code.source!r} cannot be decoded by {target.name!r}"
    if code.space != target.space:
        raise ValueError(f"{who}: they differ in space: {code.space} and {target.space}")
    difference = code.schedule.difference(target.schedule)
    if difference is not None:
        raise ValueError(f"{who}: their noise schedules differ in {difference}")
    states = decoder_chain(target.denoiser, code)
    return target.to_images(last(states, len(code.grid), "decode", progress=progress))
