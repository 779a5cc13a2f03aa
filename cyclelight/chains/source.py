"""The source chain: an image on its way from noise to clean, and where a model would have gone.

The chain itself needs no network, and it runs in the direction in which decoders consume it, so
that nothing has to be stored between the two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from cyclelight.diffusion.denoiser import Denoiser, Prediction, check_prediction, mean_and_sigma
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import CLEAN
from cyclelight.diffusion.steps import Eta, EtaOrPair, Step, add_noise
from cyclelight.errors import BadValue, real

Draw = Literal["chain", "independent", "one"]
"""How the states x_t of a source chain are drawn; each is one of q(x_t | x_0):

- `chain`: each from the posterior q(x_s | x_t, x_0) of the one before (Wu and De la Torre 2023,
  Eq. 5).
- `independent`: each with fresh noise (Huberman-Spiegelglas et al. 2024, Eq. 8).
- `one`: all with the same noise, which `chain` becomes where sigma is 0."""


@dataclass(frozen=True)
class EncodedStep:
    """One step of a source chain.

    Args:
        t, s: the timestep left and the one reached.
        x_t, x_s: the chain at both, (B, C, H, W).
        mean: the model's mean mu(x_t), so that the residual is x_s - mean.
        sigma: the model's standard deviation: a number, or a tensor where it is learned.
        eta: that of the step, which a decoder must have too.
    """

    t: int
    s: int
    x_t: Tensor
    x_s: Tensor
    mean: Tensor
    sigma: float | Tensor
    eta: Eta

    @property
    def noise(self) -> Tensor:
        """The residual over sigma; the residual itself where sigma is 0."""
        return (self.x_s - self.mean) / scale(self.sigma)


def scale(sigma: float | Tensor) -> float | Tensor:
    """What a code's noise is counted in: sigma, or 1 where sigma is 0."""
    if isinstance(sigma, Tensor):  # A covariance head, which errs to both sides, often says 0.
        return torch.where(sigma == 0, 1.0, sigma)
    return 1.0 if sigma == 0 else sigma


def source_chain(
    source: Denoiser,
    x_0: Tensor,
    *,
    grid: TimeGrid,
    eta: Eta,
    noise: Noise,
    draw: Draw = "chain",
    parallel: int = 0,
) -> Iterator[EncodedStep]:
    """The steps of a source chain, from the grid's start down to the clean image x_0, exactly.

    Args:
        source: the denoiser whose means are subtracted.
        x_0: clean states (B, C, H, W).
        grid: the timesteps to visit.
        eta: of the model's steps, and of the posterior's.
        noise: called for ("start", grid.start) and ("posterior", t) at every t but the last; or for
            ("independent", t) at every t; or for ("one", grid.start).
        draw: how the states are drawn.
        parallel: how many states a call of the network may take: as the chain needs no network, the
            means of several timesteps are taken in one call. 0 for one timestep a call, whose
            results equal those of another model on the same states to the last bit.
    """
    states = _states(source, x_0, grid, eta, noise, draw)
    together = max(1, parallel // max(1, len(x_0)))
    x_t = next(states)
    all_pairs = list(grid.pairs)
    for start in range(0, len(grid), together):
        pairs = all_pairs[start : start + together]
        chunk = [x_t, *islice(states, len(pairs))]
        steps = [Step.between(source.schedule, t, s, eta) for t, s in pairs]
        for (t, s), step, x_t, x_s, prediction in zip(
            pairs, steps, chunk, chunk[1:], _predictions(source, chunk, pairs), strict=False
        ):
            mean, sigma = mean_and_sigma(step, x_t, prediction)
            yield EncodedStep(t, s, x_t, x_s, mean, sigma, step.eta)
        x_t = chunk[-1]


def descending_chain(source: Denoiser, x_t: Tensor, *, grid: TimeGrid) -> Iterator[EncodedStep]:
    """The steps of a model's own deterministic chain, which knows of no image: its states are its
    means.

    Args:
        source: the denoiser.
        x_t: states at the grid's start, (B, C, H, W), such as an inversion gives.
        grid: the timesteps to visit.
    """
    for t, s in grid.pairs:
        step = Step.between(source.schedule, t, s, 0.0)
        mean, sigma = mean_and_sigma(step, x_t, source(x_t, t))
        yield EncodedStep(t, s, x_t, mean, mean, sigma, step.eta)
        x_t = mean


def _predictions(
    source: Denoiser, states: Sequence[Tensor], pairs: Sequence[tuple[int, int]]
) -> list[Prediction]:
    """Of the states at the timesteps that the pairs leave, in one call."""
    if len(pairs) == 1:
        return [source(states[0], pairs[0][0])]
    batch = len(states[0])
    x = torch.cat(list(states[: len(pairs)]))
    t = torch.tensor([t for t, _ in pairs], device=x.device).repeat_interleave(batch)
    prediction = source(x, t)
    check_prediction(prediction, x)
    values = {field.name: getattr(prediction, field.name) for field in fields(Prediction)}

    def part(i: int) -> Prediction:
        # The others are numbers, of the denoiser itself.
        cut: Any = {n: v[i : i + batch] for n, v in values.items() if isinstance(v, Tensor)}
        return replace(prediction, **cut)

    return [part(i) for i in range(0, len(x), batch)]


def check_eta(argument: str, eta: float) -> float:
    """Eta as a plain float; ValueError, naming the argument, unless it is in [0, 1]."""
    eta = real(argument, eta)
    if not 0 <= eta <= 1:
        raise BadValue(argument, f"{argument} must be in [0, 1], got {eta:g}")
    return eta


def check_eta_or_pair(argument: str, eta: EtaOrPair) -> EtaOrPair:
    """The same of an eta that may be a pair, at the clean end and at the noisy one."""
    if not isinstance(eta, tuple | list):
        return check_eta(argument, eta)
    if len(eta) != 2:
        told = f"{argument} must be a number, got {eta}; two are those of the clean and noisy end"
        raise BadValue(argument, told)
    clean, noisy = (check_eta(argument, each) for each in eta)
    return clean, noisy


def _states(
    source: Denoiser, x_0: Tensor, grid: TimeGrid, eta: Eta, noise: Noise, draw: Draw
) -> Iterator[Tensor]:
    """x_t at each timestep of the grid, then x_0 itself."""
    schedule = source.schedule
    if draw == "one":
        drawn = noise("one", grid.start, x_0)
        yield from (add_noise(x_0, drawn, schedule.alpha_bar(t)) for t in grid.timesteps)
    elif draw == "independent":
        for t in grid.timesteps:
            yield add_noise(x_0, noise("independent", t, x_0), schedule.alpha_bar(t))
    else:
        x_t = add_noise(x_0, noise("start", grid.start, x_0), schedule.alpha_bar(grid.start))
        for t, s in grid.pairs:
            yield x_t
            if s != CLEAN:
                step = Step.between(schedule, t, s, eta)
                drawn = torch.zeros_like(x_0) if step.eta == 0 else noise("posterior", t, x_0)
                x_t = step.posterior(x_t, x_0, drawn)
    yield x_0
