"""benchmark: what it times, counts and compares; not how fast."""

import json
from pathlib import Path

import pytest
import torch
from tiny import TINY, R, make_run
from torch import nn

import cyclelight
from cyclelight.cli import main
from cyclelight.runs.timing import Case, Machine, random_domain, time_cases


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    make_run(root, {})
    return root


def words(here: Path, **more: object) -> list[str]:
    given = {
        "source": here / "cat",
        "target": here / "dog",
        "device": "cpu",
        "steps": 4,
        "batch_size": 2,
        "repeats": 2,
        "published": "false",
        **more,
    }
    pairs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["benchmark", *pairs]


def test_the_table(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strength 0.85 of 4 steps are 3 for each network, the cleanup is one more of the target."""
    assert main(words(here, output=tmp_path)) == 0
    kept = json.loads((tmp_path / "benchmark.json").read_text())
    timings = {timing["case"]["name"]: timing for timing in kept["timings"]}
    assert kept["torch"] == torch.__version__ and kept["matrix_product_flops"] > 0
    assert timings["plain"]["calls"] == timings["+ timesteps together"]["calls"] == 2 * 3 + 1
    assert timings["fast recipe"]["calls"] == 28  # As docs/settings.md counts them.
    assert {timings[name]["repeats"] for name in timings} == {2}
    for name, timing in timings.items():
        rate = timing["case"]["batch"] / timing["seconds"]
        assert timing["images_per_second"] == pytest.approx(rate) and timing["floor"] > 0
        assert (timing["levels"] is None) == (name in ("plain", "fast recipe"))
    assert timings["lockstep"]["levels"] == timings["batched"]["levels"] == 0
    table = capsys.readouterr().out
    assert "x published" in table and f"{R} x {R} pixels" in table
    assert "| plain" in (tmp_path / "benchmark.md").read_text()


def test_the_plain_way_is_encode_decode_and_cleanup(here: Path) -> None:
    """As `predict` would do it: lockstep, to rounding."""
    pair = (cyclelight.load_domain(here / "cat"), cyclelight.load_domain(here / "dog"))
    x = torch.rand((1, 3, R, R), generator=torch.Generator().manual_seed(0)) * 2 - 1
    for domain in pair:
        domain.to(dtype=torch.float64)
    stored = Case("stored", steps=6, stored=True).translate(pair, x.double())
    together = Case("lockstep", steps=6).translate(pair, x.double())
    torch.testing.assert_close(stored, together, rtol=0, atol=1e-6)


def test_arithmetic_is_counted() -> None:
    """A network of one convolution of 3 x 3 has 2 * 9 * C_in * C_out operations a pixel."""
    source, target = (random_domain(TINY, R, seed) for seed in (0, 1))
    for domain in (source, target):
        domain.denoiser.network = Convolution()  # type: ignore[attr-defined]
    machine = Machine(torch.device("cpu"))
    (timing,) = time_cases(
        (source, target), [Case("plain", steps=4)], machine, repeats=1, judge=False
    )
    flops = 2 * 9 * 3 * 3 * R * R * timing.calls
    expected = flops / timing.seconds / machine.facts["matrix_product_flops"]
    assert timing.chip == pytest.approx(expected)


class Convolution(nn.Module):
    """Called as a UNet is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.convolution(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"device": "abacus"}, "--device: "),
        ({"source": "nowhere"}, "source: nowhere does not exist"),
    ],
)
def test_what_it_refuses(
    here: Path, capsys: pytest.CaptureFixture[str], options: dict[str, object], message: str
) -> None:
    assert main(words(here, **options)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
