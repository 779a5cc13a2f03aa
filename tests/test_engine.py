"""However the networks are run, the images are the same ones, to a stated difference."""

from pathlib import Path

import pytest
import torch
from tiny import TINY, R, make_run, predict_words
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.engine import Engine, Runner
from cyclelight.cli import main
from cyclelight.diffusion.denoiser import NetworkDenoiser, Prediction
from cyclelight.diffusion.pixels import to_uint8
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.domain import Domain
from cyclelight.methods.base import Method
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.ddcm import DDCM
from cyclelight.methods.edit_friendly import EditFriendly
from cyclelight.networks.unet import UNetSettings

LEARNED = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8, learned_variance=True)


def domain(seed: int, settings: UNetSettings = TINY, variance: str = "fixed") -> Domain:
    """An untrained one that predicts velocities, whose rounding errors the chain does not grow."""
    torch.manual_seed(seed)
    network = settings.build(resolution=R, channels=3).eval().requires_grad_(False)
    return Domain(
        NetworkDenoiser(
            network,
            NoiseSchedule(),
            prediction_type="v_prediction",
            variance=variance,  # type: ignore[arg-type]
        ),
        R,
    )


def images(count: int) -> Tensor:
    return torch.rand((count, 3, R, R), generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("parallel", [4, 6, 1000])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (CycleDiffusion, {"steps": 8, "cleanup": 0}),
        (CycleDiffusion, {"steps": 8, "eta": 0.3, "last_residual": "drop"}),
        (EditFriendly, {"steps": 8}),
        (DDCM, {"steps": 8}),
    ],
)
def test_timesteps_together_give_what_they_give_alone(
    kind: type[Method], settings: dict[str, object], parallel: int
) -> None:
    """In chunks of 2, of 3, which do not divide the 7 timesteps, and in one."""
    source, target, x = domain(0), domain(1), images(2)
    alone = cyclelight.translate(source, target, x, method=kind(**settings))
    together = cyclelight.translate(source, target, x, method=kind(**settings, parallel=parallel))
    assert_close(together, alone, rtol=0, atol=1e-4)
    assert (together - x).abs().max() > 0.1


def test_timesteps_together_with_learned_variances() -> None:
    source, target = (domain(seed, LEARNED, "learned") for seed in (0, 1))
    x, settings = images(2), {"steps": 8, "eta": 1.0, "cleanup": 0}
    alone = cyclelight.translate(source, target, x, method=CycleDiffusion(**settings))
    together = cyclelight.translate(
        source, target, x, method=CycleDiffusion(**settings, parallel=6)
    )
    assert_close(together, alone, rtol=0, atol=1e-4)


def test_timesteps_together_take_few_calls() -> None:
    source, target, sizes = domain(0), domain(1), list[int]()
    source.denoiser.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    method = CycleDiffusion(steps=8, strength=1.0, cleanup=0, parallel=7)
    cyclelight.translate(source, target, images(2), method=method)
    assert sizes == [6, 6, 4]


def test_networks_in_half_precision_leave_the_states_in_full() -> None:
    x, settings = images(4), {"steps": 10, "cleanup": 0}
    exact = cyclelight.translate(domain(0), domain(1), x, **settings)
    source, target = (Engine().speed_up(domain(seed), "bf16-mixed") for seed in (0, 1))
    dtypes = set[torch.dtype]()
    y = cyclelight.translate(
        source, target, x, **settings, on_step=lambda state: dtypes.add(state.dtype)
    )
    assert dtypes == {torch.float32} == {y.dtype}
    weights = target.denoiser.network.parameters()  # type: ignore[attr-defined]
    assert {p.dtype for p in weights} == {torch.bfloat16}
    levels = to_uint8(y).int() - to_uint8(exact).int()
    assert 0 < levels.abs().max() <= 6


def test_channels_last_changes_rounding_alone() -> None:
    x, settings = images(3), {"steps": 10}
    exact = cyclelight.translate(domain(0), domain(1), x, **settings)
    source, target = (Engine().speed_up(domain(seed)) for seed in (0, 1))
    runner = source.denoiser.network  # type: ignore[attr-defined]
    assert isinstance(runner, Runner)
    assert_close(cyclelight.translate(source, target, x, **settings), exact, rtol=0, atol=1e-4)
    kernels = [p for p in runner.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_equal_networks_still_give_the_image_back() -> None:
    x = images(3)
    source, target = (Engine().speed_up(domain(0), "bf16-mixed") for _ in range(2))
    assert torch.equal(cyclelight.translate(source, target, x, steps=10, cleanup=0), x)


def test_a_formula_has_no_network_to_speed_up() -> None:
    plain = domain(0)

    class Formula:
        schedule = plain.schedule

        def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
            return plain.denoiser(x_t, t)

    bare = Domain(Formula(), R)
    assert Engine().speed_up(bare, "bf16-mixed") is bare


@pytest.mark.parametrize("precision", ["64", "64-true", "16-true", "bf16-true"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_trainings_are_in_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, precision: str
) -> None:
    words = [command, "--data.root", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*words, "--trainer.precision", precision]) == 2
    told = f"error: --trainer.precision: {precision} is not for training, where images and weights"
    error = capsys.readouterr().err
    assert error.startswith(told) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict --data.source", "test --data.root"])
@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        ("bf16-true", "puts the states in half precision too"),
        ("16-true", "puts the states in half precision too"),
        ("64", "is not supported here"),
    ],
)
def test_states_are_kept_from_half_precision(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    precision: str,
    reason: str,
) -> None:
    options = ("--output", str(tmp_path / "out"), "--trainer.precision", precision)
    assert main([*command.split(), str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --trainer.precision: {precision} {reason}")
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_run_goes_on_in_the_precision_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where another hardware would choose another one; unless it is asked for."""
    make_run(tmp_path, {"sources": ["a.png"], "real": ["b.png", "c.png"]})
    words = predict_words(tmp_path, tmp_path / "out")
    machine = "cyclelight.commands.trainer_settings.best_precision"
    monkeypatch.setattr(machine, lambda device: "32-true")
    assert main(words) == 0
    config = tmp_path / "out" / "config.yaml"
    assert "precision: 32-true" in config.read_text()
    assert "Networks run in 32-true, states in float32 (the fastest here" in caplog.text
    monkeypatch.setattr(machine, lambda device: "bf16-mixed")
    assert main(words) == 0 and "precision: 32-true" in config.read_text()
    assert "(as before)" in caplog.text
    assert main([*words, "--trainer.precision", "bf16-mixed"]) == 2
    assert main([*words, "--overwrite"]) == 0 and "precision: bf16-mixed" in config.read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Of what torch.compile imports.
def test_a_compiled_network_fills_smaller_batches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(3)
    exact = cyclelight.translate(domain(0), domain(1), x, steps=4)
    source, target = (Engine(compile=True).speed_up(domain(seed)) for seed in (0, 1))
    runner, sizes = target.denoiser.network, set[int]()  # type: ignore[attr-defined]
    call = runner._call

    def count(x_t: Tensor, timesteps: Tensor) -> Tensor:
        sizes.add(len(x_t))
        return call(x_t, timesteps)

    monkeypatch.setattr(runner, "_call", count)
    assert_close(cyclelight.translate(source, target, x, steps=4), exact, rtol=0, atol=1e-4)
    first = cyclelight.translate(source, target, x[:2], steps=4)
    assert_close(first, exact[:2], rtol=0, atol=1e-4)
    assert sizes == {3}
