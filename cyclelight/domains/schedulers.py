"""The noise schedule that a diffusers scheduler folder means."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import diffusers

from cyclelight.diffusion.schedule import NoiseSchedule

BETA_FAMILY = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "RePaint"),
        *("LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DEISMultistep", "UniPCMultistep"),
        *("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep"),
        *("DPMSolverSDE", "SASolver", "LCM", "TCD"),
    )
)
"""Schedulers of models that were trained with betas at integer timesteps. The others, of flow
matching, EDM, score SDEs or consistency models, tell their networks something else."""

FIELDS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")


def schedule_of(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule of a `scheduler_config.json`; what it leaves out is its class's default.

    Raises:
        ValueError: the scheduler is of another family, or its schedule is not known here.
    """
    name = str(config.get("_class_name"))
    if name not in BETA_FAMILY:
        raise ValueError(
            f"its scheduler is {name}: only models trained with betas at integer timesteps can be "
            f"domains, such as those of DDPMScheduler"
        )
    if config.get("use_flow_sigmas"):
        raise ValueError(f"its {name} uses flow sigmas: flow matching has no betas")
    return NoiseSchedule.from_diffusers(completed(config, FIELDS))


def completed(config: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """A `scheduler_config.json` with its class's defaults of those of the fields it leaves out."""
    defaults = inspect.signature(getattr(diffusers, str(config["_class_name"])).__init__).parameters
    left_out = {f: defaults[f].default for f in fields if f not in config and f in defaults}
    return {**left_out, **config}
