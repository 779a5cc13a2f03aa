"""Whatever is new is one new file: a method, a task, data with further fields."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight.callbacks.progress import TaskProgress
from cyclelight.callbacks.writer import ImageWriter
from cyclelight.cli import main
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.folder import save_domain
from cyclelight.methods.base import Domains
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.edit_friendly import EditFriendly
from cyclelight.methods.sdedit import SDEdit
from cyclelight.modules.translation import TranslationModule
from cyclelight.networks.unet import UNetSettings
from cyclelight.runs.folder import RunFolder
from cyclelight.runs.task import Task
from datamodules import TranslationImages

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

R = 16
METHOD = '''
"""A method of its own, in a file of its own."""

from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from cyclelight import Method


class Colour(torch.nn.Module):
    def __init__(self, file):
        super().__init__()
        self.register_buffer("value", torch.load(file, weights_only=True))


@dataclass(frozen=True)
class Toward(Method):
    """Goes down the gradient of the squared distance to a colour, halved.

    Args:
        weights: file with the colour, (3, 1, 1).
        rate: of the step.
    """

    weights: str
    rate: float = 0.5
    needs = ("target",)
    gradients = True

    @cached_property
    def colour(self):
        return Colour(self.weights)

    def networks(self):
        return {"weights": self.colour}

    def made_by(self):
        return {"weights": sha256(Path(self.weights).read_bytes()).hexdigest()}

    def length(self, schedule):
        return 1

    def stream(self, domains, x_0, noise):
        x = x_0.requires_grad_()
        energy = (x - self.colour.value).square().sum() / 2
        (gradient,) = torch.autograd.grad(energy, x)
        yield x - self.rate * gradient
'''
TASK = '''
"""A task and its data of their own, in a file of their own."""

import json
from pathlib import Path

import torch

from cyclelight.diffusion.pixels import to_float
from cyclelight.runs.task import Task
from datamodules import PredictData, TranslationImages
from datamodules.items import Items
from datamodules.square_images import SquareImages

MADE = []


class Negative(Task):
    """The negative of each image.

    Args:
        gain: contrast.
        seed: of nothing.
    """

    resolution, steps = 16, 1

    def __init__(self, gain: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.gain, self.seed = gain, seed

    def describe(self):
        return f"negatives: gain {self.gain}"

    def made_by(self):
        return {}

    def make(self, batch):
        MADE.extend(batch["key"])
        self.on_step()
        return -self.gain * to_float(batch["image"])


class Drawn(Task):
    """Grey images of the levels that the data say, from nothing.

    Args:
        seed: of nothing.
    """

    resolution, steps = 16, 1

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def describe(self):
        return "greys"

    def made_by(self):
        return {}

    def make(self, batch):
        MADE.extend(batch["key"])
        levels = torch.tensor(batch["level"]).view(-1, 1, 1, 1)
        return (levels / 127.5 - 1).expand(-1, 3, 16, 16)


class Levels(PredictData):
    """Levels of grey, without sources.

    Args:
        count: how many.
        first: the least.
        batch_size: at a time.
        num_workers: none.
    """

    def __init__(
        self, count: int = 5, first: int = 100, batch_size: int = 2, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.count, self.first = count, first
        self.batch_size, self.num_workers = batch_size, num_workers

    @property
    def keys(self):
        return [f"grey_{i}.png" for i in range(self.count)]

    def load(self, resolution):
        fields = {key: {"level": self.first + i} for i, key in enumerate(self.keys)}
        self.items = Items(self.keys, fields)


class Captioned(TranslationImages):
    """Images with a caption, from captions.json beside them."""

    def _squares(self, files, resolution):
        captions = json.loads(Path(self.source, "captions.json").read_text())
        fields = {key: {"text": captions[key]} for key, _ in files}
        return SquareImages(files, resolution, keep=False, fields=fields)
'''


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A domain, three images with captions, and two new files on Python's path."""
    torch.manual_seed(0)
    unet = UNetSettings((8,), 1, (), head_channels=8, norm_groups=8)
    for name in ("cat", "dog"):
        network = unet.build(resolution=R, channels=3)
        torch.nn.init.normal_(network.conv_out.weight, std=0.1)
        save_domain(tmp_path / name, network, NoiseSchedule(), card={"name": name})
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in "abc":
        pixels = generator.integers(0, 256, (R, R, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    captions = {f"{name}.png": f"picture {name}" for name in "abc"}
    (tmp_path / "images" / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "my_method.py").write_text(METHOD)
    (tmp_path / "my_task.py").write_text(TASK)
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))
    for name in ("my_method", "my_task"):
        sys.modules.pop(name, None)


