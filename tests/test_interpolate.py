"""The way between two codes, and its picture."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import geometric_slerp
from tiny import R, make_run
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.interpolate import spherical
from cyclelight.cli import main


def test_the_great_circle_is_scipys() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 12))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    share = torch.linspace(0, 1, 7, dtype=torch.float64)
    ours = spherical(torch.tensor(a).view(3, 2, 2), torch.tensor(b).view(3, 2, 2), share)
    assert_close(ours.flatten(1).numpy(), geometric_slerp(a, b, share.numpy()))


def test_noises_stay_gaussian_on_the_way(tmp_path: Path) -> None:
    """Where a straight line would shorten them: to 1/2 of the variance in the middle."""
    make_run(tmp_path, {})
    cat = cyclelight.load_domain(tmp_path / "cat")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((3, 3, R, R), generator=generator) * 2 - 1
    code = cyclelight.encode(cat, images, steps=10, strength=1.0)
    noise = torch.randn(code.noises.shape, generator=generator)
    code = cyclelight.LatentCode(
        code.x_T, noise, code.last_residual, code.grid, code.eta, code.schedule
    )
    between = cyclelight.interpolate(code, 0, 2, 5)
    assert between.noises.shape == (9, 5, 3, R, R)
    assert_close(between.mean_squares().mean(dim=0), torch.ones(5), rtol=0, atol=0.05)
    assert code.last_residual is not None and between.last_residual is not None
    middle = (code.last_residual[0] + code.last_residual[2]) / 2
    assert_close(between.last_residual[2], middle)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_both_ends_are_the_images(tmp_path: Path, eta: float) -> None:
    make_run(tmp_path, {})
    cat = cyclelight.load_domain(tmp_path / "cat")
    images = torch.rand((2, 3, R, R), generator=torch.Generator().manual_seed(0)) * 2 - 1
    code = cyclelight.encode(cat, images.double(), steps=4, strength=1.0, eta=eta)
    cat.to(dtype=torch.float64)
    code = cyclelight.encode(cat, images.double(), steps=4, strength=1.0, eta=eta)
    made = cyclelight.decode(cat, cyclelight.interpolate(code, 0, -1, 3))
    assert_close(made[[0, 2]], images.double(), rtol=0, atol=1e-6)
    assert (made[1] - images.double()).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_one_code_stays_where_it_is() -> None:
    a = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert_close(spherical(a, a, torch.tensor([0.0, 0.3, 1.0])), a.expand(3, 3, 4, 4))
    assert math.isfinite(float(spherical(a, -a, torch.tensor([0.5])).sum()))


@pytest.mark.parametrize(
    ("positions", "message"),
    [((2, 0, 3), "i must be in -2..1, got 2"), ((0, 1, 1), "n must be at least 2, got 1")],
)
def test_bad_positions(tmp_path: Path, positions: tuple[int, int, int], message: str) -> None:
    make_run(tmp_path, {})
    cat = cyclelight.load_domain(tmp_path / "cat")
    code = cyclelight.encode(cat, torch.zeros(2, 3, R, R), steps=2)
    with pytest.raises(ValueError, match=message):
        cyclelight.interpolate(code, *positions)


def test_atlas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The corners of the first row are the images given; the other row is another domain's."""
    make_run(tmp_path, {"images": ["a.png", "b.png"]})
    words = ["atlas", *(str(tmp_path / "images" / name) for name in ("a.png", "b.png"))]
    words += ["--source", str(tmp_path / "cat"), "--targets", str(tmp_path / "dog")]
    words += ["--steps", "3", "--columns", "4", "--scale", "1"]
    assert main([*words, "--output", str(tmp_path / "out" / "atlas.png")]) == 0
    drawn = np.array(Image.open(tmp_path / "out" / "atlas.png")).astype(int)
    assert drawn.shape == (2 * R + 2, 4 * R + 6, 3)
    corners = drawn[:R, :R], drawn[:R, -R:]
    for name, corner in zip("ab", corners, strict=True):
        given = np.array(Image.open(tmp_path / "images" / f"{name}.png"))
        assert np.abs(corner - given).max() <= 1
    assert np.abs(drawn[R + 2 :, :R] - drawn[:R, :R]).max() > 10
    capsys.readouterr()
    assert main([*words, "--output", str(tmp_path / "atlas.jpg")]) == 2
    assert capsys.readouterr().err.startswith("error: --output: the picture is a .png file")
