"""`lightning guide`: whole runs of the program, going on after a kill, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judges import redness
from PIL import Image
from ranks import run
from tiny import TINY, R, make_run
from torch import Tensor

from cyclelight.cli import main
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.pixels import to_uint8
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.folder import save_domain
from cyclelight.domains.generator_folder import save_generator
from cyclelight.guidance.load import load_map
from cyclelight.networks.ddgan import DDGANSettings
from cyclelight.networks.diffae import DiffAESettings

TESTS = Path(__file__).parent


def words(root: Path, output: Path, *more: object) -> list[str]:
    """A run of four images of the domain `cat`, towards red."""
    energies = [
        {"class_path": "CustomEnergy", "init_args": {"function": "judges:redness", "weight": 200}}
    ]
    given = {
        "model.generator": root / "cat",
        "model.energies": json.dumps(energies),
        "model.steps": 3,
        "model.sampler": "CrankNicolson",
        "model.sampler.steps": 6,
        "model.way": 2,
        "data.count": 4,
        "data.batch_size": 2,
        "output": output,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    pairs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["guide", *pairs, *map(str, more)]


def read(path: Path) -> Tensor:
    """A picture as (H, W, 3), 0 .. 255."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).float()


def figures(output: Path) -> dict[str, float]:
    report = json.loads((output / "metrics.json").read_text())
    return {score["figure"]: score["value"] for score in report["figures"]}


def pictures(output: Path) -> dict[str, bytes]:
    parts = [p for part in ("images", "starts", "ways") for p in sorted((output / part).glob("*"))]
    return {str(path.relative_to(output)): path.read_bytes() for path in parts}


def test_a_run(tmp_path: Path) -> None:
    make_run(tmp_path, {"real": ["a.png", "b.png", "c.png"]})
    output = tmp_path / "out"
    scores = ["--scores.judge", "judges:Rows", "--data.reference", tmp_path / "real"]
    scores += ["--scores.network", "judges:Rows"]
    assert main(words(tmp_path, output, *scores)) == 0
    found = figures(output)
    assert found["redness energy after"] < found["redness energy before"]
    # Three calls an image at each of six steps, and for the first, two on the way and the last.
    assert found["calls"] == 3 * (6 + 2 + 2)
    assert found["restarts"] == 0 and found["seconds"] > 0
    assert {"diversity before", "diversity after", "KID"} <= set(found)
    trace = json.loads((output / "traces" / "sample_00002.json").read_text())
    assert len(trace["energies"]["redness"]) == 6 and len(trace["|z|^2 / d"]) == 7
    # The first image is that of the key's own z.
    generator = load_map(str(tmp_path / "cat"), steps=3)
    z = generator.sample_latent(KeyedNoise(0, ["sample_00002.png"]), torch.empty(1))
    with torch.no_grad():
        first = generator(z)
    assert trace["before"]["redness"] == pytest.approx(float(redness(first)), rel=1e-4)
    shown = to_uint8(first)[0].float()
    assert float((read(output / "starts" / "sample_00002.png") - shown).abs().max()) <= 1
    with Image.open(output / "ways" / "sample_00002.png") as image:
        assert image.size == (4 * R, R)
    assert (output / "traces.png").is_file() and list((output / "logs").glob("events*"))
    # What is there already is not made again.
    before = pictures(output)
    for part in ("traces", "starts", "ways"):  # As of a run that was killed while it wrote.
        (output / part / f".{'0' * 32}.tmp").touch()
    assert main(words(tmp_path, output, *scores)) == 0
    assert not list(output.rglob("*.tmp"))
    assert pictures(output) == before and figures(output) == found


def test_images_do_not_depend_on_batches(tmp_path: Path) -> None:
    make_run(tmp_path, {})
    assert main(words(tmp_path, tmp_path / "two")) == 0
    assert main(words(tmp_path, tmp_path / "one", "--data.batch_size", 1)) == 0
    for name in pictures(tmp_path / "two"):
        gap = read(tmp_path / "two" / name) - read(tmp_path / "one" / name)
        assert float(gap.abs().max()) <= 2  # Rounding differs between sizes of batches.


@pytest.mark.slow
def test_from_images(tmp_path: Path) -> None:
    """Guidance of given images begins at them."""
    make_run(tmp_path, {"sources": ["a.png", "b.png"]})
    source = ["--data", "TranslationImages", "--data.source", tmp_path / "sources"]
    given = words(tmp_path, tmp_path / "out", "--model.steps", 50)
    at = given.index("--data.count")
    assert main([*given[:at], *given[at + 2 :], *map(str, source)]) == 0
    for name in ("a", "b"):
        start = read(tmp_path / "out" / "starts" / f"{name}.png")
        assert float((start - read(tmp_path / "sources" / f"{name}.png")).abs().mean()) < 4


