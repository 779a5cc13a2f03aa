"""Chains side by side: what several of them ask alike in a step is computed once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cyclelight.diffusion.denoiser import Denoiser, Prediction
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule


class SharedNoise:
    """A source of noise that remembers its draws until `forget`.

    Args:
        noise: what draws, if asked for (purpose, timestep, shape) that was not drawn yet.
    """

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._drawn: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, purpose: str, timestep: int, like: Tensor) -> Tensor:
        key = (purpose, timestep, like.shape, like.dtype, like.device)
        if key not in self._drawn:
            self._drawn[key] = self._noise(purpose, timestep, like)
        return self._drawn[key]

    def forget(self) -> None:
        """Let go of all draws."""
        self._drawn.clear()


class SharedDenoiser:
    """A denoiser that remembers its predictions until `forget`.

    Only a call with equal states and timesteps, to the last bit, gets a prediction that was made
    before, so that results are those of the denoiser itself, whatever the chains do.

    Args:
        denoiser: what predicts.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._seen: list[tuple[Tensor, int | Tensor, Prediction]] = []

    @property
    def schedule(self) -> NoiseSchedule:
        """That of the denoiser."""
        return self._denoiser.schedule

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        for x, time, prediction in self._seen:
            if _equal(time, t) and x.shape == x_t.shape and torch.equal(x, x_t):
                return prediction
        prediction = self._denoiser(x_t, t)
        self._seen.append((x_t, t, prediction))
        return prediction

    def forget(self) -> None:
        """Let go of all predictions."""
        self._seen.clear()


def _equal(a: int | Tensor, b: int | Tensor) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def side_by_side(
    streams: Sequence[Iterator[Tensor]], shared: Sequence[SharedDenoiser | SharedNoise]
) -> Iterator[tuple[Tensor, ...]]:
    """The states of several chains of equal length, step by step.

    Args:
        streams: the chains.
        shared: what they have in common; it forgets after each step, so that memory does not grow
            with the number of steps.
    """
    for states in zip(*streams, strict=True):
        yield states
        for each in shared:
            each.forget()
