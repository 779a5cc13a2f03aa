"""Lockstep: the one pairing of two models, of which several published methods are settings."""

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from cyclelight.chains.source import EncodedStep, scale
from cyclelight.diffusion.denoiser import Denoiser, mean_and_sigma
from cyclelight.diffusion.schedule import CLEAN
from cyclelight.diffusion.steps import Step
from cyclelight.errors import BadValue

LastResidual = Literal["keep", "drop"]
"""Whether the residual of the step to the clean image is decoded, so that equal models give the
image back; or left out, as in the authors' program of CycleDiffusion."""


@runtime_checkable
class Blending(Protocol):
    """A target that knows after each step where its state may differ from the source's."""

    def blend(self, y_s: Tensor, x_s: Tensor) -> Tensor:
        """y_s, with x_s in its place where nothing may change; both (B, C, H, W)."""


def lockstep(
    target: Denoiser,
    encoded_steps: Iterable[EncodedStep],
    *,
    last_residual: LastResidual = "keep",
    mask: Tensor | None = None,
    draws: int = 1,
) -> Iterator[Tensor]:
    """The target chain beside a running source chain, each state (B, C, H, W); nothing is stored.

        y_s = x_s + (mu_target(y_t) - mu_source(x_t))
                  + (sigma_target / sigma_source - 1) (x_s - mu_source(x_t))

    the last line only where variances are learned: fixed ones cancel. Algebraically this is
    y_s = mu_target(y_t) + sigma_target eps_t (Wu and De la Torre 2023, Eq. 4); written so, the same
    network on both sides gives back the image bit for bit, since both brackets are then exactly
    zero.

    Args:
        target: the denoiser that decodes; one that is `Blending` has its say after each step.
        encoded_steps: the source chain.
        last_residual: see `LastResidual`.
        mask: (B, 1, H, W), bool: elsewhere each state is the source's own, so that the image stays
            as it is, bit for bit.
        draws: how many source chains of the same images follow one another in a batch; the first
            bracket is averaged over them.
    """
    y: Tensor | None = None
    for encoded in encoded_steps:
        y = encoded.x_t if y is None else y
        step = Step.between(target.schedule, encoded.t, encoded.s, encoded.eta)
        mean, sigma = mean_and_sigma(step, y, target(y, encoded.t))
        if encoded.s == CLEAN and last_residual == "drop":
            y = mean
        else:
            bracket = mean - encoded.mean
            if draws > 1:
                each = bracket.reshape(draws, -1, *bracket.shape[1:])
                bracket = each.mean(0, keepdim=True).expand_as(each).flatten(0, 1)
            y = encoded.x_s + bracket
            if isinstance(sigma, Tensor) or isinstance(encoded.sigma, Tensor):
                stretch = sigma / scale(encoded.sigma) - 1
                if isinstance(encoded.sigma, Tensor):  # Of no sigma there is nothing to stretch.
                    stretch = torch.where(encoded.sigma == 0, 0.0, stretch)
                y = y + stretch * (encoded.x_s - encoded.mean)
        if isinstance(target, Blending):
            y = target.blend(y, encoded.x_s)
        if mask is not None:
            y = torch.where(mask, y, encoded.x_s)
        yield y


def check_last_residual(last_residual: str) -> None:
    """Raises ValueError unless it is one of `LastResidual`."""
    if last_residual not in get_args(LastResidual):
        raise BadValue(
            "last_residual", f"last_residual must be 'keep' or 'drop', got {last_residual!r}"
        )