@pytest.mark.parametrize("kind", ["ddgan", "diffae"])
@pytest.mark.parametrize("sampler", ["Langevin", "Adam"])
def test_other_generators(tmp_path: Path, kind: str, sampler: str) -> None:
    torch.manual_seed(0)
    settings: Any = {
        "ddgan": DDGANSettings(8, (1, 2), 1, (8,), 4, 8, 1),
        "diffae": DiffAESettings(8, (1, 2), (1, 2), 1, (), 1, 6, 16, 3, 8, norm_groups=4),
    }[kind]
    network = settings.build(resolution=16, channels=3)
    save_generator(tmp_path / "g", network, {"name": kind, "latent_prior": True})
    more = ["--model.generator", tmp_path / "g", "--model.sampler", sampler]
    given = words(tmp_path, tmp_path / "out", *more, "--model.sampler.steps", 4)
    at = given.index("--model.steps")
    if kind == "ddgan":
        del given[at : at + 2]
    assert main(given) == 0
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 4


def test_tfg(tmp_path: Path) -> None:
    """One chain guided on its way: an energy for each of its steps."""
    make_run(tmp_path, {})
    given = words(tmp_path, tmp_path / "out", "--model.sampler", "TFG")
    at = given.index("--model.sampler.steps")
    assert main([*given[:at], *given[at + 2 :]]) == 0
    trace = json.loads((tmp_path / "out" / "traces" / "sample_00000.json").read_text())
    assert len(trace["energies"]["redness"]) == 3
    found = figures(tmp_path / "out")
    assert found["redness energy after"] < found["redness energy before"]
    assert found["calls"] == 6


@pytest.mark.slow
def test_a_kill_changes_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, {})
    more = ["--data.count", 6, "--model.sampler.steps", 20]
    assert main(words(tmp_path, tmp_path / "whole", *more)) == 0
    program = [sys.executable, "-m", "cyclelight", *words(tmp_path, tmp_path / "cut", *more)]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    process = subprocess.Popen(program, env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "traces").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() != 0
    assert len(list((tmp_path / "cut" / "images").glob("*.png"))) < 6
    assert main(words(tmp_path, tmp_path / "cut", *more)) == 0
    assert pictures(tmp_path / "cut") == pictures(tmp_path / "whole")
    for part in ("whole", "cut"):
        assert len(list((tmp_path / part / "traces").glob("*.json"))) == 6


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """The same images, traces and figures as of one."""
    make_run(tmp_path, {})
    assert main(words(tmp_path, tmp_path / "one")) == 0
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    code, _ = run(words(tmp_path, tmp_path / "two", *two), 2, TESTS)
    assert code == 0
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    one, other = (figures(tmp_path / name) for name in ("one", "two"))
    del one["seconds"], other["seconds"]
    assert other == pytest.approx(one)


def refused(capsys: pytest.CaptureFixture[str], given: Sequence[str]) -> str:
    assert main(list(given)) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


def test_bad_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, {})
    torch.manual_seed(0)
    gan: Any = DDGANSettings(8, (1, 2), 1, (8,), 4, 8, 1).build(resolution=16, channels=3)
    save_generator(tmp_path / "gan", gan, {})
    auto: Any = DiffAESettings(8, (1, 2), (1, 2), 1, (), 1, 6, 16, 3, 8, norm_groups=4)
    save_generator(
        tmp_path / "auto", auto.build(resolution=16, channels=3), {"latent_prior": False}
    )
    make_run(tmp_path, {"sources": ["a.png"]})
    begun = ["--data", "TranslationImages", "--data.source", tmp_path / "sources"]
    given = words(tmp_path, tmp_path / "out", "--model.generator", tmp_path / "gan", *begun)
    for name in ("--model.steps", "--data.count"):
        at = given.index(name)
        del given[at : at + 2]
    assert "--data: gan cannot encode images" in refused(capsys, given)
    assert not (tmp_path / "out").exists()
    many = json.dumps([{"class_path": "ClassEnergy", "init_args": {"classes": [1000]}}])
    unclassed = json.dumps([{"class_path": "ClassEnergy", "init_args": {"classes": []}}])
    for more, told in (
        (["--model.generator", tmp_path / "no"], "--model.generator: "),
        (["--model.generator", tmp_path / "gan"], "--model.steps: a DDGAN has its own, 4"),
        (["--model.generator", tmp_path / "auto"], "has no latent prior"),
        (["--model.eta", 2], "--model.eta must be in [0, 1], got 2"),
        (["--model.steps", 2000], "--model.steps must be in 1..1000"),
        (["--model.sampler.step_size", 9], "step_size must be in (0, 4), got 9"),
        (["--model.which", "first"], "--model.which"),
        (["--model.sampler", "TFG", "--model.which", "best"], "TFG has no states of z"),
        (["--model.sampler", "TFG", "--model.sampler.rho", 0, "--model.sampler.mu", 0], "rho must"),
        (["--model.energies", "[]"], "--model.energies: give at least one"),
        (["--model.energies", unclassed], "classes must be one or more numbers"),
        (["--model.energies", many], "classes must be below 1000 for efficientnet-lite0"),
        (["--data.count", 0], "--data.count must be at least 1"),
        (["--scores.judge_classes", "[3]"], "name the network that is to judge"),
        (["--scores.judge", "judges:Rows", "--scores.judge_images", tmp_path], "go together"),
        (["--scores.judge_by", "pixels"], "--scores.judge_by: pixels are those of judge_images"),
        (["--scores.judge_by", "colour"], "--scores.judge_by"),
    ):
        message = refused(capsys, words(tmp_path, tmp_path / "out", *more))
        assert told in message, message
        assert not (tmp_path / "out").exists()


