"""Fits that are ended early and resumed: equal to undisturbed ones, bit for bit."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from itertools import chain, count, repeat
from math import cos, pi
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ranks
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclelight.callbacks.preemption import Preemption
from cyclelight.cli import main
from cyclelight.modules.domain import DomainModule
from cyclelight.runs.checkpoints import AtomicCheckpoints, damage, newest_checkpoint
from datamodules.order import TrainingOrder

WEIGHTS = "domain/unet/diffusion_pytorch_model.safetensors"
CATS = str(Path(__file__).parents[1] / "docs" / "demo" / "cats")
# Lightning 2.6 with torch 2.15.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Kill(Callback):
    """Sends this process a signal within a batch.

    Args:
        batch: which one, counted over the whole fit.
        number: the signal.
        rank: the process that gets it.
    """

    def __init__(self, batch: int, number: int = int(signal.SIGTERM), rank: int = 0) -> None:
        self.batch, self.number, self.rank = batch, number, rank

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        total = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if total == self.batch and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def arguments(output: Path, *more: object) -> list[str]:
    """A fit of 6 images in batches of 2: 3 batches an epoch, 8 steps; with dropout."""
    given = {
        "output": output,
        "model.resolution": 16,
        "model.network.block_out_channels": "[8, 16]",
        "model.network.layers_per_block": 1,
        "model.network.attention_resolutions": "[]",
        "model.network.head_channels": 8,
        "model.network.norm_groups": 8,
        "model.network.dropout": 0.1,
        "model.sample_every_n_steps": 0,
        "model.warmup_steps": 3,
        "model.lr_schedule": "cosine",
        "data.root": CATS,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "checkpoint.every_n_train_steps": 100,
        "trainer.max_steps": 8,
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    pairs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["fit", *pairs, *map(str, more)]


def kill(batch: int, **init_args: int) -> list[str]:
    arguments = ", ".join(f"{k}: {v}" for k, v in {"batch": batch, **init_args}.items())
    entry = f"{{class_path: test_preemption.Kill, init_args: {{{arguments}}}}}"
    return ["--trainer.callbacks", f"[{entry}]"]


def state(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return saved


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, however nested."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


def assert_same_fit(one: Path, other: Path) -> None:
    """Averaged and raw weights, optimizer, schedule and counters."""
    a, b = state(one), state(other)
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert_same(a[part], b[part], part)
    assert_same(a["lr_schedulers"], b["lr_schedulers"])
    assert (a["global_step"], a["epoch"]) == (b["global_step"], b["epoch"])
    for file in ("domain/domain.json", WEIGHTS):
        assert (one / file).read_bytes() == (other / file).read_bytes()


# Saves at the end too, for the comparison.
END = ("--checkpoint.every_n_train_steps", 8)


class Rates(Callback):
    """Notes the learning rate and weight decay of each step."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.seen.append((group["lr"], group["weight_decay"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit that nothing disturbs."""
    root = tmp_path_factory.mktemp("whole")
    assert main(arguments(root, *END)) == 0
    return root


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_a_resumed_fit_equals_an_undisturbed_one(
    whole: Path, tmp_path: Path, batch: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """After the first batch, at an epoch's end, amid an epoch."""
    assert main(arguments(tmp_path, *END, *kill(batch))) == 143
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"stopped after step {batch}, saved in {tmp_path}")
    assert error.endswith("--ckpt_path last goes on from there")
    assert state(tmp_path)["global_step"] == batch
    assert not (tmp_path / "domain").exists()
    assert main(arguments(tmp_path, *END, "--ckpt_path", "last")) == 0
    assert_same_fit(tmp_path, whole)


def test_a_signal_in_the_last_step_lets_the_fit_end(whole: Path, tmp_path: Path) -> None:
    assert main(arguments(tmp_path, *END, *kill(8))) == 0
    assert_same_fit(tmp_path, whole)


