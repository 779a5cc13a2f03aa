"""What `lightning analyze` says of a pair, where all of it is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import SCHEDULE, Gaussian
from PIL import Image
from tiny import R, make_run
from torch import Tensor
from torch.testing import assert_close

from cyclelight import Prediction, TimeGrid
from cyclelight.chains.analysis import PairStep, analysed_steps
from cyclelight.chains.source import source_chain
from cyclelight.cli import main
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.schedule import CLEAN

GRID = TimeGrid.truncated(SCHEDULE, 10, 0.8)
MEAN, STD = -0.3, 0.2


def analysed(target: Gaussian) -> list[PairStep]:
    """Of a Gaussian source's own images."""
    generator = torch.Generator().manual_seed(0)
    x_0 = MEAN + STD * torch.randn((3, 3, 32, 32), generator=generator, dtype=torch.float64)
    source, noise = Gaussian(MEAN, STD), KeyedNoise(0, [0, 1, 2])
    return list(analysed_steps(target, source_chain(source, x_0, grid=GRID, eta=1.0, noise=noise)))


def affine(mean: float, std: float, t: int, s: int) -> tuple[float, float, float]:
    """E[x_s | x_t] = k x_t + b and Var[x_s | x_t] of the noised N(mean, std^2), by regression."""
    a_t, a_s = (1.0 if u == CLEAN else float(SCHEDULE.alphas_cumprod[u]) for u in (t, s))
    V_t, V_s = (a * std**2 + 1 - a for a in (a_t, a_s))
    k = (a_t / a_s) ** 0.5 * V_s / V_t
    return k, mean * (a_s**0.5 - k * a_t**0.5), V_s - k**2 * V_t


def test_gaussians_of_one_width() -> None:
    """Every pixel moves alike: K_t and S_t are numbers, and the sharp bound is the difference."""
    B = bound = 0.0
    for step in analysed(Gaussian(0.4, STD)):
        k, b, _ = affine(0.4, STD, step.t, step.s)
        S = abs(b - affine(MEAN, STD, step.t, step.s)[1])
        first = step.t == GRID.start
        bound = (1 if first else k + 1) * bound + S
        B = k * B + S
        assert_close(step.K, torch.full((3,), 0.0 if first else k, dtype=torch.float64))
        assert_close(step.S, torch.full((3,), S, dtype=torch.float64))
        for value, right in ((step.difference, B), (step.sharp, B), (step.bound, bound)):
            assert_close(value, torch.full((3,), right, dtype=torch.float64))
    assert bound > 10 * B


def test_the_bound_holds_where_widths_differ() -> None:
    for step in analysed(Gaussian(0.4, 0.35)):
        assert (step.difference <= step.sharp * (1 + 1e-9)).all()
        assert (step.sharp <= step.bound).all()
        if step.t != GRID.start:
            k = affine(0.4, 0.35, step.t, step.s)[0]
            assert_close(step.K, torch.full((3,), k, dtype=torch.float64))


def test_mean_squares_are_those_of_the_posterior() -> None:
    """Var[x_s | x_t] / sigma^2, with sigma of DDPM (Ho et al. 2020, Eq. 7)."""
    for step in analysed(Gaussian(0.4, 0.35)):
        variance = affine(MEAN, STD, step.t, step.s)[2]
        if step.s != CLEAN:
            a_t, a_s = (float(SCHEDULE.alphas_cumprod[u]) for u in (step.t, step.s))
            variance /= (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        assert_close(float(step.mean_square.mean()), variance, rtol=0.06, atol=0)


def test_equal_models_differ_in_nothing() -> None:
    for step in analysed(Gaussian(MEAN, STD)):
        for value in (step.K, step.S, step.difference, step.bound, step.sharp):
            assert value.eq(0).all()
        assert step.x_s.equal(step.y_s)


def test_learned_variances_are_refused() -> None:
    class Learned(Gaussian):
        def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
            return Prediction(super().__call__(x_t, t).eps, v_range=torch.zeros_like(x_t))

    with pytest.raises(ValueError, match="fixed variances"):
        analysed(Learned(0.4, STD))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("analysis")
    make_run(root, {"images": ["a.png", "b.png", "c.png"]})
    return root


def words(root: Path, *more: object) -> list[str]:
    given = ["analyze", root / "cat", root / "dog", "--images", root / "images"]
    given += ["--output", root / "out", "--steps", 4, "--strength", 1.0, "--batch_size", 2]
    return [str(word) for word in (*given, "--film", 3, "--scale", 1, *more)]


def test_program(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four files; the film ends with the images given, and batches change nothing."""
    assert main(words(root)) == 0
    assert "the bound of Eq. 8 is" in capsys.readouterr().out
    told = json.loads((root / "out" / "analysis.json").read_text())
    assert [step["t"] for step in told["chain"]] == [750, 500, 250, 0]
    last = told["chain"][-1]
    assert told["n"] == 3 and told["looseness"]["eq_8"] == last["bound"] / last["difference"] > 1
    strip = np.array(Image.open(root / "out" / "film.png")).astype(int)
    assert strip.shape == (6 * R + 10, 5 * R + 8, 3)
    for i, name in enumerate("abc"):
        top = 2 * i * (R + 2)
        given = np.array(Image.open(root / "images" / f"{name}.png"))
        assert np.abs(strip[top : top + R, -R:] - given).max() <= 1
        target = strip[top + R + 2 : top + 2 * R + 2]
        assert (target[:, :R] == strip[top : top + R, :R]).all()
        assert np.abs(target[:, -R:] - given).max() > 10
    with Image.open(root / "out" / "film.webp") as film:
        assert (film.n_frames, film.size) == (5, (3 * R + 4, 2 * R + 2))  # type: ignore[attr-defined]
    assert main(words(root, "--batch_size", 3, "--output", root / "whole")) == 0
    whole = json.loads((root / "whole" / "analysis.json").read_text())
    for one, other in zip(told["chain"], whole["chain"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_spacing(root: Path) -> None:
    """Squares of thirds of T - 1."""
    more = ["--spacing", "quadratic", "--film", 1, "--output", root / "spaced"]
    assert main(words(root, *more)) == 0
    told = json.loads((root / "spaced" / "analysis.json").read_text())
    assert [step["t"] for step in told["chain"]] == [999, 444, 111, 0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "nowhere"], "--images: no such file or folder nowhere"),
        (["--eta", "2"], "eta must be in [0, 1], got 2"),
        (["--steps", "0"], "steps must be"),
        (["--spacing", "even"], "spacing must be one of leading, quadratic, logsnr, got 'even'"),
        (["--film", "0"], "film must be at least 1, got 0"),
        (["--columns", "1"], "columns must be at least 2, got 1"),
        (["--output", __file__], "is a file"),
    ],
)
def test_bad_words(
    root: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(root, "--output", root / "bad", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (root / "bad").exists()
