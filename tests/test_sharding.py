"""Sharded fits in two processes: the results of DDP, whole files, and refusals beforehand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ranks
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from test_preemption import CATS, arguments, assert_same_fit, kill, state

from cyclelight.callbacks.ema import EMA
from cyclelight.cli import main
from cyclelight.domains.autoencoder_folder import load_autoencoder
from cyclelight.domains.folder import load_domain
from cyclelight.runs.sharding import FSDP2, Sharded, whole

# 4 images to train on in 2 batches each, one step; of 3 for validation one process has two. With
# one channel to a group, the biases before the norm would have rounding errors for gradients, and
# AdamW makes whole steps of these. Dropout's masks follow the layout of the weights in memory.
COMMON = {
    "data.batch_size": 1,
    "data.val_fraction": 0.4,
    "model.network.norm_groups": 4,
    "trainer.devices": 2,
    "trainer.max_steps": 4,
    "trainer.accumulate_grad_batches": 2,
    "trainer.gradient_clip_val": 0.5,
    "checkpoint.every_n_train_steps": 4,
}
DOMAIN = {**COMMON, "model.network.dropout": 0, "model.sample_every_n_steps": 1}
AUTOENCODER = {
    "model": "AutoencoderModule",  # Before its settings.
    **COMMON,
    "model.resolution": 16,
    "model.network.block_out_channels": "[8, 16]",
    "model.network.layers_per_block": 1,
    "model.warmup_steps": 3,
    "data.root": CATS,
    "data.num_workers": 0,
    "trainer.accelerator": "cpu",
    "trainer.logger": "false",
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}


class Halves(Callback):
    """Fails unless this process holds about half of weights, gradients, averages and moments."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        weights = list(pl_module.parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        moments = [state["exp_avg"] for state in trainer.optimizers[0].state.values()]
        ema = next(c for c in trainer.callbacks if isinstance(c, EMA))
        averages = [*ema._average_model.module.parameters()]
        total = sum(weight.numel() for weight in weights)
        # Before the first step there are no gradients and moments.
        for held in filter(None, (weights, gradients, averages, moments)):
            local = sum(value.to_local().numel() for value in held)
            assert 0.4 * total < local < 0.6 * total


def options(given: dict[str, Any]) -> list[str]:
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def run(args: list[str]) -> int:
    """The exit code of two processes that warn of nothing."""
    code, said = ranks.run(args)
    assert "warning" not in said.lower()
    return code


def fit(output: Path, strategy: str, *more: str) -> int:
    return run([*arguments(output), *options({**DOMAIN, "trainer.strategy": strategy}), *more])


def assert_close_fit(one: Path, other: Path) -> None:
    """Weights, averages, optimizer and counters to rounding."""
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    for part in ("state_dict", "current_model_state"):
        assert a[part].keys() == b[part].keys()
        for name, weight in a[part].items():
            # Attention does not feel the bias of its keys, whose gradient is rounding errors.
            atol = 1e-4 if name.endswith("to_k.bias") else 2e-6
            assert type(b[part][name]) is torch.Tensor
            torch.testing.assert_close(b[part][name], weight, rtol=1e-5, atol=atol, msg=name)
    torch.testing.assert_close(b["optimizer_states"], a["optimizer_states"], rtol=1e-4, atol=1e-6)
    for part in ("averaging_state", "lr_schedulers", "global_step", "epoch"):
        assert a[part] == b[part], part


def assert_close_domain(one: Path, other: Path) -> None:
    """Every file of the folders, but for the last bits of the weights."""
    paths = [sorted(p for p in (f / "domain").rglob("*") if p.is_file()) for f in (one, other)]
    for a, b in zip(*paths, strict=True):
        assert a.relative_to(one) == b.relative_to(other)
        assert a.suffix == ".safetensors" or a.read_bytes() == b.read_bytes()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for part in ("domain", "checkpoints/last.ckpt"):
        a, b = (load_domain(folder / part).denoiser(x, 500).eps for folder in (one, other))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ddp")
    assert fit(root, "ddp") == 0
    return root


@pytest.mark.slow
def test_a_sharded_fit_is_that_of_ddp_and_resumes_exactly(ddp: Path, tmp_path: Path) -> None:
    """With validation, samples and clipping; one process signalled amid a step."""
    halves = ("--trainer.callbacks", "[{class_path: test_sharding.Halves}]")
    assert fit(tmp_path / "whole", FSDP2, *halves) == 0
    assert_close_fit(ddp, tmp_path / "whole")
    assert_close_domain(ddp, tmp_path / "whole")
    assert fit(tmp_path / "parts", FSDP2, *kill(3, rank=1)) == 143
    assert state(tmp_path / "parts")["global_step"] == 2
    assert not (tmp_path / "parts" / "domain").exists()
    assert fit(tmp_path / "parts", FSDP2, "--ckpt_path", "last") == 0
    assert_same_fit(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("ddp", FSDP2), (FSDP2, "ddp")])
def test_a_fit_goes_on_under_another_strategy(
    ddp: Path, tmp_path: Path, first: str, then: str
) -> None:
    assert fit(tmp_path, first, *kill(3)) == 143
    assert fit(tmp_path, then, "--ckpt_path", "last") == 0
    assert_close_fit(ddp, tmp_path)
    assert_close_domain(ddp, tmp_path)


@pytest.mark.slow
def test_an_autoencoder_is_sharded_too(tmp_path: Path) -> None:
    made = []
    for strategy in ("ddp", FSDP2):
        own = {"output": tmp_path / strategy, "trainer.strategy": strategy}
        assert run(["fit", *options({**AUTOENCODER, **own})]) == 0
        made.append(load_autoencoder(tmp_path / strategy / "autoencoder"))
    assert_close_fit(tmp_path / "ddp", tmp_path / FSDP2)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = [autoencoder.encode(images) for autoencoder in made]
    torch.testing.assert_close(latents[1], latents[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", "FSDPStrategy", "deepspeed"])
def test_other_sharding_is_refused(
    tmp_path: Path, strategy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "out", "--trainer.strategy", strategy)) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: --trainer.strategy: ") and error.count("\n") == 1
    assert error.endswith("is not supported; take fsdp2, which shards too, or ddp\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stage", "option", "told"),
    [
        ("validate", ("--trainer.devices", "1"), "--trainer.strategy: fsdp2 is for fit alone"),
        ("fit", ("--trainer.precision", "16-mixed"), "take 32-true or bf16-mixed"),
    ],
)
def test_what_does_not_go_with_sharding_is_refused(
    tmp_path: Path, stage: str, option: tuple[str, str], told: str, capfd: Any
) -> None:
    args = ["--output", str(tmp_path / "out"), "--data.root", CATS, *option]
    assert main([stage, *args, "--trainer.strategy", FSDP2]) == 2
    error = capfd.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_that_are_left_unsharded_are_refused() -> None:
    strategy = Sharded()
    strategy.model = torch.nn.Linear(2, 2)
    trainer: Any = SimpleNamespace(lightning_module=strategy.model)
    with pytest.raises(ValueError, match="fsdp2: Linear does not shard its weight; take ddp"):
        strategy.setup(trainer)


def test_what_is_not_sharded_is_whole() -> None:
    state = {"a": torch.ones(2), "b": 3}
    assert whole(state) == state
