"""AutoencoderModule, and fit and predict in the latent space of what it leaves behind."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from oracles import tiny_autoencoder
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close

import cyclelight
from cyclelight.cli import main
from cyclelight.diffusion.pixels import to_float
from cyclelight.modules.autoencoder import AutoencoderModule
from cyclelight.modules.domain import DomainModule
from cyclelight.networks.autoencoder import AutoencoderSettings
from cyclelight.networks.unet import UNetSettings
from datamodules import DomainImages

CATS = str(Path(__file__).parents[1] / "docs" / "demo" / "cats")
TINY = AutoencoderSettings((8, 8), 1, 4, norm_groups=8)
UNET = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def module(**settings: Any) -> AutoencoderModule:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"resolution": 16, "network": TINY, "warmup_steps": 0}
    return AutoencoderModule(**{**defaults, "learning_rate": 1e-2, **settings})


def domain_module(autoencoder: Path, **settings: Any) -> DomainModule:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"resolution": 16, "network": UNET, "sample_every_n_steps": 1}
    return DomainModule(autoencoder=str(autoencoder), **{**defaults, **settings})


def fit(model: Any, root: Path, steps: int, ckpt_path: Path | None = None) -> Trainer:
    checkpoint = ModelCheckpoint(root / "checkpoints", save_last=True, every_n_train_steps=1)
    trainer = Trainer(
        max_steps=steps,
        default_root_dir=root,
        logger=TensorBoardLogger(root, name="", version="logs"),
        callbacks=[checkpoint],
        **QUIET,
    )
    trainer.fit(model, DomainImages(CATS, batch_size=7, num_workers=0), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    return cyclelight.save_autoencoder(tmp_path / "autoencoder", tiny_autoencoder())


def test_the_loss_is_that_of_the_formula() -> None:
    """For a posterior N(m, s^2): KL = sum (m^2 + s^2 - 1 - log s^2) / 2, of each image."""
    pixels, losses = torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8), []
    x = to_float(pixels)
    for kl_weight in (0.0, 0.5):
        model = module(kl_weight=kl_weight, flip=False)
        model.log = lambda *_, **__: None  # type: ignore[method-assign]
        losses.append(model.training_step({"image": pixels}, 0))
        posterior = model.network.encode(x).latent_dist
        m, var = posterior.mean, posterior.std**2
    kl = 0.5 * (m**2 + var - 1 - var.log()).sum() / len(x)
    assert_close(losses[1] - losses[0], 0.5 * kl / (3 * 16 * 16))


def test_fit_learns_and_writes_an_autoencoder_of_unit_variance(tmp_path: Path) -> None:
    trainer = fit(module(ema_decay=0.5), tmp_path, 30)
    autoencoder = cyclelight.load_autoencoder(tmp_path / "autoencoder")
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    x = to_float(torch.stack([item["image"] for item in data.train_images]))
    assert_close(autoencoder.encode(x).std(), torch.tensor(1.0), rtol=0, atol=1e-4)
    raw = trainer.lightning_module.network  # the averaged weights by now
    assert isinstance(raw, torch.nn.Module)
    weights = autoencoder.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in raw.state_dict().items())
    card = json.loads((tmp_path / "autoencoder" / "autoencoder.json").read_text())
    assert (card["resolution"], card["steps"]) == (16, 30)
    assert card["data"]["train_images"] + card["data"]["val_images"] == 8
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    psnr = [event.value for event in events.Scalars("val/psnr")]
    assert psnr[-1] > psnr[0] + 2
    # The last figure is that of the folder, on the one held-out picture.
    (held_out,) = [to_float(item["image"]) for item in data.val_images]
    x_hat = autoencoder.decode(autoencoder.encode(held_out[None])).clamp(-1, 1)
    mse = (x_hat - held_out).div(2).square().mean()
    assert_close(psnr[-1], float(-10 * mse.log10()), rtol=0, atol=0.1)
    assert events.Images("samples")


def test_a_domain_is_trained_on_latents(tmp_path: Path, autoencoder: Path) -> None:
    before = (autoencoder / "diffusion_pytorch_model.safetensors").read_bytes()
    model = domain_module(autoencoder, ema_decay=0.5)
    trainer = fit(model, tmp_path / "run", 2)
    assert not [name for name in model.state_dict() if "autoencoder" in name]
    copied = copy.deepcopy(model)  # as the moving average does
    assert copied.autoencoder is model.autoencoder
    domain = cyclelight.load_domain(tmp_path / "run" / "domain")
    assert (domain.resolution, domain.channels, domain.shape) == (16, 3, (4, 8, 8))
    inside = tmp_path / "run" / "domain" / "vae" / "diffusion_pytorch_model.safetensors"
    assert inside.read_bytes() == before
    assert domain.card["space"] == domain.space
    # A checkpoint is whole by itself.
    checkpoint = cyclelight.load_domain(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint.space == domain.space
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(checkpoint.to_states(x), domain.to_states(x))
    latents = torch.randn(1, 4, 8, 8)
    assert_close(checkpoint.denoiser(latents, 500).eps, domain.denoiser(latents, 500).eps)
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    assert events.Images("samples")[0].width > 4 * 16
    assert "val/loss" in trainer.logged_metrics
    optimizer = trainer.optimizers[0]
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    assert held == len(list(model.denoiser.network.parameters()))


def test_the_loss_of_a_latent_domain_is_that_of_its_latents(autoencoder: Path) -> None:
    """The training step on images equals `loss` on their latents, mirrored before the encoding."""
    model = domain_module(autoencoder)
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    pixels, seen = torch.randint(256, (8, 16, 16, 3), dtype=torch.uint8), []

    def loss(x_0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen.append(x_0)
        return torch.zeros(len(x_0))

    model.loss = loss  # type: ignore[method-assign]
    model.training_step({"image": pixels}, 0)
    model.validation_step({"image": pixels, "key": [str(i) for i in range(8)]}, 0)
    encode, x = cyclelight.load_autoencoder(autoencoder).encode, to_float(pixels)
    plain, mirrored = encode(x), encode(x.flip(3))
    same = [(seen[0][i] - plain[i]).abs().max() < 1e-4 for i in range(8)]
    flipped = [(seen[0][i] - mirrored[i]).abs().max() < 1e-4 for i in range(8)]
    assert all(a != b for a, b in zip(same, flipped, strict=True))
    assert any(same) and any(flipped)
    assert_close(seen[1], plain)
    assert not seen[0].requires_grad


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_starting_in_another_space_is_refused(tmp_path: Path, autoencoder: Path) -> None:
    fit(domain_module(autoencoder), tmp_path / "run", 1)
    domain = tmp_path / "run" / "domain"
    started = domain_module(domain / "vae", init_from=str(domain), resolution=32)
    assert started.domain.shape == (4, 16, 16)
    with pytest.raises(ValueError, match=r"init_from: .* works on latents of .*, not on pixels"):
        DomainModule(resolution=16, init_from=str(domain))
    other = cyclelight.save_autoencoder(tmp_path / "other", tiny_autoencoder(seed=1))
    with pytest.raises(ValueError, match=r"init_from: .* works on latents of .*, not on latents"):
        domain_module(other, init_from=str(domain))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    again = DomainModule.load_from_checkpoint(last)
    assert again.domain.shape == (4, 8, 8) and again.domain.space == started.domain.space
    with pytest.raises(ValueError, match="the checkpoint works on latents of"):
        fit(domain_module(other), tmp_path / "run", 2, last)
    with pytest.raises(ValueError, match="resolution must be a multiple of 2 for this autoencoder"):
        domain_module(autoencoder, resolution=15)
    with pytest.raises(ValueError, match="channels must be 3 for this autoencoder, got 1"):
        domain_module(autoencoder, channels=1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("resolution", 15), ("kl_weight", -1.0), ("learning_rate", 0.0), ("ema_decay", 1.0)],
)
def test_settings_out_of_range_are_named(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        module(**{argument: value})
    if argument == "resolution":
        with pytest.raises(ValueError, match="multiples of norm_groups = 8"):
            module(network=AutoencoderSettings((8, 12), 1, 4, norm_groups=8))


def test_predict_translates_between_latent_domains(tmp_path: Path, autoencoder: Path) -> None:
    """The command's images are those of `translate`, and of the source's size."""
    fit(domain_module(autoencoder, name="cat"), tmp_path / "cat", 1)
    fit(domain_module(autoencoder, name="dog", seed=1), tmp_path / "dog", 2)
    folders = [str(tmp_path / name / "domain") for name in ("cat", "dog")]
    settings = {"steps": 5, "eta": 1.0, "strength": 1.0, "cleanup": 0}
    options = [word for k, v in settings.items() for word in (f"--model.method.{k}", str(v))]
    options += ["--model.source", folders[0], "--model.target", folders[1]]
    options += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    options += ["--trainer.precision", "32-true"]
    output = str(tmp_path / "out")
    assert main(["predict", *options, "--data.source", CATS, "--output", output]) == 0
    written = sorted((tmp_path / "out" / "images").rglob("*.png"))
    assert len(written) == 8
    data = DomainImages(CATS, batch_size=8, num_workers=0)
    data.load(16)
    items = sorted([*data.train_images, *data.val_images], key=lambda i: i["key"])  # type: ignore
    cat, dog = (cyclelight.load_domain(folder) for folder in folders)
    x, keys = (
        to_float(torch.stack([item["image"] for item in items])),
        [item["key"] for item in items],
    )
    y = cyclelight.translate(cat, dog, x, keys=keys, seed=0, **settings)  # type: ignore[arg-type]
    for path, image in zip(written, y, strict=True):
        with Image.open(path) as opened:
            got = torch.from_numpy(np.array(opened))
        expected = ((image.clamp(-1, 1) + 1) / 2 * 255).permute(1, 2, 0)
        assert_close(got.float(), expected, rtol=0, atol=0.51)


def test_predict_refuses_two_spaces_in_one_line(
    tmp_path: Path, autoencoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(domain_module(autoencoder, name="cat"), tmp_path / "cat", 1)
    checkpoints = Path(__file__).parents[1] / "checkpoints"
    options = ["--model.source", str(tmp_path / "cat" / "domain"), "--data.source", CATS]
    options += ["--model.target", str(checkpoints / "dog"), "--output", str(tmp_path / "out")]
    assert main(["predict", *options]) == 2
    assert "cannot be paired: they differ in resolution" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_test_gives_the_figures_of_an_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(module(), tmp_path / "run", 1)
    options = ["--model", "AutoencoderModule", "--model.resolution", "16", "--data.root", CATS]
    options += ["--model.network.block_out_channels", "[8, 8]"]
    options += ["--model.network.layers_per_block", "1", "--model.network.norm_groups", "8"]
    options += ["--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt")]
    options += [f"--trainer.{k}={str(v).lower()}" for k, v in QUIET.items()]
    assert main(["test", *options]) == 1
    assert "AutoencoderModule has no domain to sample" in capsys.readouterr().err
    assert main(["test", *options, "--scores.samples", "0"]) == 0
    assert "test/psnr" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_finished_fit_run_again_writes_the_same_autoencoder(tmp_path: Path) -> None:
    fit(module(), tmp_path, 3)
    folder = tmp_path / "autoencoder"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fit(module(), tmp_path, 3, tmp_path / "checkpoints" / "last.ckpt")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