@pytest.fixture
def terminal() -> Iterator[None]:
    """Ctrl-C is heeded, even if these tests are a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_and_a_second_one_does_not_wait(
    whole: Path, tmp_path: Path, terminal: None, capfd: pytest.CaptureFixture[str]
) -> None:
    flag, once = kill(4, number=int(signal.SIGINT))
    assert main(arguments(tmp_path / "once", *END, flag, once)) == 130
    waits, stopped = capfd.readouterr().err.splitlines()[-2:]
    assert waits == "ending the step in hand and saving; Ctrl-C again ends at once"
    assert stopped.startswith("stopped after step 4, saved in ")
    assert main(arguments(tmp_path / "once", *END, "--ckpt_path", "last")) == 0
    assert_same_fit(tmp_path / "once", whole)
    twice = f"[{once[1:-1]}, {once[1:-1]}]"
    assert main(arguments(tmp_path / "twice", *END, flag, twice)) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted; what was finished is kept"
    assert not list((tmp_path / "twice").rglob("*.ckpt"))


def test_a_finished_fit_run_again_writes_the_same_domain(tmp_path: Path) -> None:
    """Lightning ends it without a step, and without the hooks of its end."""
    assert main(arguments(tmp_path, *END)) == 0
    before = (tmp_path / WEIGHTS).read_bytes()
    assert main(arguments(tmp_path, *END, "--ckpt_path", "last")) == 0
    assert (tmp_path / WEIGHTS).read_bytes() == before


class Validations(Callback):
    """Notes what each validation found, and at which step."""

    seen: ClassVar[list[tuple[int, float]]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seen.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


def chosen(root: Path) -> dict[str, Any]:
    """The weights that the fit kept for their losses, and its domain."""
    kept = {
        p.name: torch.load(p, weights_only=True)["state_dict"]
        for p in root.glob("checkpoints/epoch*.ckpt")
    }
    return {**kept, "domain": load_file(root / WEIGHTS)}


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({}, (3, 6, 8)),
        ({"trainer.val_check_interval": 2}, (2, 3)),
        ({"trainer.check_val_every_n_epoch": 2, "checkpoint.every_n_train_steps": 3}, (3, 4, 6)),
        *(
            pytest.param(settings, range(1, 9), marks=pytest.mark.slow)
            for settings in [
                {"trainer.check_val_every_n_epoch": 2},
                {"trainer.val_check_interval": 2, "trainer.check_val_every_n_epoch": "null"},
                {"trainer.max_epochs": 2, "trainer.max_steps": -1},
            ]
        ),
    ],
)
def test_no_validation_is_lost(
    tmp_path: Path, settings: dict[str, object], batches: Sequence[int]
) -> None:
    """Whichever batch is followed by the stop: the same losses, and the same kept for them."""
    monitored = {"checkpoint.monitor": "val/loss", "checkpoint.save_top_k": 2}
    steps = {"checkpoint.every_n_train_steps": "null"}
    pairs = {**monitored, **steps, **settings}.items()
    words = [str(word) for name, value in pairs for word in (f"--{name}", value)]
    words.append("--trainer.callbacks+=[test_preemption.Validations]")
    Validations.seen.clear()
    assert main(arguments(tmp_path / "whole", *words)) == 0
    seen, whole = [*Validations.seen], chosen(tmp_path / "whole")
    assert seen and len(whole) == min(3, 1 + len(seen))
    for batch in batches:
        Validations.seen.clear()
        root = tmp_path / str(batch)
        ended = main(arguments(root, *kill(batch), *words))
        if ended:
            assert ended == 143
            assert main(arguments(root, *words, "--ckpt_path", "last")) == 0
        assert Validations.seen == seen, batch
        assert_same(chosen(root), whole, str(batch))


def curve(root: Path) -> list[tuple[int, float]]:
    """The losses of the training steps, as TensorBoard shows them."""
    logs = EventAccumulator(str(root / "logs"))
    logs.Reload()
    return [(event.step, event.value) for event in logs.Scalars("train/loss")]


def test_no_step_is_missing_in_the_curve(tmp_path: Path) -> None:
    logged = ("--trainer.logger", "true")
    assert main(arguments(tmp_path / "whole", *logged)) == 0
    assert main(arguments(tmp_path / "parts", *logged, *kill(4))) == 143
    # Of one second TensorBoard sorts a process's files as words, the tenth before the ninth.
    time.sleep(1)
    assert main(arguments(tmp_path / "parts", *logged, "--ckpt_path", "last")) == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "whole")) == 8


def test_a_finished_fit_goes_on_with_more_steps(tmp_path: Path) -> None:
    """From the checkpoint of its end, which has the weights themselves, not their average alone."""
    constant = ("--model.lr_schedule", "constant")
    longer = (*constant, "--trainer.max_steps", 12, "--checkpoint.every_n_train_steps", 12)
    assert main(arguments(tmp_path / "whole", *longer)) == 0
    assert main(arguments(tmp_path / "parts", *constant)) == 0
    assert main(arguments(tmp_path / "parts", *longer, "--ckpt_path", "last")) == 0
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "parts"))
    assert_same(one, other)


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine"])
def test_a_fit_of_so_many_epochs_resumes_amid_one(tmp_path: Path, lr_schedule: str) -> None:
    """Where Lightning asks for the number of batches before it reads the checkpoint."""
    epochs = ("--trainer.max_steps", -1, "--trainer.max_epochs", 2)
    end = ("--checkpoint.every_n_train_steps", 6, "--model.lr_schedule", lr_schedule, *epochs)
    assert main(arguments(tmp_path / "whole", *end)) == 0
    assert main(arguments(tmp_path / "parts", *end, *kill(1))) == 143
    assert main(arguments(tmp_path / "parts", *end, "--ckpt_path", "last")) == 0
    assert_same_fit(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("killed", [5, 7])
def test_a_checkpoint_of_an_epoch_s_end_goes_on_with_the_next(tmp_path: Path, killed: int) -> None:
    """Lightning's own, of each epoch; what came after it is lost, as by a crash."""
    end = ("--trainer.max_steps", 8, "--trainer.check_val_every_n_epoch", 1)
    each = ("--checkpoint.every_n_train_steps", "null", "--checkpoint.every_n_epochs", 1, *end)
    assert main(arguments(tmp_path / "whole", *END, *end)) == 0
    assert main(arguments(tmp_path / "parts", *each, *kill(killed))) == 143
    (tmp_path / "parts" / "checkpoints" / "last.ckpt").unlink()
    assert main(arguments(tmp_path / "parts", *END, *end, "--ckpt_path", "last")) == 0
    assert_same_fit(tmp_path / "parts", tmp_path / "whole")


