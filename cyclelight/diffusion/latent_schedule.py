"""The schedule as latent diffusion and Stable Diffusion run it (Rombach et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import at_least, whole


@dataclass(frozen=True, eq=False)
class LatentDiffusionSchedule(NoiseSchedule):
    """A schedule as the programs of latent diffusion and Stable Diffusion run it.

    Args:
        set_alpha_to_one: whether alpha-bar of a clean image is 1; else, as in these programs, that
            of timestep 0, so that clean images count as its states.
        steps_offset: how many timesteps a grid is shifted up; with one, it has every
            (T // steps)-th timestep for any number of steps.
    """

    set_alpha_to_one: bool = False
    steps_offset: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps_offset", whole("steps_offset", self.steps_offset))
        at_least(0, steps_offset=self.steps_offset)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "LatentDiffusionSchedule":
        """As `NoiseSchedule.from_diffusers`, with the two fields of its own."""
        plain = NoiseSchedule.from_diffusers(config)
        own = {f: config[f] for f in ("set_alpha_to_one", "steps_offset") if f in config}
        return cls(**{f.name: getattr(plain, f.name) for f in fields(plain)}, **own)

    def to_diffusers(self) -> dict[str, Any]:
        own = {"set_alpha_to_one": self.set_alpha_to_one, "steps_offset": self.steps_offset}
        return {**super().to_diffusers(), **own}

    @property
    def clean_alpha_bar(self) -> float:
        return 1.0 if self.set_alpha_to_one else float(self.alphas_cumprod[0])

    @property
    def offset(self) -> int:
        return self.steps_offset


def stored_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule whose `to_diffusers` gave `config`, of the same class."""
    kind = LatentDiffusionSchedule if "set_alpha_to_one" in config else NoiseSchedule
    return kind.from_diffusers(config)
