"""DomainModule: loss, learning rate, averaged weights, resume and what a fit leaves behind."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close
from torch.utils.data import DataLoader

import cyclelight
from cyclelight.callbacks.ema import EMA
from cyclelight.diffusion.denoiser import eps_from_output
from cyclelight.diffusion.loss import loss_weight, variance_loss
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.diffusion.steps import Step, add_noise
from cyclelight.modules.domain import DomainModule
from cyclelight.networks.adm import ADMSettings
from cyclelight.networks.unet import UNetSettings
from datamodules import DomainImages

CATS = str(Path(__file__).parents[1] / "docs" / "demo" / "cats")
TINY = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8)


def module(**settings: Any) -> DomainModule:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"resolution": 16, "network": TINY, "sample_every_n_steps": 0}
    return DomainModule(**{**defaults, "warmup_steps": 2, "learning_rate": 1e-3, **settings})


class Ordered(DomainImages):
    """Every epoch in the same order."""

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.train_images is not None
        return DataLoader(self.train_images, batch_size=4)


def fit(
    root: Path, steps: int, ckpt_path: str | None = None, *, ordered: bool = False, **settings: Any
) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[ModelCheckpoint(root / "checkpoints", save_last=True, every_n_train_steps=1)],
    )
    data = (Ordered if ordered else DomainImages)(CATS, batch_size=7, num_workers=0)
    trainer.fit(module(**settings), data, ckpt_path=ckpt_path)
    return trainer


def test_weights_are_those_of_the_papers() -> None:
    alpha_bar = torch.tensor([0.01, 0.5, 0.9, 0.99], dtype=torch.float64)
    assert_close(loss_weight(alpha_bar, "uniform"), torch.ones(4).double())
    assert_close(loss_weight(alpha_bar, "p2"), 1 - alpha_bar)  # 1 / (1 + SNR)
    assert_close(loss_weight(alpha_bar, "min_snr")[:3].double()[:2], torch.ones(2).double())
    assert_close(loss_weight(alpha_bar, "min_snr")[3].item(), 5 / 99)


def test_loss_of_a_learned_variance() -> None:
    """Against torch's own distributions, about means and sigmas of single steps."""
    schedule, generator = NoiseSchedule.linear(timesteps=20), torch.Generator().manual_seed(0)
    x_0, noise, wrong, v = torch.randn(
        4, 3, 2, 4, 4, generator=generator, dtype=torch.float64
    ).clamp(-1, 1)
    timesteps = torch.tensor([0, 7, 19])
    alpha_bar = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    x_0 = ((x_0 + 1) * 127.5).round() / 127.5 - 1
    x_t, eps = add_noise(x_0, noise, alpha_bar), noise + 0.1 * wrong
    eps.requires_grad_(True), v.requires_grad_(True)
    bits = variance_loss(schedule, timesteps, x_0, x_t, eps, v)
    for row, t in enumerate(timesteps.tolist()):
        step = Step.between(schedule, t, t - 1, 1.0)
        mean = step.mean(x_t[row], eps[row])
        if t > 0:
            q = torch.distributions.Normal(step.mean(x_t[row], noise[row]), step.sigma)
            p = torch.distributions.Normal(mean, step.learned_sigma(v[row]))
            wanted = torch.distributions.kl_divergence(q, p)
        else:
            # The lower end of the range is taken from the next step, where it is not 0.
            a, b = schedule.betas[0].log(), 2 * math.log(Step.between(schedule, 1, 0, 1.0).sigma)
            sigma = ((v[row] + 1) / 2 * a / 2 + (1 - v[row]) / 2 * b / 2).exp()
            p = torch.distributions.Normal(mean, sigma)
            above, below = p.cdf(x_0[row] + 1 / 255), p.cdf(x_0[row] - 1 / 255)
            above = torch.where(x_0[row] == 1, 1.0, above)
            wanted = -(above - torch.where(x_0[row] == -1, 0.0, below)).clamp(min=1e-12).log()
        assert_close(bits[row], wanted.mean() / math.log(2))
    bits.sum().backward()
    assert eps.grad is None and v.grad is not None and bool((v.grad != 0).all())


