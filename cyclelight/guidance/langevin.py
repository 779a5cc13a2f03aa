"""Samplers of z under an energy of G(z) (Wu and De la Torre 2023, sec. 3.5).

The target is p(z | C) ~ N(z; 0, I) exp(-E(G(z))), E the weighted sum of energies.
"""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from cyclelight.diffusion.noise import Noise
from cyclelight.errors import BadValue, at_least, plain_numbers
from cyclelight.guidance.generators import Generator
from cyclelight.guidance.steering import Steering

log = logging.getLogger(__name__)

RESTARTS = 3
"""How often a chain may begin anew before it is given up."""


class Problem(Protocol):
    """What is sampled: an energy of z and its gradient."""

    def __call__(self, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(each energy of each sample, unweighted, (K, B); gradient of the weighted sum, (B, d)).

        Args:
            z: (B, d).
            step: number of the step, on which what is random in an energy depends.
        """


@dataclass(frozen=True)
class Visit:
    """A state of the chains.

    Args:
        z: (B, d).
        values: each energy there, unweighted, (K, B); None after the last update, where none is
            taken.
        restarts: how often each chain has begun anew, (B,).
    """

    z: Tensor
    values: Tensor | None
    restarts: Tensor


class Sampler(Steering):
    """Updates of z by the gradient of an energy."""

    steps: int
    """Updates of a chain, each a call of the generator, forwards and backwards."""

    def length(self, generator: Generator) -> int:
        return self.steps

    def calls(self, generator: Generator, way: int) -> int:
        """One of the generator at each step, one for each image that is shown."""
        return generator.calls * (self.steps + 2 + way)

    def chain(self, problem: Problem, z: Tensor, noise: Noise) -> Iterator[Visit]:
        """The states z_0 = z to z_n, n = `steps`; the energies of z_n are not taken.

        Where an energy or its gradient is not finite, that chain begins anew at its z_0.

        Args:
            problem: the energy.
            z: where to begin, (B, d).
            noise: called for ("langevin", i) at step i, if the sampler draws any.

        Raises:
            RuntimeError: an energy is not finite at z_0, or a chain began anew too often.
        """
        start, restarts = z, torch.zeros(len(z), dtype=torch.long, device=z.device)
        memory = self.begin(z)
        first: tuple[Tensor, Tensor] | None = None
        for step in range(self.steps):
            values, gradient = problem(z, step)
            bad = ~(values.isfinite().all(dim=0) & gradient.isfinite().all(dim=1))
            if bad.any():
                restarts = restarts + bad
                if first is None or int(restarts.max()) > RESTARTS:
                    where = "where the chain begins" if first is None else f"after {step} steps"
                    raise RuntimeError(
                        f"the energy of z or its gradient is not finite {where}: a smaller step or "
                        f"weight of the energies may help, or trainer.precision 32-true"
                    )
                log.warning("%d chains diverged at step %d and begin anew", int(bad.sum()), step)
                z = torch.where(bad[:, None], start, z)
                values = torch.where(bad, first[0], values)
                gradient = torch.where(bad[:, None], first[1], gradient)
                memory = tuple(m.masked_fill(bad[:, None], 0) for m in memory)
            first = first or (values, gradient)
            yield Visit(z, values, restarts)
            z, memory = self.update(z, gradient, step, noise, memory)
        yield Visit(z, None, restarts)

    def begin(self, z: Tensor) -> tuple[Tensor, ...]:
        """What is kept from step to step, at the beginning: zeros, (B, d) each."""
        return ()

    @abstractmethod
    def update(
        self, z: Tensor, gradient: Tensor, step: int, noise: Noise, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(the next z, what is kept).

        Args:
            z: (B, d).
            gradient: of E there, without the prior, (B, d).
            step: number of the step.
            noise: see `chain`.
            memory: what was kept.
        """


@dataclass(frozen=True)
class Langevin(Sampler):
    """Unadjusted Langevin dynamics as published: the prior is one of the energies.

    z <- z - (s / 2) (prior z + grad E) + sqrt(s) omega. Without an energy its variance is
    1 / (1 - s / 4), not 1.

    Args:
        steps: updates.
        step_size: s.
        prior: weight of |z|^2 / 2.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 200
    step_size: float = 0.05
    prior: float = 1.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        at_least(1, steps=self.steps)
        at_least(0, prior=self.prior)
        _check_step(self.step_size, 4.0)

    def update(
        self, z: Tensor, gradient: Tensor, step: int, noise: Noise, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        s = self.step_size
        drift = z - s / 2 * (gradient + self.prior * z)
        return drift + sqrt(s) * noise("langevin", step, z), memory


@dataclass(frozen=True)
class CrankNicolson(Sampler):
    """Langevin dynamics that are implicit in the prior (Cotter et al. 2013, sec. 4, theta 1/2).

    z <- ((1 - s / 4) z - (s / 2) grad E + sqrt(s) omega) / (1 + s / 4): without an energy N(0, I)
    stays exactly as it is, at any step size.

    Args:
        steps: updates.
        step_size: s.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 200
    step_size: float = 0.05

    def __post_init__(self) -> None:
        plain_numbers(self)
        at_least(1, steps=self.steps)
        _check_step(self.step_size, 4.0)

    def update(
        self, z: Tensor, gradient: Tensor, step: int, noise: Noise, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        s = self.step_size
        explicit = (1 - s / 4) * z - s / 2 * gradient
        return (explicit + sqrt(s) * noise("langevin", step, z)) / (1 + s / 4), memory


@dataclass(frozen=True)
class Adam(Sampler):
    """Plain optimisation of z by Adam, with the prior |z|^2 / 2 as a penalty; no noise.

    Args:
        steps: updates.
        learning_rate: of Adam.
        prior: weight of |z|^2 / 2.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 200
    learning_rate: float = 0.05
    prior: float = 1.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        at_least(1, steps=self.steps)
        at_least(0, prior=self.prior)
        if not self.learning_rate > 0:
            raise BadValue(
                "learning_rate", f"learning_rate must be above 0, got {self.learning_rate}"
            )

    def begin(self, z: Tensor) -> tuple[Tensor, ...]:
        # How many updates a chain has had since it began, too, since it may begin anew.
        return torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(z[:, :1])

    def update(
        self, z: Tensor, gradient: Tensor, step: int, noise: Noise, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Kingma and Ba 2015, Algorithm 1, with its defaults."""
        mean, square, count = memory
        gradient = gradient + self.prior * z
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        count = count + 1
        ratio = mean / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
        return z - self.learning_rate * ratio, (mean, square, count)


def _check_step(step_size: float, most: float) -> None:
    # From 4 on, the chain leaves its place even without an energy.
    if not 0 < step_size < most:
        raise BadValue("step_size", f"step_size must be in (0, {most:g}), got {step_size}")


@dataclass(frozen=True)
class Kept:
    """What a chain comes to.

    Args:
        z: the state that is kept, (B, d).
        values: the energies on the way, unweighted, (n, K, B).
        squares: |z|^2 / d on the way, the last state's included, (n + 1, B).
        restarts: how often each chain has begun anew, (B,).
    """

    z: Tensor
    values: Tensor
    squares: Tensor
    restarts: Tensor


def keep(visits: Iterator[Visit], weights: Tensor | None) -> Kept:
    """The last state of each chain, or with `weights` (K,) the one of least weighted energy.

    The best is looked for among the states before each update, so that the state after the last
    one, whose energy is not known, is not among them; as in the published program.
    """
    values, squares, best, least = [], [], None, None
    for visit in visits:
        squares.append(visit.z.square().mean(dim=1))
        if visit.values is None:
            break
        values.append(visit.values)
        if weights is not None:
            energy = (weights[:, None] * visit.values).sum(dim=0)
            if best is None or least is None:
                best, least = visit.z, energy
            better = energy < least
            best = torch.where(better[:, None], visit.z, best)
            least = torch.where(better, energy, least)
    z = visit.z if best is None else best
    return Kept(z, torch.stack(values), torch.stack(squares), visit.restarts)
