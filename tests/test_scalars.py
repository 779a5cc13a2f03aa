"""Numbers that are settings: of whatever library, they mean one value or are refused by name."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Gaussian, domain
from safetensors.torch import load_file, save_file
from torch import Tensor

import cyclelight
from cyclelight import DDCM, CycleDiffusion, EditFriendly, LatentCode, NoiseSchedule, SDEdit
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.errors import BadValue, real, whole
from cyclelight.guidance.langevin import Adam, CrankNicolson, Langevin
from cyclelight.guidance.tfg import TFG

SOURCE, TARGET = domain(Gaussian(-0.3, 0.2), 8, "source"), domain(Gaussian(0.4, 0.35), 8, "target")
IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
KINDS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda x: np.asarray(x)[()],
    "array": lambda x: np.asarray(x),
    "tensor": lambda x: torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None),
    "parameter": lambda x: (
        torch.tensor(x, requires_grad=True, dtype=torch.float64)
        if isinstance(x, float)
        else torch.tensor(x)
    ),
}
"""Of a Python number, the same in another library."""


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_library_mean_what_pythons_mean(kind: str, tmp_path: Path) -> None:
    """With eta=torch.tensor(0.5) all was NaN, and np.float32 could not be saved."""
    as_ = KINDS[kind]
    given = {"steps": as_(10), "eta": as_(0.5), "strength": as_(0.8)}
    plain = {"steps": 10, "eta": 0.5, "strength": 0.8}
    code, wanted = (cyclelight.encode(SOURCE, IMAGES, **one) for one in (given, plain))
    assert torch.equal(code.noises, wanted.noises) and code.noises.isfinite().all()
    code.save(tmp_path / "code.safetensors")
    assert LatentCode.load(tmp_path / "code.safetensors").eta == 0.5
    own = {"cleanup": 300, "cleanup_eta": 0.5, "parallel": 2}
    settings = {**{name: as_(value) for name, value in own.items()}, **given}
    method = CycleDiffusion(**settings)
    assert json.loads(json.dumps(asdict(method))) == {
        **plain,
        **own,
        **{"last_residual": "keep", "spacing": "leading", "draw": "chain"},
    }
    for one, other in (
        (
            cyclelight.translate(SOURCE, TARGET, IMAGES, method=method),
            cyclelight.translate(SOURCE, TARGET, IMAGES, **own, **plain),
        ),
        (
            cyclelight.translate(SOURCE, TARGET, IMAGES, method=method, seed=as_(7)),
            cyclelight.translate(SOURCE, TARGET, IMAGES, method=method, seed=7),
        ),
        (
            cyclelight.sample(SOURCE, as_(2), steps=as_(5), eta=as_(0.5), seed=as_(3)),
            cyclelight.sample(SOURCE, 2, steps=5, eta=0.5, seed=3),
        ),
        (
            cyclelight.invert(SOURCE, IMAGES, steps=as_(5)),
            cyclelight.invert(SOURCE, IMAGES, steps=5),
        ),
        (
            cyclelight.interpolate(wanted, as_(0), as_(1), as_(3)).x_T,
            cyclelight.interpolate(wanted, 0, 1, 3).x_T,
        ),
    ):
        assert torch.equal(one, other) and one.isfinite().all()
    schedule = NoiseSchedule("linear", as_(1e-4), as_(0.02), as_(1000))
    assert json.loads(json.dumps(schedule.to_diffusers())) == NoiseSchedule().to_diffusers()


def test_noise_goes_by_the_value_of_seed_and_key() -> None:
    """NumPy's integers print in another way, and gave other noise than the same in Python."""
    like = torch.zeros(2, 3)
    plain = cyclelight.KeyedNoise(7, [1, "a"])("start", 3, like)
    other = cyclelight.KeyedNoise(np.int64(7), [np.int32(1), np.str_("a")])("start", 3, like)  # type: ignore[arg-type]
    assert torch.equal(plain, other)
    assert not torch.equal(plain, cyclelight.KeyedNoise(7, [1, "b"])("start", 3, like))
    for seed, keys in ((1.5, [0]), (True, [0]), (0, [1.5]), (0, [None]), (0, [Path("a")])):
        with pytest.raises(BadValue, match=r"must be an integer"):
            cyclelight.KeyedNoise(seed, keys)  # type: ignore[arg-type]


NO_INTEGERS = (2.5, 2.0, True, "2", None, np.float32(2), np.True_, torch.tensor([2]), [2], 2 + 0j)
NO_REALS = (float("nan"), float("inf"), True, "0.5", None, np.nan, torch.tensor([0.5]), [0.5], 1j)
METHODS = (CycleDiffusion, EditFriendly, DDCM, SDEdit)


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_no_integer_is_refused(value: Any) -> None:
    for take in (
        lambda: whole("steps", value),
        *((lambda method=method: method(steps=value)) for method in METHODS),
        lambda: cyclelight.encode(SOURCE, IMAGES, steps=value),
        lambda: cyclelight.translate(SOURCE, TARGET, IMAGES, steps=value),
        lambda: cyclelight.sample(SOURCE, 1, steps=value),
        lambda: cyclelight.invert(SOURCE, IMAGES, steps=value),
        lambda: TimeGrid.whole(SOURCE.schedule, value),
    ):
        with pytest.raises(BadValue, match=r"^steps must be an integer, got ") as caught:
            take()
        assert caught.value.argument == "steps" and "\n" not in str(caught.value)
    for argument, make in {
        "cleanup": lambda: CycleDiffusion(cleanup=value),
        "parallel": lambda: DDCM(parallel=value),
        "timesteps": lambda: NoiseSchedule(timesteps=value),
        "resolution": lambda: replace(SOURCE, resolution=value),
        "channels": lambda: replace(SOURCE, channels=value),
        "seed": lambda: cyclelight.encode(SOURCE, IMAGES, seed=value),
    }.items():
        with pytest.raises(BadValue, match=f"^{argument} must be an integer, got "):
            make()