def test_every_batch_may_be_the_last(whole: Path, tmp_path: Path) -> None:
    for batch in range(1, 8):
        assert main(arguments(tmp_path, *END, *kill(batch), "--ckpt_path", "last")) == 143
    assert main(arguments(tmp_path, *END, "--ckpt_path", "last")) == 0
    assert_same_fit(tmp_path, whole)


def test_a_step_of_several_batches_is_finished(tmp_path: Path) -> None:
    steps = ("--trainer.max_steps", 4, "--trainer.accumulate_grad_batches", 2)
    end = ("--checkpoint.every_n_train_steps", 4, *steps)
    assert main(arguments(tmp_path / "whole", *end)) == 0
    assert main(arguments(tmp_path / "parts", *end, *kill(4))) == 143
    # Batches 1 and 2 are step 1, 3, the epoch's last, is step 2, 4 and 5 are step 3.
    assert state(tmp_path / "parts")["global_step"] == 3
    assert main(arguments(tmp_path / "parts", *end, "--ckpt_path", "last")) == 0
    assert_same_fit(tmp_path / "parts", tmp_path / "whole")


def test_a_fit_that_goes_on_takes_the_present_settings(tmp_path: Path) -> None:
    """Another end, learning rate and weight decay: the formula's values from the next step on."""
    assert main(arguments(tmp_path, *kill(5))) == 143
    Rates.seen.clear()
    settings = ("--model.learning_rate", 0.003, "--model.weight_decay", 0.1)
    noted = ("--trainer.callbacks", "[test_preemption.Rates]", "--trainer.max_steps", 12)
    assert main(arguments(tmp_path, *settings, *noted, "--ckpt_path", "last")) == 0
    rates, decays = zip(*Rates.seen, strict=True)
    expected = [0.003 * (1 + cos(pi * (step - 3) / (12 - 3))) / 2 for step in range(5, 12)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert set(decays) == {0.1}


def test_another_length_of_the_epoch_is_told(tmp_path: Path) -> None:
    assert main(arguments(tmp_path, *kill(4))) == 143
    with pytest.warns(UserWarning, match="an epoch has 2 batches here, and 3 in the checkpoint"):
        assert main(arguments(tmp_path, "--data.batch_size", 3, "--ckpt_path", "last")) == 0


def test_the_place_of_the_domain_is_looked_at_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "domain").mkdir()
    (tmp_path / "domain" / "note.txt").touch()
    assert main(arguments(tmp_path)) == 1
    assert f"{tmp_path}/domain exists and is not a domain folder" in capfd.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_that_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(code: int, *more: object) -> str:
        capfd.readouterr()
        assert main(arguments(tmp_path / "out", *more)) == code
        error = capfd.readouterr().err.splitlines()[-1]
        assert len(error) < 400
        return error

    (tmp_path / "note.ckpt").write_text("no checkpoint")
    damaged = refused(2, "--ckpt_path", tmp_path / "note.ckpt")
    assert damaged.startswith("error: --ckpt_path: ") and "cut off or no checkpoint" in damaged
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.ckpt")
    assert "it is no checkpoint of a fit" in refused(2, "--ckpt_path", tmp_path / "weights.ckpt")
    assert not (tmp_path / "out").exists()
    assert main(arguments(tmp_path / "out", *kill(1))) == 143
    wider = ("--model.network.block_out_channels", "[16, 16]", "--ckpt_path", "last")
    assert "of another network: denoiser.network.conv_in.bias is (8,) there, (16,) here" in refused(
        1, *wider
    )


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = DomainModule.loss

    def diverges(self: DomainModule, *args: torch.Tensor) -> torch.Tensor:
        return loss(self, *args) * (torch.nan if self.global_step == 5 else 1)

    monkeypatch.setattr(DomainModule, "loss", diverges)
    assert main(arguments(tmp_path, "--checkpoint.every_n_train_steps", 2)) == 1
    assert "the loss is nan at step 5: try a lower learning_rate" in capfd.readouterr().err
    saved = state(tmp_path)
    assert saved["global_step"] == 4
    assert all(value.isfinite().all() for value in saved["current_model_state"].values())


