"""The noise schedule.

Everything here is a value in float64: schedules and grids are made once, and nothing downstream
recomputes them. The clean image is the timestep `CLEAN` = -1, where alpha-bar is 1 (but see
`latent_schedule`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from cyclelight.errors import BadValue, at_least, one_of, real, whole

CLEAN = -1
MOST_TIMESTEPS = 100_000
"""More of them than any model has been trained with: a configuration that asks for more is wrong,
or means harm."""
LEAST_ALPHA_BAR = 1e-20
"""Below it nothing of the image would be left in float32, and predictions of it would be infinite
or NaN."""

ScheduleKind = Literal["linear", "scaled_linear", "cosine", "given"]

_DIFFUSERS_NAMES: dict[str, ScheduleKind] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The variances beta_t of the forward process, t = 0 .. timesteps - 1.

    Two domains translate into each other only if they were trained under the same schedule: compare
    with `==`, and ask `difference` for what differs.

    Args:
        kind: `linear` (Ho et al. 2020), `scaled_linear` (linear in sqrt(beta); Stable Diffusion),
            `cosine` (Nichol and Dhariwal 2021; takes no beta), or `given` by `betas`.
        beta_start: beta at t = 0, in (0, 1); `linear` and `scaled_linear`.
        beta_end: beta at t = timesteps - 1, in [beta_start, 1); `linear` and `scaled_linear`.
        timesteps: the number of training timesteps, T, at most `MOST_TIMESTEPS`.
        given_betas: the variances themselves, each in (0, 1); `given` only.

    Raises:
        ValueError: a value is out of range.
    """

    kind: ScheduleKind = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    timesteps: int = 1000
    given_betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        one_of(get_args(ScheduleKind), kind=self.kind)
        for name in ("beta_start", "beta_end"):
            object.__setattr__(self, name, real(name, getattr(self, name)))
        object.__setattr__(self, "timesteps", whole("timesteps", self.timesteps))
        at_least(1, timesteps=self.timesteps)
        if self.timesteps > MOST_TIMESTEPS:
            raise BadValue(
                "timesteps", f"timesteps must be at most {MOST_TIMESTEPS}, got {self.timesteps}"
            )
        if (self.kind == "given") != (self.given_betas is not None):
            raise BadValue(
                "given_betas", "given_betas goes with kind 'given', and with that kind only"
            )
        if self.given_betas is not None:
            if len(self.given_betas) != self.timesteps:
                raise BadValue(
                    "given_betas",
                    f"given_betas must hold timesteps = {self.timesteps} values, "
                    f"got {len(self.given_betas)}",
                )
            given = tuple(real("given_betas", beta) for beta in self.given_betas)
            object.__setattr__(self, "given_betas", given)
        if self.kind in ("linear", "scaled_linear") and not (
            0 < self.beta_start <= self.beta_end < 1
        ):
            raise ValueError(
                "betas must satisfy 0 < beta_start <= beta_end < 1, "
                f"got beta_start {self.beta_start} and beta_end {self.beta_end}"
            )
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise ValueError("every beta must lie in (0, 1)")
        if self.alphas_cumprod[-1] < LEAST_ALPHA_BAR:
            raise ValueError(
                f"the betas leave nothing of the image: alpha-bar ends at "
                f"{self.alphas_cumprod[-1]:.1g}, and may not fall below {LEAST_ALPHA_BAR:g}"
            )

    @classmethod
    def linear(
        cls, beta_start: float = 1e-4, beta_end: float = 0.02, timesteps: int = 1000
    ) -> "NoiseSchedule":
        """beta_t linear in t (Ho et al. 2020; the AFHQ models)."""
        return cls("linear", beta_start, beta_end, timesteps)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, timesteps: int = 1000
    ) -> "NoiseSchedule":
        """sqrt(beta_t) linear in t (Stable Diffusion)."""
        return cls("scaled_linear", beta_start, beta_end, timesteps)

    @classmethod
    def cosine(cls, timesteps: int = 1000) -> "NoiseSchedule":
        """alpha-bar a squared cosine, beta at most 0.999 (Nichol and Dhariwal 2021, Eq. 17)."""
        return cls("cosine", timesteps=timesteps)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """The schedule that a diffusers scheduler configuration describes.

        Raises:
            ValueError: the configuration asks for a schedule that this project does not know.
        """
        timesteps = whole("num_train_timesteps", config.get("num_train_timesteps", 1000))
        if config.get("rescale_betas_zero_snr"):
            raise ValueError("rescale_betas_zero_snr is not supported: alpha-bar may not reach 0")
        betas = config.get("trained_betas")
        if betas is not None:
            if not isinstance(betas, Sequence) or isinstance(betas, str):
                raise ValueError("trained_betas must be a list of numbers")
            return cls("given", timesteps=len(betas), given_betas=tuple(betas))
        name = str(config.get("beta_schedule", "linear"))
        if name not in _DIFFUSERS_NAMES:
            known = ", ".join(_DIFFUSERS_NAMES)
            raise ValueError(f"beta_schedule {name!r} is not supported; known are {known}")
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        return cls(_DIFFUSERS_NAMES[name], start, end, timesteps)

    def to_diffusers(self) -> dict[str, Any]:
        """The fields of a diffusers scheduler configuration; inverse of `from_diffusers`."""
        names = {kind: name for name, kind in _DIFFUSERS_NAMES.items()}
        return {
            "num_train_timesteps": self.timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": names.get(self.kind, "linear"),
            "trained_betas": None if self.given_betas is None else list(self.given_betas),
        }

    @cached_property
    def betas(self) -> Tensor:
        """beta_t, shape (T,), float64."""
        T = self.timesteps
        if self.given_betas is not None:
            betas = np.asarray(self.given_betas)
        elif self.kind == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, T)
        elif self.kind == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, T) ** 2
        else:
            f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
        return torch.from_numpy(betas.astype(np.float64))

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha-bar_t = prod_{u <= t} (1 - beta_u), shape (T,), float64, decreasing in (0, 1)."""
        return torch.cumprod(1 - self.betas, dim=0)

    def alpha_bar(self, t: int) -> float:
        """alpha-bar at timestep t; `clean_alpha_bar` at `CLEAN`."""
        return self.clean_alpha_bar if t == CLEAN else float(self.alphas_cumprod[t])

    @property
    def clean_alpha_bar(self) -> float:
        """What alpha-bar is for a clean image: 1."""
        return 1.0

    @property
    def offset(self) -> int:
        """How many timesteps a grid is shifted up: none."""
        return 0

    def alpha_bars(self, t: Tensor) -> Tensor:
        """alpha-bar of each of the timesteps (B,), on their device: (B, 1, 1, 1), float64."""
        return self.alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1)

    def difference(self, other: "NoiseSchedule") -> str | None:
        """The first field in which two schedules differ, with both values; None if equal."""
        for field in ("timesteps", "kind", "beta_start", "beta_end"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs and (field == "timesteps" or not self._same_values(other)):
                return f"{field} {mine} and {theirs}"
        if not self._same_values(other):
            return "given_betas"
        for field in ("clean_alpha_bar", "offset"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if not math.isclose(mine, theirs, rel_tol=1e-6):
                return f"{field} {mine} and {theirs}"
        return None

    def _same_values(self, other: "NoiseSchedule") -> bool:
        # Tables that other programs stored in float32 differ in the 7th digit.
        return torch.allclose(self.alphas_cumprod, other.alphas_cumprod, rtol=1e-6, atol=1e-9)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and self.difference(other) is None

    def __hash__(self) -> int:
        return hash(self.timesteps)