def test_fit_trains_the_learned_variance() -> None:
    """The loss of a network with one is the loss without, and 1 bit for 1 bit the variance's."""
    adm = module(network=ADMSettings(32, (1,), 0, (), num_head_channels=8))
    x_0, noise = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    t = torch.tensor([10, 900])
    x_t = add_noise(x_0, noise, adm.denoiser.schedule.alphas_cumprod[t].view(-1, 1, 1, 1).float())
    # A new network's outputs are 0: no noise, and the middle of the range.
    zero = torch.zeros_like(x_0)
    bits = variance_loss(adm.denoiser.schedule, t, x_0, x_t, zero, zero)
    weight = loss_weight(adm.denoiser.schedule.alphas_cumprod[t], "p2").float()
    assert_close(adm.loss(x_0, t, noise), weight * noise.square().mean(dim=(1, 2, 3)) + bits)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_output_of_any_kind_has_no_loss(kind: Any) -> None:
    x_0, eps = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    a = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64).view(-1, 1, 1, 1)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    v = a.sqrt() * eps - (1 - a).sqrt() * x_0
    output = {"epsilon": eps, "v_prediction": v, "sample": x_0}[kind]
    assert_close(eps_from_output(output, x_t, a, kind), eps)


class Walk(LightningModule):
    """A weight that takes the value of each batch in turn: its distance to it is the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight - batch).square().sum() / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_a_fit_ends_with_the_moving_average_that_ramps_up(tmp_path: Path) -> None:
    values = [1.0, 3.0, -2.0, 5.0, 0.5, 4.0, -7.0, 2.0]
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EMA(0.3)],
    )
    walk = Walk()
    trainer.fit(walk, DataLoader(torch.tensor(values), batch_size=1))
    expected = values[0]
    for decay, value in zip((2 / 11, 3 / 12, 0.3, 0.3, 0.3, 0.3, 0.3), values[1:], strict=True):
        expected = decay * expected + (1 - decay) * value
    assert_close(walk.weight.item(), expected)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_subclass_may_have_an_optimizer_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sgd(self: DomainModule) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    monkeypatch.setattr(DomainModule, "configure_optimizers", sgd)
    fit(tmp_path, 1)
    trainer = fit(tmp_path, 2, str(tmp_path / "checkpoints" / "last.ckpt"))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 and trainer.global_step == 2


def test_the_average_is_where_the_fit_computes() -> None:
    """Not on the CPU, where the module is when callbacks are set up."""
    ema, fitted = EMA(0.5), module()
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    ema.setup(trainer, fitted, "fit")  # type: ignore[arg-type]
    assert ema._average_model is not None
    assert {weight.device.type for weight in ema._average_model.parameters()} == {"meta"}
    assert {weight.device.type for weight in fitted.parameters()} == {"cpu"}


def test_fit_writes_a_domain_of_the_averaged_weights(tmp_path: Path) -> None:
    trainer = fit(tmp_path, 3, name="cat", ema_decay=0.9)
    card = json.loads((tmp_path / "domain" / "domain.json").read_text())
    assert (card["name"], card["resolution"], card["steps"]) == ("cat", 16, 3)
    assert card["data"]["train_images"] + card["data"]["val_images"] == 8
    folder = cyclelight.load_domain(tmp_path / "domain")
    checkpoint = cyclelight.load_domain(tmp_path / "checkpoints" / "last.ckpt")
    x = torch.randn(1, 3, 16, 16)
    assert_close(folder.denoiser(x, 500).eps, checkpoint.denoiser(x, 500).eps)
    raw = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert any(
        not torch.equal(raw["state_dict"][k], raw["current_model_state"][k])
        for k in raw["state_dict"]
    )
    assert trainer.global_step == 3


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_fit_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """Raw and averaged weights bit for bit, given the same batches in the same order."""
    fit(tmp_path / "whole", 4, ordered=True)
    fit(tmp_path / "parts", 2, ordered=True)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    fit(tmp_path / "parts", 4, str(last), ordered=True)
    resumed = torch.load(last, weights_only=True)
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == whole["global_step"] == 4
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert resumed[part].keys() == whole[part].keys()
        assert all(torch.equal(value, whole[part][name]) for name, value in resumed[part].items())


def test_learning_rate_warms_up_then_follows_the_cosine(tmp_path: Path) -> None:
    trainer = fit(tmp_path, 4, lr_schedule="cosine", warmup_steps=2, learning_rate=1.0e-3)
    factor = trainer.lr_scheduler_configs[0].scheduler.lr_lambdas[0]
    assert [round(factor(step), 6) for step in range(5)] == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_init_from_takes_network_and_schedule_over(tmp_path: Path) -> None:
    schedule = cyclelight.NoiseSchedule.cosine()
    fit(tmp_path, 1, name="animals", schedule=schedule, prediction_type="v_prediction")
    started = module(init_from=str(tmp_path / "domain"))
    assert started.denoiser.schedule == schedule
    assert started.denoiser.prediction_type == "v_prediction"
    loaded = cyclelight.load_domain(tmp_path / "domain").denoiser.network.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in started.denoiser.network.state_dict().items())
    assert all(p.requires_grad for p in started.parameters())
    with pytest.raises(ValueError, match=r"init_from: .* has channels 3, not 1"):
        module(init_from=str(tmp_path / "domain"), channels=1)
    with pytest.raises(FileNotFoundError, match=r"init_from: .*nothing does not exist"):
        module(init_from=str(tmp_path / "nothing"))


def test_a_module_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    schedule = cyclelight.NoiseSchedule.cosine()
    fit(tmp_path, 2, name="animals", schedule=schedule, weighting="min_snr", ema_decay=0.5)
    last = tmp_path / "checkpoints" / "last.ckpt"
    loaded = DomainModule.load_from_checkpoint(last, learning_rate=5e-5)
    assert (loaded.name, loaded.resolution, loaded.denoiser.schedule) == ("animals", 16, schedule)
    assert (loaded.weighting, loaded.ema_decay, loaded.ancestor) == ("min_snr", 0.5, None)
    assert loaded.learning_rate == 5e-5 and all(p.requires_grad for p in loaded.parameters())
    averaged = cyclelight.load_domain(last).denoiser.network.state_dict()
    assert_close(dict(loaded.denoiser.network.state_dict()), dict(averaged), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"checkpoint_path: .*domain is no \.ckpt file"):
        DomainModule.load_from_checkpoint(tmp_path / "domain")
    with pytest.raises(FileNotFoundError, match=r"checkpoint_path: there is no file .*no\.ckpt"):
        DomainModule.load_from_checkpoint(tmp_path / "no.ckpt")


def test_init_from_may_be_of_another_resolution(tmp_path: Path) -> None:
    fit(tmp_path / "small", 1)
    small = str(tmp_path / "small" / "domain")
    fit(tmp_path / "large", 1, init_from=small, resolution=24)
    # diffusers' own pipeline takes the size of its images from the folder.
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "large" / "domain")
    assert pipeline(num_inference_steps=1, output_type="np").images.shape == (1, 24, 24, 3)
    assert cyclelight.load_domain(tmp_path / "large" / "domain").resolution == 24
    with pytest.raises(ValueError, match=r"resolution must be a multiple of 2 .*got 25"):
        module(init_from=small, resolution=25)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("resolution", 0), ("learning_rate", 0.0), ("ema_decay", 1.0), ("warmup_steps", -1)],
)
def test_settings_out_of_range_are_named(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=argument):
        module(**{argument: value})


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (UNetSettings((8, 12), 1, (), head_channels=4, norm_groups=8), "norm_groups = 8"),
        (UNetSettings((8, 24), 1, (), head_channels=16, norm_groups=8), "head_channels = 16"),
        (UNetSettings((8, 16), 1, (16,), head_channels=16, norm_groups=8), "head_channels = 16"),
        (UNetSettings((8, 16), 1, (4,), head_channels=8, norm_groups=8), "attention_resolutions"),
        (UNetSettings((8,) * 6, 1, (), head_channels=8, norm_groups=8), "multiple of 32"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(network: UNetSettings, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        module(network=network)
