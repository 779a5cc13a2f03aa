"""What the mathematics is tested against: closed forms, recorded networks and recorded noises."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from cyclelight import Domain, NoiseSchedule, Prediction

SCHEDULE = NoiseSchedule.linear()
VECTORS = Path(__file__).parent / "vectors" / "step"


def vectors(name: str) -> dict[str, Tensor]:
    """The arrays of a recorded file."""
    return load_file(VECTORS / f"{name}.safetensors")


class Gaussian:
    """The exact denoiser of pixels that are independently N(mean, std^2)."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x_t: Tensor, t: int, condition: Any = None) -> Prediction:
        a = float(SCHEDULE.alphas_cumprod[t])
        spread = a * self.std**2 + 1 - a
        return Prediction(eps=(1 - a) ** 0.5 * (x_t - a**0.5 * self.mean) / spread)


class Table:
    """The networks of the recorded runs: eps = a(t) x + b(t)."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b

    def __call__(self, x_t: Tensor, t: int, condition: Any = None) -> Prediction:
        return Prediction(eps=self.a[t].item() * x_t + self.b[t].item())


class Recorded:
    """Noises in the order in which a recorded run drew them, as float64."""

    def __init__(self, noises: Sequence[Tensor]) -> None:
        self.noises = iter(noises)

    def __call__(self, purpose: str, timestep: int, like: Tensor) -> Tensor:
        return next(self.noises).to(like).expand_as(like)


def domain(denoiser: Any, resolution: int, name: str = "domain") -> Domain:
    """A domain of the linear schedule around any denoiser."""
    return Domain(denoiser=denoiser, schedule=SCHEDULE, resolution=resolution, name=name)
