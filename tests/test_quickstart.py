"""quickstart: from two folders to a pair of domains, and what it says before it begins."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import R, make_run

from cyclelight.cli import main
from cyclelight.commands import quickstart
from cyclelight.networks.unet import UNetSettings

ROOT = Path(__file__).parents[1]

NAMES = [f"{index}.png" for index in range(12)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of noise of 40 pixels, an unreadable file and a duplicate among them."""
    root = tmp_path_factory.mktemp("quickstart")
    make_run(root, {"hills": NAMES, "lakes": NAMES})
    generator = np.random.default_rng(1)
    for folder in ("hills", "lakes"):
        for name in NAMES:
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / name)
    (root / "hills" / "broken.png").write_bytes(b"no image")
    Image.open(root / "lakes" / "1.png").save(root / "lakes" / "again.png")
    return root


def words(here: Path, output: Path, *more: str) -> list[str]:
    given = ["quickstart", str(here / "hills"), str(here / "lakes"), "--output", str(output)]
    return [*given, "--init_from", str(here / "cat"), *more]


def test_the_commands_it_would_run(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is one of the program's; nothing is made."""
    with pytest.warns(UserWarning, match="skipped 1 of 13"):
        assert main(words(here, tmp_path / "out", "--turns", "2", "--dry-run")) == 0
    told = capsys.readouterr().out
    assert re.search(r"hills +12 +1 +0 +40 pixels", told)
    assert re.search(r"lakes +13 +0 +1 +40 pixels", told)
    assert "fewer than 200 images" in told and "broken.png" in told
    commands = [shlex.split(line) for line in told.splitlines() if line.startswith("lightning ")]
    assert [command[1] for command in commands] == ["fit", "fit", "predict", "predict"] * 2
    steps = [int(c[c.index("--trainer.max_steps") + 1]) for c in commands if c[1] == "fit"]
    assert steps[0] == steps[1] == steps[2] // 2 and steps[2] == steps[3]
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:skipped 1 of 13")
@pytest.mark.parametrize("ancestor", ["none", "demo"])
def test_its_ancestors(
    here: Path,
    tmp_path: Path,
    ancestor: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From scratch each network can be built; from any folder the demo's domain is found."""
    monkeypatch.chdir(tmp_path)
    given = words(here, tmp_path / "out", "--turns", "1", "--dry-run")[:-1]
    place = given.index("--init_from")
    given[place : place + 2] = ["--init_from", "none"] if ancestor == "none" else []
    assert main([*given, "--dry-run"]) == 0
    told = capsys.readouterr().out
    fits = [shlex.split(line)[1:] for line in told.splitlines() if line.startswith("lightning fit")]
    assert len(fits) == 2
    for fit in fits:
        if ancestor == "demo":
            found = Path(fit[fit.index("--model.init_from") + 1])
            assert found.resolve() == ROOT / "checkpoints" / "dog"
            continue
        assert "--model.init_from" not in fit
        names = ("block_out_channels", "layers_per_block", "attention_resolutions")
        settings = {
            name: json.loads(fit[fit.index(f"--model.network.{name}") + 1]) for name in names
        }
        side = int(fit[fit.index("--model.resolution") + 1])
        UNetSettings(**settings).build(resolution=side, channels=3)


@pytest.mark.slow
def test_it_trains_translates_and_goes_on(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "EPOCHS", 4)
    output = tmp_path / "out"
    given = words(here, output, "--turns", "1", "--minutes", "1")
    with pytest.warns(UserWarning, match="skipped 1 of 13"):
        assert main(given) == 0
    held = {path.name[7:] for path in (output / "data" / "hills" / "val").iterdir()}
    assert len(held) == 2 and held < {*NAMES}
    page = (output / "index.html").read_text()
    assert "<strong>done</strong>" in page and "http-equiv" not in page
    times = {}
    for pair in ("hills_to_lakes", "lakes_to_hills"):
        assert f'src="{pair}_1.png"' in page
        with Image.open(output / f"{pair}_1.png") as picture:
            assert picture.size[0] > 2 * R
        times[pair] = (output / f"{pair}_1.png").stat().st_mtime_ns
    with pytest.warns(UserWarning, match="skipped 1 of 13"):  # Nothing is left to do.
        assert main(given) == 0
    assert times == {pair: (output / f"{pair}_1.png").stat().st_mtime_ns for pair in times}


@pytest.mark.parametrize(
    ("folders", "more", "message"),
    [
        (("hills", "nowhere"), (), "there is no folder .*nowhere"),
        (("hills", "hills"), (), "both folders are called hills: rename one"),
        (("hills", "dog"), (), "dog: at least 10 images are needed, found 0"),
        (("hills", "lakes"), ("--minutes", "0"), "minutes must be above 0, got 0"),
        (("hills", "lakes"), ("--turns", "0"), "turns must be at least 1, got 0"),
    ],
)
def test_what_it_refuses(
    here: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folders: tuple[str, str],
    more: tuple[str, ...],
    message: str,
) -> None:
    given = [str(here / folder) for folder in folders]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *_, **__: None)
        assert main(["quickstart", *given, "--output", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