def predict(here: Path, *options: object) -> int:
    quiet = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    where = ("--data.source", here / "images", "--output", here / "out")
    return main(["predict", *map(str, (*where, *quiet, *options))])


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def test_a_new_method_is_one_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1)
    torch.save(colour, here / "colour.pt")
    options = ("--model.target", here / "dog", "--model.method", "my_method.Toward")
    options += ("--model.method.weights", here / "colour.pt", "--model.method.rate", 0.25)
    assert predict(here, *options) == 0
    for name in "abc":
        x = to_float(pixels(here / "images" / f"{name}.png"))
        expected = ((x + 0.25 * (colour - x)).clamp(-1, 1) + 1) * 127.5
        made = pixels(here / "out" / "images" / f"{name}.png").permute(2, 0, 1)
        assert_close(made.float(), expected, rtol=0, atol=0.51)
    made_by = json.loads((here / "out" / "made_by.json").read_text())
    assert made_by.keys() == {"target", "method.weights"}
    # What it is known by: its settings, and the weights of its own.
    capsys.readouterr()
    assert predict(here, *options, "--model.method.rate", 0.5) == 2
    assert "--model.method.rate was 0.25, now 0.5" in capsys.readouterr().err
    torch.save(-colour, here / "colour.pt")
    assert predict(here, *options) == 2
    assert f"than those of --model.method.weights {here}" in capsys.readouterr().err
    assert predict(here, *options, "--overwrite") == 0


def test_a_new_task_is_one_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ("--model", "my_task.Negative", "--data", "my_task.Captioned")
    assert predict(here, *task, "--data.batch_size", 2) == 0
    for name in "abc":
        source = pixels(here / "images" / f"{name}.png")
        assert torch.equal(pixels(here / "out" / "images" / f"{name}.png"), 255 - source)
    there = {path.name for path in (here / "out").iterdir()}
    assert there >= {"gallery.png", "gallery.html", "metrics.json", "metrics.csv", "config.yaml"}
    assert "negatives: gain 1.0" in (here / "out" / "gallery.html").read_text()
    manifest = RunFolder(here / "out").manifest()
    assert [entry["text"] for entry in manifest.values()] == [  # type: ignore[typeddict-item]
        *("picture a", "picture b", "picture c")
    ]
    # Resuming makes what is missing, or was made of something else.
    made = sys.modules["my_task"].MADE
    made.clear()
    assert predict(here, *task) == 0 and made == []
    captions = json.loads((here / "images" / "captions.json").read_text())
    (here / "images" / "captions.json").write_text(json.dumps(captions | {"b.png": "another"}))
    with pytest.warns(UserWarning, match="1 images, such as b.png, are other ones"):
        assert predict(here, *task, "--data.batch_size", 1) == 0
    assert made == ["b.png"]
    capsys.readouterr()
    assert predict(here, *task, "--model.gain", 0.5) == 2
    assert "--model.gain was 1.0, now 0.5" in capsys.readouterr().err


