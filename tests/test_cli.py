"""The program: one line and an exit code for whatever goes wrong, and the files of a run."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from servers import serving
from torch import Tensor
from torch.distributed import DistBackendError, DistNetworkError
from torch.utils.data import DataLoader, Dataset

from cyclelight.cli import main
from cyclelight.commands.guard import guarded, one_line
from cyclelight.errors import BadValue, MissingFile, argument_of, at_least

Run = Callable[..., tuple[int, str]]
PART = ("--model.part", f"{__name__}.Part")
DOMAIN, LATENT = ("--model", "DomainModule"), ("--model", "AutoencoderModule")
ADM = (*DOMAIN, "--model.network", "ADMSettings", "--model.network.num_channels", "32")


class Asked(ThreadingHTTPServer):
    """A server of a recipe, which counts who asks for it."""

    asked = 0


class Recipe(BaseHTTPRequestHandler):
    """Answers with settings."""

    server: Asked

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"output: fetched\n")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.mark.parametrize("command", ["fit", "predict", "validate", "test"])
def test_recipes_are_read_from_this_machine_alone(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe is a program: it names classes to import, and where to write."""
    with serving(Asked(("127.0.0.1", 0), Recipe)) as server:
        for address in (f"http://127.0.0.1:{server.server_port}/recipe.yaml", "memory://a.yaml"):
            assert main([command, "--config", address]) == 2
            assert "--config" in capsys.readouterr().err
        assert server.asked == 0


class Part:
    """Something with settings, of which one has the name of a setting of the module.

    Args:
        steps: how many, at least 2.
        more_steps: how many more, at least 2.
    """

    def __init__(self, steps: int = 2, more_steps: int = 2) -> None:
        at_least(2, steps=steps)
        self.check(more_steps)

    def check(self, more_steps: int) -> None:
        at_least(2, more_steps=more_steps)


