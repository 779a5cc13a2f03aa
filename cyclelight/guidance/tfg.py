"""Training-free guidance (Ye et al. 2024): a gradient on the clean image at every step of a chain.

Not of the target p(z | C), but cheap: the chain is run once, not at every step of a sampler.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cyclelight.diffusion.denoiser import Denoiser, Prediction
from cyclelight.diffusion.steps import x_0_from_eps
from cyclelight.errors import BadValue, at_least, plain_numbers
from cyclelight.guidance.generators import DomainGenerator, Generator
from cyclelight.guidance.langevin import Kept
from cyclelight.guidance.steering import Steering

Value = Callable[[Tensor, int], Tensor]
"""(clean states (B, C, H, W), number of the call) => weighted energy (B,)."""


@dataclass(frozen=True)
class TFG(Steering):
    """Training-free guidance (Ye et al. 2024, Algorithm 1, without recurrence and smoothing).

    The energy of the predicted clean image x_0_hat is lowered at every step, by its gradient in x_t
    (strength rho) and by several in x_0_hat itself (strength mu); both grow with the signal, as
    abar_t / mean abar. rho alone is DPS without its normalisation, mu alone is MPGD. Only for
    domains, and for eta above 0 or a learned variance as well as for DDIM.

    Args:
        rho: strength of the gradient in x_t.
        mu: strength of the gradients in x_0_hat.
        iterations: gradients in x_0_hat at each step.

    Raises:
        ValueError: a setting is out of range.
    """

    rho: float = 0.05
    mu: float = 0.05
    iterations: int = 4

    def __post_init__(self) -> None:
        plain_numbers(self)
        at_least(0, rho=self.rho, mu=self.mu, iterations=self.iterations)
        if self.rho == 0 and (self.mu == 0 or self.iterations == 0):
            raise BadValue("rho", "rho must be above 0 where mu or iterations is 0")

    def length(self, generator: Generator) -> int:
        if not isinstance(generator, DomainGenerator):
            raise BadValue(
                "sampler",
                f"sampler: TFG is for the chain of a domain, which {generator.name} is not",
            )
        return generator.calls

    def calls(self, generator: Generator, way: int) -> int:
        """The chain itself, and that of the first image."""
        return 2 * generator.calls

    def steer(
        self,
        generator: Generator,
        energies: Callable[[Tensor, int], Tensor],
        weights: Tensor,
        z: Tensor,
        on_step: Callable[[], object],
    ) -> tuple[Tensor, Kept, list[Tensor]]:
        """(images, what is known of the way, the predicted clean images on it).

        Args:
            generator: a `DomainGenerator`.
            energies: (images, number of the step) => each energy, unweighted, (K, B).
            weights: of the energies, (K,).
            z: the noise of the chain, (B, d), which stays as it is.
            on_step: called after each step.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        assert isinstance(generator, DomainGenerator)
        domain, traces, seen = generator.domain, list[Tensor](), list[Tensor]()

        def value(x_0: Tensor, step: int) -> Tensor:
            values = energies(domain.to_images(x_0), step)
            if len(traces) == step:
                traces.append(values.detach())
            return (weights[:, None] * values).sum(dim=0)

        def note(x_0: Tensor) -> None:
            seen.append(domain.to_images(x_0))
            on_step()

        steered = Steered(domain.denoiser, self, value, note)
        other = DomainGenerator(
            replace(domain, denoiser=steered), len(generator.grid), generator.eta
        )
        other.noisy, other.shapes = generator.noisy, generator.shapes
        with torch.no_grad():
            images = other(z)
        squares = z.square().mean(dim=1).expand(len(traces) + 1, -1)
        restarts = torch.zeros(len(z), dtype=torch.long, device=z.device)
        return images, Kept(z, torch.stack(traces), squares, restarts), seen


class Steered:
    """A denoiser whose predicted clean image is moved to where an energy is lower.

    With x_0 = x_0_hat + Delta_0 + Delta_t / sqrt(abar_t) and eps as it was, the step of any eta is
    that of the paper: its mean moves by sqrt(abar_s) Delta_0 + Delta_t / sqrt(alpha_t).

    Args:
        denoiser: what is guided.
        settings: the strengths.
        value: the weighted energy.
        note: called with the moved clean states at the end of each call.
    """

    def __init__(
        self, denoiser: Denoiser, settings: TFG, value: Value, note: Callable[[Tensor], object]
    ) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.settings, self.value, self.note = settings, value, note
        self.count = 0

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        """The prediction with its clean image moved; t is one for the whole batch."""
        assert isinstance(t, int)
        settings, a = self.settings, self.schedule.alpha_bar(t)
        strength = a / float(self.schedule.alphas_cumprod.mean())
        step, self.count = self.count, self.count + 1
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            prediction = self.denoiser(x, t)
            x_0 = prediction.x_0
            x_0 = x_0_from_eps(x, prediction.eps, a) if x_0 is None else x_0
            (slope,) = torch.autograd.grad(self.value(x_0, step).sum(), x)
        _check(slope, step)
        moved = x_0.detach() - settings.rho * strength * slope / a**0.5
        for _ in range(settings.iterations if settings.mu else 0):
            with torch.enable_grad():
                y = moved.detach().requires_grad_(True)
                (slope,) = torch.autograd.grad(self.value(y, step).sum(), y)
            _check(slope, step)
            moved = moved - settings.mu * strength * slope
        self.note(moved)
        eps, cov = prediction.eps.detach(), prediction.cov_x_0
        return replace(
            prediction, eps=eps, x_0=moved, cov_x_0=None if cov is None else cov.detach()
        )


def _check(slope: Tensor, step: int) -> None:
    # Nothing random is in the way of the same z, so that to begin anew would change nothing.
    if not slope.isfinite().all():
        raise RuntimeError(
            f"the gradient of the energy is not finite after {step} steps of the chain: a smaller "
            f"rho, mu or weight of the energies may help, or trainer.precision 32-true"
        )
