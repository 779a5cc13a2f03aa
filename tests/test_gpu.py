"""What can be seen on a CUDA GPU alone: `pytest -m gpu`; everything else skips there is none."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from test_engine import domain, images
from tiny import TINY, make_run, predict_words
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.engine import Engine, best_precision
from cyclelight.cli import main
from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.domain import Domain
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.modules.domain import DomainModule
from cyclelight.networks.adm import ADMSettings
from datamodules import DomainImages

CATS = Path(__file__).parents[1] / "docs" / "demo" / "cats"
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
    pytest.mark.filterwarnings("ignore"),  # Of libraries that are not the locked ones.
]


@pytest.fixture(autouse=True)
def full_precision() -> None:
    """TensorFloat-32 rounds to 10 bits, which would hide what differs otherwise."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def fit(root: Path, steps: int, ckpt_path: str | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(
        max_steps=steps,
        accelerator="gpu",
        devices=1,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(root / "checkpoints", save_last=True, every_n_train_steps=1)],
        **settings,
    )
    module = DomainModule(resolution=16, network=TINY, learning_rate=1e-3, warmup_steps=2)
    trainer.fit(module, DomainImages(str(CATS), batch_size=4, num_workers=0), ckpt_path=ckpt_path)
    return trainer


def test_noise_is_the_same_on_every_device() -> None:
    like, noise = torch.empty(5, 3, 8, 8), KeyedNoise(3, ["a", "b", "c", "d", "e"])
    assert torch.equal(noise("start", 7, like.cuda()).cpu(), noise("start", 7, like))


def test_pixels_are_the_same_on_every_device() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(16, 16, 3)
    assert torch.equal(to_float(levels.cuda()).cpu(), to_float(levels))
    assert torch.equal(to_uint8(to_float(levels.cuda())).cpu(), levels)