@pytest.mark.parametrize("value", NO_REALS, ids=repr)
def test_no_number_is_refused(value: Any) -> None:
    for take in (
        lambda: real("eta", value),
        *((lambda method=method: method(eta=value)) for method in METHODS if method is not DDCM),
        lambda: cyclelight.encode(SOURCE, IMAGES, eta=value),
        lambda: cyclelight.translate(SOURCE, TARGET, IMAGES, eta=value),
        lambda: cyclelight.sample(SOURCE, 1, eta=value),
    ):
        with pytest.raises(BadValue, match=r"^eta must be a number, got "):
            take()
    for argument, make in {
        "strength": lambda: DDCM(strength=value),
        "cleanup_eta": lambda: CycleDiffusion(cleanup_eta=value),
        "beta_start": lambda: NoiseSchedule(beta_start=value),
        "beta_end": lambda: NoiseSchedule(beta_end=value),
        "given_betas": lambda: NoiseSchedule("given", timesteps=1, given_betas=(value,)),
    }.items():
        with pytest.raises(BadValue, match=f"^{argument} must be a number, got "):
            make()


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_of_guidance(kind: str) -> None:
    as_ = KINDS[kind]
    assert asdict(Langevin(as_(3), as_(0.5), as_(0.25))) == {
        **{"steps": 3, "step_size": 0.5, "prior": 0.25}
    }
    for make in (
        lambda: Langevin(steps=2.5),  # type: ignore[arg-type]
        lambda: CrankNicolson(step_size=float("nan")),
        lambda: Adam(learning_rate=True),
        lambda: TFG(rho="1"),  # type: ignore[arg-type]
    ):
        with pytest.raises(BadValue, match=r"must be (an integer|a number)"):
            make()


def test_schedules_that_leave_no_image_are_refused() -> None:
    """Their alpha-bar underflows, and what is divided by its root is infinite or NaN."""
    for make in (
        lambda: NoiseSchedule.linear(0.5, 0.9),
        lambda: NoiseSchedule.linear(timesteps=100_000),
        lambda: NoiseSchedule("given", timesteps=50, given_betas=(0.9999,) * 50),
    ):
        with pytest.raises(ValueError, match="leave nothing of the image"):
            make()
    with pytest.raises(ValueError, match="at most 100000, got 1000000000"):
        NoiseSchedule.from_diffusers({"num_train_timesteps": 10**9})
    with pytest.raises(ValueError, match="kind must be one of"):
        NoiseSchedule("flat")  # type: ignore[arg-type]
    assert NoiseSchedule.cosine(4000).alpha_bar(3999) > 0


def _change(file: Path, **changes: Any) -> None:
    """Write a code's file again with other tensors, or other texts in its head."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        texts = dict(opened.metadata())
    tensors = load_file(file)
    for name, value in changes.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is None:
            texts.pop(name, None)
            tensors.pop(name, None)
        else:
            texts[name] = value
    save_file(tensors, file, texts)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eta": "NaN"}, "eta must be a number, got nan"),
        ({"eta": "true"}, "eta must be a number, got True"),
        ({"eta": "7"}, r"eta must be in \[0, 1\]"),
        ({"x_T": torch.zeros(2, 3, 4, 4)}, "noises must have shape"),
        ({"x_T": torch.zeros(3, 8, 8)}, r"x_T must be \(B, C, H, W\)"),
        ({"last_residual": torch.zeros(1, 3, 8, 8)}, "last_residual must have shape"),
        ({"noises": torch.zeros(9, 2, 3, 8, 8)}, "noises must have shape"),
        ({"noises": torch.zeros(7, 2, 3, 8, 8).long()}, "noises must be floating point"),
        ({"x_T": torch.full((2, 3, 8, 8), torch.nan)}, "x_T holds NaN"),
        ({"timesteps": "[1, 2, 3]"}, "in descending order"),
        ({"timesteps": "[2000, 3, 2, 1.5]"}, "timesteps must be an integer, got 1.5"),
        ({"timesteps": "[2007, 6, 5, 4, 3, 2, 1, 0]"}, "beyond the schedule's 1000"),
        ({"timesteps": "7"}, "is not a latent code"),
        ({"timesteps": "[" * 10**5}, "is not a whole latent code"),
        ({"schedule": "[]"}, "is not a latent code"),
        ({"schedule": json.dumps({"num_train_timesteps": 10**9})}, "at most 100000"),
        ({"schedule": json.dumps({"trained_betas": "0.1"})}, "must be a list of numbers"),
        ({"schedule": "{"}, "is not a whole latent code"),
        ({"noises": None}, "is not a latent code"),
        ({"eta": None}, "is not a latent code"),
    ],
    ids=str,
)
def test_a_broken_code_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    file = tmp_path / "code.safetensors"
    cyclelight.encode(SOURCE, IMAGES, steps=10, strength=0.8).save(file)
    assert LatentCode.load(file).grid.timesteps == (700, 600, 500, 400, 300, 200, 100, 0)
    _change(file, **changes)
    with pytest.raises(ValueError, match=reason) as caught:
        LatentCode.load(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