def test_a_task_may_have_no_sources(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, task = here / "out", ("--model", "my_task.Drawn", "--data", "my_task.Levels")
    quiet = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    words = ["predict", *task, *quiet, "--output", str(out)]
    assert main(words) == 0
    for i in range(5):
        assert (pixels(out / "images" / f"grey_{i}.png") == 100 + i).all()
    entries = RunFolder(out).manifest()
    assert entries["grey_3.png"] == {
        "key": "grey_3.png",
        "source": "",
        "digest": "",
        "output": "images/grey_3.png",
        "seed": 0,
        "level": 103,
    }
    page = (out / "gallery.html").read_text()
    assert page.count('<img class="translated"') == 5 and '<img class="source"' not in page
    assert "Source left" not in page and page.count('style="display: none"') == 2
    assert len((out / "metrics.csv").read_text().splitlines()) == 6
    made = sys.modules["my_task"].MADE
    made.clear()
    (out / "images" / "grey_4.png").unlink()
    assert main(words) == 0 and made == ["grey_4.png"]
    assert main([*words, "--data.first", "50"]) == 2
    assert "--data.first was 100, now 50" in capsys.readouterr().err


@dataclass(frozen=True)
class Steepest(CycleDiffusion):
    """One step down the gradient of a brightness, taken through the whole chain."""

    gradients = True

    def stream(self, domains: Domains, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        x, y = x_0.requires_grad_(), x_0
        for y in super().stream(domains, x, noise):
            yield y.detach()
        (gradient,) = torch.autograd.grad(y.sum(), x)
        yield x_0.detach() - 0.1 * gradient

    def length(self, schedule: NoiseSchedule) -> int:
        return super().length(schedule) + 1


def trainer(output: Path, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=output, callbacks=list(callbacks), **quiet, **options)


def test_a_gradient_goes_through_a_whole_predict_step(here: Path) -> None:
    """Lightning's inference mode forbids gradients; a method that asks for them gets them."""
    method = Steepest(steps=4, eta=0.5, strength=1.0, cleanup=300)
    module = TranslationModule(str(here / "cat"), str(here / "dog"), method)
    data = TranslationImages(str(here / "images"), batch_size=3)
    fit = trainer(here / "out", ImageWriter(), enable_progress_bar=False)
    (made,) = fit.predict(module, data) or []
    x = torch.stack([to_float(pixels(here / "images" / f"{name}.png")) for name in "abc"])
    cat, dog = cyclelight.load_domain(here / "cat"), cyclelight.load_domain(here / "dog")
    keys = ["a.png", "b.png", "c.png"]
    x.requires_grad_()
    differentiable = type("Plain", (CycleDiffusion,), {"gradients": True})
    plain = differentiable(steps=4, eta=0.5, strength=1.0, cleanup=300)
    y = cyclelight.translate(cat, dog, x, method=plain, keys=keys)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.abs().max() > 0.1
    expected = ((x - 0.1 * gradient).clamp(-1, 1) + 1) * 127.5
    assert_close(made.permute(0, 3, 1, 2).float(), expected.detach(), rtol=0, atol=0.51)  # type: ignore


def test_sdedit_runs_on_a_target_alone(here: Path) -> None:
    options = ("--model.target", here / "dog", "--model.method", "SDEdit")
    few = ("--model.method.steps", 4, "--data.batch_size", 3, "--trainer.precision", "32-true")
    assert predict(here, *options, *few) == 0
    x = torch.stack([to_float(pixels(here / "images" / f"{name}.png")) for name in "abc"])
    dog = cyclelight.load_domain(here / "dog")
    y = cyclelight.translate(None, dog, x, method=SDEdit(4), keys=["a.png", "b.png", "c.png"])
    expected = (y.clamp(-1, 1) + 1) * 127.5
    made = torch.stack([pixels(here / "out" / "images" / f"{name}.png") for name in "abc"])
    assert_close(made.permute(0, 3, 1, 2).float(), expected, rtol=0, atol=0.51)
    assert json.loads((here / "out" / "made_by.json").read_text()).keys() == {"target"}


def test_a_method_takes_no_settings_of_another(here: Path) -> None:
    """Neither of the default nor of a recipe, where their names agree."""
    (here / "eta.yaml").write_text(
        "model: {init_args: {method: {class_path: CycleDiffusion, init_args: {eta: 0.3}}}}"
    )
    pair = ("--model.source", here / "cat", "--model.target", here / "dog", "--overwrite")
    few = ("--model.method.steps", 4)

    def kept(*options: object) -> dict[str, Any]:
        assert predict(here, *pair, *options) == 0
        config = yaml.safe_load((here / "out" / "config.yaml").read_text())
        method: dict[str, Any] = config["model"]["init_args"]["method"]
        return method["init_args"]

    assert kept("--model.method", "SDEdit", *few) == asdict(SDEdit(4))
    recipe = ("--config", here / "eta.yaml")
    assert kept(*recipe, *few) == asdict(CycleDiffusion(4, 0.3))
    assert kept(*recipe, "--model.method", "EditFriendly", *few) == asdict(EditFriendly(4))
    assert kept(*recipe, "--model.method", "CycleDiffusion", *few)["eta"] == 0.3


class Counting(Task):
    """Three steps for a batch; the image as it is."""

    resolution, steps, seed = R, 3, 0

    def describe(self) -> str:
        return "nothing"

    def made_by(self) -> dict[str, str]:
        return {}

    def make(self, batch: Mapping[str, Any]) -> Tensor:
        for _ in range(self.steps):
            self.on_step()
        return to_float(batch["image"])


def test_the_bar_counts_steps_and_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = TaskProgress()
    run = trainer(here / "out", bar)
    data = TranslationImages(str(here / "images"), batch_size=2)
    run.predict(Counting(), data, return_predictions=False)
    assert (bar._bar.n, bar._bar.total) == (6, 6)  # Two batches of three steps.
    shown = capsys.readouterr().err
    assert "3 images: 100%" in shown and "image/s" in shown
    silent = TaskProgress()
    silent.disable()
    trainer(here / "out", silent).predict(Counting(), data, return_predictions=False)
    assert "images" not in capsys.readouterr().err
