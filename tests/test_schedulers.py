"""Scheduler folders of diffusers: its own alpha-bars where it knows betas, a refusal where not."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.testing import assert_close

import cyclelight
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.folder import save_domain
from cyclelight.domains.schedulers import BETA_FAMILY, schedule_of
from cyclelight.networks.unet import UNetSettings

ALL = sorted(
    name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Diffusers' own, of NumPy.
@pytest.mark.parametrize("name", sorted(BETA_FAMILY - {"DPMSolverSDEScheduler"}))
@pytest.mark.parametrize(
    "given", [{}, {"beta_schedule": "scaled_linear", "beta_start": 0.001}, {"beta_end": 0.03}]
)
def test_a_known_one_is_read_as_diffusers_reads_it(name: str, given: dict[str, Any]) -> None:
    """What the configuration leaves out is the class's own default: it differs between them."""
    theirs = getattr(diffusers, name)(**given)
    # The inverse ones move their table by one step where their own options say so; alphas stay.
    ours = schedule_of({"_class_name": name, **given})
    assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(ALL) - BETA_FAMILY))
def test_another_family_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"its scheduler is {name}: only models trained with"):
        schedule_of({"_class_name": name, "num_train_timesteps": 1000})


def test_the_family_is_diffusers_own() -> None:
    assert set(ALL) >= BETA_FAMILY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    unet = UNetSettings((8,), 1, (), head_channels=8, norm_groups=8).build(resolution=8, channels=3)
    return save_domain(tmp_path / "domain", unet, NoiseSchedule(), card={"name": "x"})


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscrete"),
        ("scheduler", {"_class_name": "ScoreSdeVeScheduler"}, "its scheduler is ScoreSdeVe"),
        ("scheduler", {"_class_name": None}, "its scheduler is None"),
        (
            "scheduler",
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
            "uses flow sigmas",
        ),
        ("unet", {"num_class_embeds": 10}, "asks for a class"),
        ("unet", {"class_embed_type": "timestep"}, "asks for a class"),
        ("unet", {"time_embedding_type": "fourier"}, "takes noise levels"),
        (
            "unet",
            {"sample_size": [8, 16]},
            r"sample_size must be one positive integer, got \[8, 16",
        ),
        ("unet", {"sample_size": None}, "sample_size must be one positive integer, got None"),
        ("unet", {"in_channels": 6}, "out_channels must be 6, or 12"),
        ("unet", {"in_channels": 4, "out_channels": 4}, "images have 1 or 3 channels"),
    ],
)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_is_no_domain_is_told_when_it_is_loaded(
    folder: Path, part: str, values: dict[str, Any], says: str, device: str
) -> None:
    name = {"scheduler": "scheduler_config.json", "unet": "config.json"}[part]
    edit(folder / part / name, **values)
    with pytest.raises(ValueError, match=says) as caught:
        cyclelight.load_domain(folder, device=device)
    assert str(caught.value).startswith("domain: ") and "\n" not in str(caught.value)


def test_a_square_may_be_two_numbers(folder: Path) -> None:
    edit(folder / "unet" / "config.json", sample_size=[8, 8])
    assert cyclelight.load_domain(folder).resolution == 8