class TinyModule(LightningModule):
    """A stand-in for any module: one weight, some settings.

    Args:
        steps: how many, at least 1.
        fail: what the training step raises, if anything; `refuse`: the constructor, not saying
            which argument it is about.
        part: a class of its own.
    """

    def __init__(self, steps: int = 1, fail: str | None = None, part: Part | None = None) -> None:
        super().__init__()
        at_least(1, steps=steps)
        if fail == "refuse":
            raise ValueError("steps and fail do not go together")
        self.fail = fail
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        match self.fail:
            case "interrupt":
                raise KeyboardInterrupt
            case "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            case str():
                raise RuntimeError(self.fail)
        return (self.weight - batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", (self.weight - batch).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ones(Dataset[Tensor]):
    """Four items."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(1)


class TinyData(LightningDataModule):
    """Data for TinyModule.

    Args:
        batch_size: items per step.
    """

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Ones(), self.batch_size)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return self.train_dataloader()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """main(args): (exit code, stderr)."""

    def call(*args: object) -> tuple[int, str]:
        code = main([str(arg) for arg in args])
        return code, capfd.readouterr().err

    return call


def refusal(done: tuple[int, str]) -> str:
    """What a command that was called wrongly says, which is one line."""
    code, err = done
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.fixture
def fit(run: Run, tmp_path: Path) -> Run:
    """`lightning fit` of the stand-ins into tmp_path."""
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    settings: dict[str, Any] = {
        "model": {"class_path": "TinyModule"},
        "data": {"class_path": f"{__name__}.TinyData"},
        "trainer": {"max_epochs": 1, "log_every_n_steps": 1, **quiet},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    return lambda *args: run("fit", "--config", recipe, "--output", tmp_path / "out", *args)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "a command is missing"),
        (["pedict"], "unknown command 'pedict'; did you mean predict?"),
        (["predict"], "--output is required"),
        (["fit", "--output", "x", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--output", "x", "--model", "Nonesuch"], "--model: there is no class Nonesuch"),
        (["fit", "--output", "x", "--model.steps", "1"], "--model.steps is not an option"),
    ],
)
def test_usage(run: Run, args: list[str], says: str) -> None:
    assert says in refusal(run(*args))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model.step", "1"], "--model.step is not an option"),
        (["--model.steps", "many"], "--model.steps: expected int, got many"),
        (["--model.steps", "0"], "error: --model.steps must be at least 1, got 0\n"),
        (["--model.fail", "refuse"], "error: steps and fail do not go together\n"),
        ([*PART, "--model.part.steps", "1"], "error: --model.part.steps must be at least 2, got 1"),
        (
            [*PART, "--model.part.more_steps", "1"],
            "error: --model.part.more_steps must be at least",
        ),
        ([*PART, "--model.steps", "0"], "error: --model.steps must be at least 1, got 0"),
        ([*DOMAIN, "--model.autoencoder", "nowhere"], "error: --model.autoencoder: nowhere does"),
        ([*DOMAIN, "--model.init_from", "nowhere"], "error: --model.init_from: nowhere does not"),
        ([*DOMAIN, "--model.schedule.timesteps", "0"], "error: --model.schedule.timesteps must"),
        ([*DOMAIN, "--model.resolution", "12"], "error: --model.resolution must"),
        ([*DOMAIN, "--model.network.block_out_channels", "[]"], "--model.network.block_out_channe"),
        ([*DOMAIN, "--model.network.layers_per_block", "0"], "--model.network.layers_per_block mu"),
        ([*DOMAIN, "--model.network.head_channels", "0"], "error: --model.network.head_channels m"),
        ([*DOMAIN, "--model.network.norm_groups", "0"], "error: --model.network.norm_groups must"),
        ([*ADM, "--model.network.channel_mult", "[]"], "error: --model.network.num_channels times"),
        ([*ADM, "--model.network.num_head_channels", "7"], "error: --model.network.num_head_chann"),
        ([*ADM, "--model.resolution", "12"], "error: --model.resolution must"),
        ([*LATENT, "--model.network.latent_channels", "0"], "--model.network.latent_channels must"),
        ([*LATENT, "--model.network.norm_groups", "7"], "error: --model.network.block_out_channel"),
        ([*LATENT, "--model.learning_rate", "0"], "error: --model.learning_rate must"),
        (["--trainer.max_epoch", "3"], "--trainer.max_epoch is not an option"),
        (["--trainer.max_epochs", "many"], "--trainer.max_epochs: expected int, got many"),
        (["--trainer.accelerator", "abacus"], "abacus"),
        (["--model", "cyclelight.nowhere.Module"], "has no attribute 'nowhere'"),
        (["--ckpt_path", "nowhere.ckpt"], "--ckpt_path: there is no file nowhere.ckpt"),
        (["stray"], "unexpected argument stray"),
    ],
)
def test_bad_settings(fit: Run, args: list[str], says: str) -> None:
    assert says in refusal(fit(*args))


def test_broken_yaml(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("model: [1\nfoo: }")
    done = run("fit", "--output", tmp_path, "--config", tmp_path / "broken.yaml")
    assert refusal(done).startswith("error: --config: ")


def test_unknown_key_in_recipe(run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("modle:\n  class_path: TinyModule\n")
    code, err = run("fit", "--output", tmp_path, "--config", tmp_path / "recipe.yaml")
    assert (code, err) == (2, "error: --modle.class_path is not an option\n")


def test_fit_keeps_all_in_the_output_and_resumes(fit: Run, run: Run, tmp_path: Path) -> None:
    assert fit("--data.batch_size", 1)[0] == 0
    out = tmp_path / "out"
    left = {".lock", "config.yaml", "checkpoints", "logs", "loss.csv", "loss.png"}
    assert {p.name for p in out.iterdir()} == left
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert written["data"]["init_args"] == {"batch_size": 1}

    # A fit's settings serve to judge it; that logs and saves nothing.
    judged = ("validate", "--config", out / "config.yaml", "--ckpt_path")
    assert run(*judged, out / "checkpoints" / "last.ckpt")[0] == 0
    assert {p.name for p in out.iterdir()} == {
        *left,
        "config_validate.yaml",
    }
    assert run(*judged, "last")[0] == 2

    again = ("fit", "--config", out / "config.yaml", "--ckpt_path", "last")
    assert run(*again, "--trainer.max_epochs", 3)[0] == 0
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
    assert {p.name for p in (out / "checkpoints").iterdir() if "last" in p.name} == {"last.ckpt"}
    assert len(list((out / "logs").glob("events*"))) == 2


@pytest.mark.parametrize(
    ("fail", "code", "says"),
    [
        (
            "the disk\nis full",
            1,
            "error: the disk is full (CYCLELIGHT_DEBUG=1 shows the traceback)",
        ),
        ("interrupt", 130, "interrupted; what was finished is kept"),
    ],
)
def test_stopped_while_running(fit: Run, fail: str, code: int, says: str) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert fit("--model.fail", fail) == (code, says + "\n")
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_terminated_while_running(fit: Run, tmp_path: Path) -> None:
    """Without checkpoints at once, with them after the step in hand: see test_preemption.py."""
    without = ("--trainer.enable_checkpointing", "false")
    says = "terminated; what was finished is kept\n"
    assert fit("--model.fail", "terminate", *without) == (143, says)
    code, says = fit("--model.fail", "terminate")
    assert code == 143 and says.startswith(f"stopped after step 1, saved in {tmp_path}")


def test_fit_without_checkpoints(fit: Run, tmp_path: Path) -> None:
    assert fit("--trainer.enable_checkpointing", "false", "--trainer.logger", "false")[0] == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        ".lock",
        "config.yaml",
        "loss.csv",
        "loss.png",
    }


def test_another_class_keeps_its_own_defaults(fit: Run, tmp_path: Path) -> None:
    """And not those of the stage's class: DomainImages has a batch_size too, of 16."""
    assert fit()[0] == 0
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert written["data"]["init_args"] == {"batch_size": 2}


def test_debug_shows_the_traceback(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYCLELIGHT_DEBUG", "1")
    code, err = fit("--model.steps", "0")
    assert code == 2
    assert "Traceback" in err and err.endswith("error: --model.steps must be at least 1, got 0\n")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_lists_the_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert "--model.seed" in page and "--data.batch_size" in page
    assert "--trainer.NAME" in page and "--trainer.benchmark" not in page


def test_help_about_other_classes(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model", "TinyModule", f"--data={__name__}.TinyData", "--help"]) == 0
    page = capfd.readouterr().out
    assert "--model.fail" in page and "--data.root" not in page
    code, err = run("fit", "--model", "Nonesuch", "--help")
    assert (code, err) == (2, "error: --model: there is no class Nonesuch\n")


@pytest.mark.parametrize("command", ["lightning", "cyclelight"])
def test_installed_program(command: str) -> None:
    """Both scripts and the module; without torch, so within a moment."""
    program = Path(sys.executable).with_name(command)
    arguments = [program] if command == "lightning" else [sys.executable, "-m", command]
    done = subprocess.run([*arguments, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cyclelight 0.1.0\n", "")


def test_no_garbage_is_looked_for_while_libraries_load() -> None:
    program = """
import gc
freeze, kept = gc.freeze, []
def count():
    freeze()
    kept.append(gc.get_freeze_count())
gc.freeze = count
from cyclelight.cli import load
runs = []
gc.callbacks.append(lambda phase, info: runs.append(phase))
load("cyclelight.commands.predict")
print(len(runs), gc.isenabled(), kept[0] > 100_000)
load("cyclelight.commands.fit")
print(gc.isenabled(), len(kept) == 1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "True", "True", "True", "True"], done.stderr
    assert "leaked" not in done.stderr  # As nanobind says where no garbage is collected at the end.


def test_a_workers_error_is_its_last_line() -> None:
    caught = "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback\n  a\nb: c"
    assert one_line(RuntimeError(caught)) == "b: c"
    assert one_line(ValueError(caught.replace("b: c", "ValueError: d: e"))) == "d: e"


class Dies(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def fail(error: Exception) -> int:
    raise error


@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.parametrize(
    ("run", "line"),
    [
        (lambda: next(iter(DataLoader(Dies(), num_workers=1))), "(data.num_workers) has died"),
        (lambda: fail(RuntimeError("[x/gloo/transport/tcp/pair.cc:561] Connection closed by peer")),
         "another process of this run has died"),
        (lambda: fail(DistBackendError("x: remote process exited or")),
         "another process of this run has died"),
        (lambda: fail(DistNetworkError("port: 29500, EADDRINUSE")), "error: port: 29500, EADDR"),
        (lambda: fail(RuntimeError("DataLoader worker (pid 7) is killed: no shared memory")),
         "has died, perhaps for want of memory or of room in /dev/shm: DataLoader worker (pid 7)"),
        (lambda: fail(ConnectionResetError(104, "reset by peer")), "error: [Errno 104] reset"),
        (lambda: fail(FileNotFoundError(2, "No such file", "/a.png")), "/a.png: No such file"),
    ],
)  # fmt: skip
def test_what_others_raise_is_told_in_our_words(
    run: Callable[[], int], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(run) == 1
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_a_signal_is_told_whatever_becomes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Within torch's loading of weights it becomes a ValueError of no cause."""

    def run() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            raise ValueError("could not determine the shape") from None
        return 0

    assert guarded(run) == 143
    assert capsys.readouterr().err == "terminated; what was finished is kept\n"


def test_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # What Python makes of `>&-`.
    assert guarded(lambda: 0) == 0


@pytest.mark.parametrize("kind", [BadValue, MissingFile])
def test_an_error_keeps_its_argument_between_processes(kind: type[BadValue]) -> None:
    """As the processes that decode images hand theirs on."""
    error = pickle.loads(pickle.dumps(kind("root", "root: no such folder x")))
    assert type(error) is kind and str(error) == "root: no such folder x"
    outer = RuntimeError("wrapped")
    outer.__cause__ = error
    assert argument_of(outer) == "root" and argument_of(ValueError("root is wrong")) is None


@pytest.mark.parametrize(("given", "kept"), [("1", 1), ("3", 3), ("1.0", 1.0), ("0.5", 0.5)])
@pytest.mark.parametrize("where", ["words", "recipe"])
def test_one_batch_is_not_all_of_them(
    given: str, kept: float, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")]
    words = [f"--trainer.{name}={given}" for name in names]
    (tmp_path / "limits.yaml").write_text(
        f"trainer: {{{', '.join(f'{n}: {given}' for n in names)}}}"
    )
    words = words if where == "words" else [f"--config={tmp_path}/limits.yaml"]
    assert main(["fit", *words, f"--output={tmp_path}", "--data.root=x", "--print_config"]) == 0
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert [trainer[name] for name in names] == [kept] * 4
    assert {type(trainer[name]) for name in names} == {type(kept)}
