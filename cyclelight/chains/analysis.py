"""How far a pair of models moves an image at each step, and what bounds it (the paper's Eq. 8)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee

import torch
from torch import Tensor

from cyclelight.chains.lockstep import lockstep
from cyclelight.chains.source import EncodedStep
from cyclelight.diffusion.denoiser import Denoiser, mean_and_sigma
from cyclelight.diffusion.steps import Step


@dataclass(frozen=True)
class PairStep:
    """One step of a source chain and of the target chain beside it.

    All but the states and timesteps have shape (B,), and distances are root mean squares over C, H
    and W, in the units of the states.

    Args:
        t, s: the timestep left and the one reached.
        x_s, y_s: both chains where they arrive, (B, C, H, W).
        K: what mu_target does to the difference of the chains, |mu_target(y_t) - mu_target(x_t)| /
            |y_t - x_t|; 0 where there is no difference.
        S: how far the models disagree on the source chain, |mu_target(x_t) - mu_source(x_t)|.
        difference: |y_s - x_s|.
        bound: B_s = (K_t + 1) B_t + S_t (Wu and De la Torre 2023, Eq. 8).
        sharp: the same without the 1, which is all that the triangle inequality needs.
        mean_square: of the code's noise, 1 where it is Gaussian; of the residual itself where
            sigma is 0, as on the step to the clean image.
    """

    t: int
    s: int
    x_s: Tensor
    y_s: Tensor
    K: Tensor
    S: Tensor
    difference: Tensor
    bound: Tensor
    sharp: Tensor
    mean_square: Tensor


def analysed_steps(target: Denoiser, encoded_steps: Iterable[EncodedStep]) -> Iterator[PairStep]:
    """The steps of lockstep, with K_t, S_t and the bound on their difference.

    K_t is no Lipschitz constant of the network, which nobody knows, but the quotient between the
    two states that the chains really have: at most that constant, and enough for the bound to hold
    for this pair of chains. It takes one call of the target's network more than translating.

    Args:
        target: the denoiser that decodes.
        encoded_steps: the source chain.

    Raises:
        ValueError: a variance is learned, of which Eq. 8 says nothing.
    """
    ahead, own = tee(encoded_steps)
    bound = sharp = before = None
    for encoded, y_s in zip(own, lockstep(target, ahead), strict=True):
        step = Step.between(target.schedule, encoded.t, encoded.s, encoded.eta)
        mean, sigma = mean_and_sigma(step, encoded.x_t, target(encoded.x_t, encoded.t))
        if isinstance(sigma, Tensor) or isinstance(encoded.sigma, Tensor):
            raise ValueError("Eq. 8 is of models with fixed variances, and one learned its own")
        disagreement, difference = mean - encoded.mean, y_s - encoded.x_s
        S, now = _rms(disagreement), _rms(difference)
        if before is None or bound is None or sharp is None:
            bound = sharp = before = torch.zeros_like(now)
        # y_s - x_s = mu_target(y_t) - mu_source(x_t), so that what is left is of mu_target alone.
        moved = _rms(difference - disagreement)
        K = torch.where(before > 0, moved / before.clamp(min=torch.finfo(before.dtype).tiny), 0.0)
        bound, sharp = (K + 1) * bound + S, K * sharp + S
        squares = encoded.noise.square().flatten(1).mean(dim=1)
        yield PairStep(
            encoded.t, encoded.s, encoded.x_s, y_s, K, S, now, bound, sharp, mean_square=squares
        )
        before = now


def _rms(x: Tensor) -> Tensor:
    """(B, ...) => (B,)."""
    return x.square().flatten(1).mean(dim=1).sqrt()
