"""The grid of timesteps that a chain visits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cyclelight.diffusion.schedule import CLEAN, NoiseSchedule
from cyclelight.errors import BadValue, one_of, real, whole

Spacing = Literal["leading", "quadratic", "logsnr"]
"""How a grid's timesteps are spread: `leading` evenly; `quadratic` as i^2, close together at the
clean end (Song et al. 2021, appendix D.2); `logsnr` evenly in log(abar_t / (1 - abar_t)) (Lu et al.
2022, sec. 3.4)."""


def check_strength(strength: float) -> float:
    """The strength as a plain float; ValueError unless it is in (0, 1]."""
    strength = real("strength", strength)
    if not 0 < strength <= 1:
        raise BadValue("strength", f"strength must be in (0, 1], got {strength}")
    return strength


@dataclass(frozen=True)
class TimeGrid:
    """The training timesteps that a chain visits, descending; after the last comes `CLEAN`.

    `start` is where the chain begins: its state there is drawn from q(x_start | x_0).
    """

    timesteps: tuple[int, ...]

    def __post_init__(self) -> None:
        plain = tuple(whole("timesteps", t) for t in self.timesteps)
        object.__setattr__(self, "timesteps", plain)
        ordered = all(t > s for t, s in zip(self.timesteps, self.timesteps[1:], strict=False))
        if not self.timesteps or not ordered or self.timesteps[-1] < 0:
            raise ValueError("a grid needs at least one timestep, in descending order, all >= 0")

    @classmethod
    def whole(cls, schedule: NoiseSchedule, steps: int) -> "TimeGrid":
        """`steps` of the schedule's T timesteps, spread evenly and including 0.

        If T is a multiple of `steps`: 0, T/steps, 2T/steps, ...; otherwise the integer part of an
        even division of [0, T - 1] in float64. Both as in the authors' program of CycleDiffusion.
        Where the schedule has an offset, every (T // steps)-th timestep, shifted up by it, as in
        their program of Stable Diffusion: it does not include 0.

        Raises:
            ValueError: `steps` is no integer in 1 .. T, or the offset leads above T - 1.
        """
        T, steps, offset = schedule.timesteps, whole("steps", steps), schedule.offset
        if not 1 <= steps <= T:
            raise BadValue(
                "steps", f"steps must be in 1..{T} (the schedule's timesteps), got {steps}"
            )
        if (T // steps) * (steps - 1) + offset >= T:
            raise BadValue(
                "steps", f"steps {steps} with an offset of {offset} lead above timestep {T - 1}"
            )
        if T % steps == 0 or offset:
            ascending = np.arange(steps) * (T // steps) + offset
        else:
            ascending = (np.linspace(0, 1, steps) * (T - 1)).astype(int)
        return cls(tuple(int(t) for t in ascending[::-1]))

    @classmethod
    def truncated(cls, schedule: NoiseSchedule, steps: int, strength: float) -> "TimeGrid":
        """The lowest round(strength * steps), at least 1, timesteps of the whole grid.

        This is T_es of CycleDiffusion (Wu and De la Torre 2023, sec. 4.1) as a share of the grid.

        Raises:
            ValueError: `strength` is not in (0, 1], or `steps` not in 1 .. T.
        """
        strength = check_strength(strength)
        grid = cls.whole(schedule, steps)
        return cls(grid.timesteps[-max(1, round(strength * len(grid))) :])

    @classmethod
    def spaced(
        cls, schedule: NoiseSchedule, steps: int, strength: float, spacing: Spacing
    ) -> "TimeGrid":
        """round(strength * steps), at least 1, timesteps, spread as `Spacing` says.

        `leading` is `truncated`. The others run from 0 to round(strength * T) - 1, both included;
        two that round to one timestep move apart.

        Raises:
            ValueError: `strength` is not in (0, 1], `steps` not in 1 .. T, or the spacing unknown.
        """
        one_of(get_args(Spacing), spacing=spacing)
        leading = cls.truncated(schedule, steps, strength)
        if spacing == "leading" or len(leading) == 1:
            return leading
        start = max(len(leading), round(strength * schedule.timesteps)) - 1
        share = np.linspace(0, 1, len(leading))
        if spacing == "quadratic":
            exact = start * share**2
        else:
            alpha_bar = schedule.alphas_cumprod[: start + 1].double().numpy()
            snr = np.log(alpha_bar / (1 - alpha_bar))
            # Descending with t, as interpolation does not want it.
            exact = np.interp(
                snr[0] + (snr[-1] - snr[0]) * share, snr[::-1], np.arange(start, -1, -1)
            )
        ascending = np.round(exact).astype(int)
        own = np.arange(len(leading))
        ascending = np.maximum.accumulate(ascending - own) + own
        # At the top there may be no room left upwards.
        return cls(tuple(int(t) for t in np.minimum(ascending, start - own[::-1])[::-1]))

    def below(self, t: int) -> "TimeGrid":
        """The part of this grid below timestep t; its lowest timestep at least."""
        return TimeGrid(tuple(u for u in self.timesteps if u < t) or self.timesteps[-1:])

    @property
    def start(self) -> int:
        """The highest timestep."""
        return self.timesteps[0]

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """(t, s): each timestep and the next lower one, ending with (t, CLEAN)."""
        return zip(self.timesteps, (*self.timesteps[1:], CLEAN), strict=True)

    def __len__(self) -> int:
        return len(self.timesteps)