def test_a_judge_that_guides_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    make_run(tmp_path, {})
    energies = json.dumps([{"class_path": "ClassEnergy", "init_args": {"classes": [281]}}])
    more = ["--model.energies", energies, "--model.sampler.steps", 1, "--data.count", 1]
    judge = ["--scores.judge", "efficientnet-lite0", "--scores.judge_classes"]
    assert main(words(tmp_path, tmp_path / "out", *more, *judge, "[281]")) == 0
    assert "efficientnet-lite0 guides, too" in caplog.text
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (told,) = [s["protocol"] for s in report["figures"] if s["figure"] == "success after"]
    assert told.endswith("which guided, too")
    capsys.readouterr()
    # Of a class that there is not, no image would ever be.
    assert main(words(tmp_path, tmp_path / "far", *more, *judge, "[1000]")) == 1
    assert "judge_classes must be in 0..999 for" in capsys.readouterr().err
    assert not (tmp_path / "far" / "images").exists()


def test_other_settings_need_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, {})
    assert main(words(tmp_path, tmp_path / "out")) == 0
    capsys.readouterr()
    message = refused(capsys, words(tmp_path, tmp_path / "out", "--model.sampler.steps", 7))
    assert "were made otherwise: --model.sampler.steps was 6, now 7" in message
    torch.manual_seed(9)
    unet = TINY.build(resolution=R, channels=3)
    save_domain(tmp_path / "cat", unet, NoiseSchedule(), card={"name": "cat"})
    message = refused(capsys, words(tmp_path, tmp_path / "out"))
    assert "made by other weights than those of --model.generator" in message


def test_the_nearest_of_real_images_judges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the angle between mean colours here, of images whose names a pattern wants."""
    make_run(tmp_path, {})
    colours = {"a-red": (220, 90, 90), "b-red": (140, 20, 30), "grey": (120, 120, 120)}
    (tmp_path / "real").mkdir()
    for name, colour in colours.items():
        Image.new("RGB", (R, R), colour).save(tmp_path / "real" / f"{name}.png")
    judged = ("--scores.judge", "judges:Rows", "--scores.judge_images", tmp_path / "real")
    output = tmp_path / "out"
    assert main(words(tmp_path, output, *judged, "--scores.judge_names", '["*-red"]')) == 0

    def nearest(path: Path) -> str:
        mean = read(path).mean(dim=(0, 1)) + torch.tensor([1.0, 2.0, 3.0])
        rows = {
            name: torch.tensor(c) + torch.tensor([1.0, 2.0, 3.0]) for name, c in colours.items()
        }
        return max(rows, key=lambda name: float(torch.cosine_similarity(mean, rows[name], dim=0)))

    found = figures(output)
    for when, folder in (("before", "starts"), ("after", "images")):
        names = [nearest(path) for path in sorted((output / folder).glob("*.png"))]
        rate = sum(name.endswith("-red") for name in names) / len(names)
        assert len(names) == 4 and found[f"success {when}"] == rate
    assert found["success after"] > found["success before"]
    wrong = ("--scores.judge_names", '["*-red", "blue*"]')
    capsys.readouterr()
    given = words(tmp_path, tmp_path / "no", *judged, *wrong)
    assert "there is no blue* in" in refused(capsys, given)


def test_the_nearest_by_pixels_judges(tmp_path: Path) -> None:
    """Without any network; those found are the images that differ least, pixel by pixel."""
    make_run(tmp_path, {})
    (tmp_path / "real").mkdir()
    real = {}
    for index, seed in enumerate(range(6)):
        drawn = torch.rand(R, R, 3, generator=torch.Generator().manual_seed(seed))
        pixels = (drawn * torch.tensor([255, 120, 120])).byte()
        name = f"{'warm' if index % 2 else 'cold'}-{index}"
        real[name] = pixels if index % 2 else pixels.flip(2)
        Image.fromarray(real[name].numpy()).save(tmp_path / "real" / f"{name}.png")
    judged = ("--scores.judge_by", "pixels", "--scores.judge_images", tmp_path / "real")
    output = tmp_path / "out"
    assert main(words(tmp_path, output, *judged, "--scores.judge_names", '["warm-*"]')) == 0
    found = figures(output)
    for when, folder in (("before", "starts"), ("after", "images")):
        names = []
        for path in sorted((output / folder).glob("*.png")):
            image = torch.from_numpy(np.asarray(Image.open(path)).astype(np.int64))
            gaps = {name: float((image - p).square().sum()) for name, p in real.items()}
            names.append(min(gaps, key=lambda name: gaps[name]))
        assert found[f"success {when}"] == sum(n.startswith("warm") for n in names) / len(names)
    assert found["success after"] > found["success before"]
    assert "diversity after" not in found