def test_a_gpu_translates_as_a_cpu_does() -> None:
    x = images(4)
    expected = cyclelight.translate(domain(0), domain(1), x, steps=20)
    pair = domain(0).to("cuda"), domain(1).to("cuda")
    assert_close(cyclelight.translate(*pair, x.cuda(), steps=20).cpu(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_graphs_give_what_the_networks_give(precision: str) -> None:
    """For several batch sizes, in and out of inference mode."""
    x = images(5).cuda()

    def pair(graphs: bool) -> list[Domain]:
        engine = Engine(graphs=graphs)
        return [engine.speed_up(domain(seed).to("cuda"), precision) for seed in (0, 1)]

    plain, fast = pair(False), pair(True)
    for count in (5, 2, 5, 1):
        expected = cyclelight.translate(*plain, x[:count], steps=10)
        assert torch.equal(cyclelight.translate(*fast, x[:count], steps=10), expected)
        with torch.inference_mode():
            assert torch.equal(cyclelight.translate(*fast, x[:count], steps=10), expected)


def test_equal_networks_give_the_image_back_in_graphs() -> None:
    x = images(3).cuda()
    pair = [Engine().speed_up(domain(0).to("cuda"), "bf16-mixed") for _ in range(2)]
    assert torch.equal(cyclelight.translate(*pair, x, steps=10, cleanup=0), x)


def test_timesteps_together_in_graphs() -> None:
    x, method = images(2).cuda(), CycleDiffusion(steps=10)
    pair = [Engine().speed_up(domain(seed).to("cuda")) for seed in (0, 1)]
    together = cyclelight.translate(*pair, x, method=CycleDiffusion(steps=10, parallel=6))
    assert_close(together, cyclelight.translate(*pair, x, method=method), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_compiled_networks() -> None:
    x = images(3).cuda()
    expected = cyclelight.translate(domain(0).to("cuda"), domain(1).to("cuda"), x, steps=10)
    pair = [Engine(compile=True).speed_up(domain(seed).to("cuda")) for seed in (0, 1)]
    assert_close(cyclelight.translate(*pair, x, steps=10), expected, rtol=0, atol=1e-3)
    assert_close(cyclelight.translate(*pair, x[:2], steps=10), expected[:2], rtol=0, atol=1e-3)


def pixels(folder: Path) -> np.ndarray[Any, Any]:
    return np.stack([np.array(Image.open(path)) for path in sorted((folder / "images").iterdir())])


@pytest.mark.parametrize("precision", [None, "32-true", "bf16-mixed", "16-mixed"])
def test_predict(tmp_path: Path, precision: str | None) -> None:
    """As on the CPU, to the levels that the precision costs; a second run makes nothing anew."""
    make_run(tmp_path, {"sources": ["a.png", "b.png", "c.png"], "real": ["d.png", "e.png"]})
    for name in ("cat", "dog"):  # Trained ones, whose rounding errors the chain does not grow.
        shutil.rmtree(tmp_path / name)
        shutil.copytree(CHECKPOINTS / name, tmp_path / name)
    bare = ("--data.reference", "null")  # Without figures, whose network may not be installed.
    words = predict_words(tmp_path, tmp_path / "cpu", *bare, "--trainer.precision", "32-true")
    assert main(words) == 0
    words = predict_words(tmp_path, tmp_path / "gpu", *bare, "--trainer.accelerator", "gpu")
    given = ["--trainer.precision", precision] if precision else []
    assert main([*words, *given]) == 0
    off = np.abs(pixels(tmp_path / "gpu").astype(int) - pixels(tmp_path / "cpu"))
    assert off.max() <= (3 if precision == "32-true" else 16) and (off > 3).mean() < 0.02
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "gpu" / "images").iterdir()}
    assert main([*words, *given]) == 0
    assert times == {p: p.stat().st_mtime_ns for p in times}
    assert (
        f"precision: {precision or 'bf16-mixed'}" in (tmp_path / "gpu" / "config.yaml").read_text()
    )


def test_the_fastest_precision() -> None:
    half = torch.cuda.get_device_capability() >= (8, 0)
    assert best_precision("cuda") == ("bf16-mixed" if half else "32-true")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_fit(tmp_path: Path, precision: Any, strategy: str) -> None:
    """In one process or as a DDP of one; what it leaves is a domain that loads."""
    trainer = fit(tmp_path, 4, precision=precision, strategy=strategy)
    assert trainer.global_step == 4
    loaded = cyclelight.load_domain(tmp_path / "domain").to("cuda")
    assert cyclelight.sample(loaded, 2, steps=2).isfinite().all()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_fit_that_goes_on_is_the_undisturbed_one(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    whole = fit(tmp_path / "whole", 6, benchmark=False)
    fit(tmp_path / "parts", 3, benchmark=False)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    parts = fit(tmp_path / "parts", 6, ckpt_path=str(last), benchmark=False)
    torch.use_deterministic_algorithms(False)
    assert parts.global_step == whole.global_step == 6
    ours, theirs = (t.lightning_module.state_dict() for t in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_network_of_256_pixels_fits_and_translates() -> None:
    """93.6 M parameters in half precision, against the same in full."""
    torch.manual_seed(0)
    network = ADMSettings().build(resolution=256, channels=3).eval().requires_grad_(False)
    for parameter in network.parameters():  # Whose last layers start at zero.
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.01)
    x = torch.randn(2, 3, 256, 256, device="cuda")
    whole = Domain(NetworkDenoiser(network.cuda(), NoiseSchedule()), 256)
    t = torch.tensor([10, 900], device="cuda")
    with torch.no_grad():
        expected = whole.denoiser(x, t).eps
        half = Engine().speed_up(whole, "bf16-mixed").denoiser(x, t).eps
    assert half.dtype == torch.float32
    assert (half - expected).square().mean() < 1e-3 * expected.square().mean()


@pytest.mark.slow
def test_the_recipe_of_afhq(tmp_path: Path) -> None:
    """Twenty steps of the shipped recipe on pictures made up in AFHQ's layout."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        folder = tmp_path / "afhq_v2" / split / "cat"
        folder.mkdir(parents=True)
        for index in range(16):
            coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((512, 512)).save(folder / f"{index}.png")
    recipe = Path(__file__).parents[1] / "configs" / "domains" / "afhq256.yaml"
    given = {
        "config": recipe,
        "data.root": tmp_path,
        "data.num_workers": 2,
        "trainer.max_steps": 20,
        "trainer.check_val_every_n_epoch": 5,
        "model.sample_every_n_steps": 0,
        "trainer.enable_progress_bar": "false",
        "output": tmp_path / "run",
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert main(["fit", *words]) == 0
    card = json.loads((tmp_path / "run" / "domain" / "domain.json").read_text())
    assert card["steps"] == 20


def test_benchmark(tmp_path: Path) -> None:
    options = {
        "source": CHECKPOINTS / "cat",
        "target": CHECKPOINTS / "dog",
        "steps": 4,
        "repeats": 1,
        "batch_size": 2,
        "published": "false",
        "output": tmp_path,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["benchmark", *words]) == 0
    timings = json.loads((tmp_path / "benchmark.json").read_text())["timings"]
    names = [timing["case"]["name"] for timing in timings]
    assert {"plain", "batched", "+ bf16-mixed", "+ graphs", "one image, graphs"} <= {*names}
    assert all(timing["levels"] is None or timing["levels"] <= 16 for timing in timings)