@pytest.mark.slow
def test_one_signalled_process_stops_both(tmp_path: Path, batch: int = 2) -> None:
    """Two processes with one batch of 3 each an epoch, the second of them signalled.

    These are started by Lightning's launcher, which may not take the first for failed.
    """
    ddp = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.batch_size", 1)
    end = ("--checkpoint.every_n_train_steps", 4, "--trainer.max_steps", 4, *ddp)
    whole, parts = (arguments(tmp_path / name, *end) for name in ("whole", "parts"))
    assert ranks.run(whole)[0] == 0
    assert ranks.launch([*parts, *kill(batch, rank=1)]) == 143
    assert state(tmp_path / "parts")["global_step"] == batch
    assert ranks.launch([*parts, "--ckpt_path", "last"]) == 0
    assert_same_fit(tmp_path / "parts", tmp_path / "whole")


def test_a_signal_before_the_first_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    noted = Preemption.__init__

    def signalled(self: Preemption, path: Path) -> None:
        noted(self, path)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(Preemption, "__init__", signalled)
    assert main(arguments(tmp_path)) == 143
    assert "stopped before step 0" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("damaged", ["cut off", "empty", "one bit"])
def test_the_newest_whole_checkpoint_is_taken(
    whole: Path, tmp_path: Path, damaged: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    content = (whole / "checkpoints" / "last.ckpt").read_bytes()
    (folder / "good.ckpt").write_bytes(content)
    middle = len(content) // 2
    wrong = {
        "cut off": content[:-100],
        "empty": b"",
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }[damaged]
    (folder / "last.ckpt").write_bytes(wrong)
    os.utime(folder / "good.ckpt", (1, 1))
    with pytest.warns(UserWarning, match=r"passing over the checkpoint .*last\.ckpt: "):
        assert newest_checkpoint(folder) == folder / "good.ckpt"
    assert damage(folder / "good.ckpt") is None
    (folder / "gone.ckpt").symlink_to(folder / "nowhere.ckpt")
    (folder / "good.ckpt").unlink()
    with pytest.warns(UserWarning, match="passing over"):
        assert newest_checkpoint(folder) is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*last\.ckpt"):
        AtomicCheckpoints().save_checkpoint({"a": Unsaveable()}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


class Unsaveable:
    def __reduce__(self) -> str:
        raise OSError(28, "No space left on device")


def test_each_epoch_has_its_order_and_can_be_entered_anywhere() -> None:
    images: Any = range(11)

    def begun(epoch: int, rank: int = 0, done: int = 0) -> TrainingOrder:
        made = TrainingOrder(images, 2, rank, seed=1, drop_last=True)
        made.place = zip(count(epoch), chain([done], repeat(0))).__next__
        return made

    def order(epoch: int, rank: int = 0) -> list[int]:
        return list(begun(epoch, rank))

    assert sorted(order(0) + order(0, rank=1)) != sorted(order(1) + order(1, rank=1))
    assert len({*order(0), *order(0, rank=1)}) == 10
    entered = begun(3, done=2)
    entered.set_epoch(9)  # As Lightning may.
    assert [list(entered), list(entered)] == [order(3)[2:], order(4)]
    assert list(begun(3, done=5)) == []
