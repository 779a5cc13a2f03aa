"""A fit leaves an earlier one alone: dry runs, used folders, starting over, which state is last."""

import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from test_preemption import CATS, END, arguments, kill, state

from cyclelight.cli import main
from cyclelight.runs.checkpoints import newest_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*fast_dev_run"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended"),
]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fitted") / "out"
    assert main(arguments(root, *END, "--trainer.logger", "true")) == 0
    (only,) = (root / "checkpoints").glob("epoch*")
    only.unlink()
    return root


@pytest.fixture
def used(fitted: Path, tmp_path: Path) -> Path:
    shutil.copytree(fitted, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    def last() -> str:
        return capfd.readouterr().err.splitlines()[-1]

    return last


def test_a_dry_run_writes_nothing(
    used: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = content(used)
    for more in ((), ("--ckpt_path", "last"), ("--overwrite", "--trainer.logger", "true")):
        assert main(arguments(used, *more, "--trainer.fast_dev_run", "true")) == 0
        assert caplog.messages[-1].endswith(f"nothing was written to {used}.")
        assert content(used) == before
    file = used / "checkpoints" / "last.ckpt"
    assert main(arguments(used, "--ckpt_path", file, "--trainer.fast_dev_run", "true")) == 2
    assert main(arguments(tmp_path / "new", "--trainer.fast_dev_run", 2)) == 0
    assert not (tmp_path / "new").exists()


def test_a_used_folder_is_refused(used: Path, told: Callable[[], str]) -> None:
    before = content(used)
    held = f"error: the output folder {used} holds "
    words = "of an earlier fit; --ckpt_path last goes on, --overwrite starts over"
    assert main(arguments(used)) == 2
    assert told() == f"{held}checkpoints/last.ckpt and domain {words}"
    elsewhere = shutil.copy(used / "checkpoints" / "last.ckpt", used.parent / "other.ckpt")
    assert main(arguments(used, "--ckpt_path", elsewhere)) == 2
    assert told() == f"{held}checkpoints/last.ckpt and domain {words}"
    assert content(used) == before
    shutil.rmtree(used / "domain")
    assert main(arguments(used)) == 2
    assert told() == f"{held}checkpoints/last.ckpt {words}"


def test_what_no_checkpoint_tells_how_to_go_on_with_is_not_replaced(
    used: Path, told: Callable[[], str]
) -> None:
    """`last` starts from the beginning only where there was no fit."""
    last = used / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="passing over the checkpoint"):
        assert main(arguments(used, "--ckpt_path", "last")) == 2
    assert "but no whole checkpoint to go on from; --overwrite without --ckpt_path" in told()
    last.unlink()
    assert main(arguments(used, "--ckpt_path", "last")) == 2
    assert "holds domain of an earlier fit, but no whole checkpoint" in told()


def test_its_own_checkpoints_go_on(used: Path) -> None:
    path = used / "checkpoints" / "last.ckpt"
    assert main(arguments(used, "--ckpt_path", path, "--trainer.max_steps", 9)) == 0
    assert state(used)["global_step"] == 9 and (used / "domain").is_dir()


class Folder(Callback):
    """Notes what is in the folder in a step of the fit."""

    seen: dict[str, bytes]

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        type(self).seen = content(Path(trainer.default_root_dir))


def test_starting_over_replaces_the_domain_when_the_new_one_is_whole(used: Path) -> None:
    before = content(used)
    (used / "samples").mkdir()
    (used / "samples" / "step_000900.png").touch()
    noted = ("--trainer.callbacks", "[{class_path: test_used_folder.Folder}]")
    changed = ("--model.seed", 1, "--trainer.max_steps", 3, "--trainer.logger", "true")
    assert main(arguments(used, *changed, *noted, "--overwrite")) == 0
    domain = [name for name in before if name.startswith("domain/")]
    logs = {name for name in before if name.startswith("logs/events")}
    assert domain and logs
    during, after = Folder.seen, content(used)
    assert all(during[name] == before[name] for name in domain)
    assert any(after[name] != before[name] for name in domain)
    for name in {"checkpoints/last.ckpt", "samples/step_000900.png", *logs}:
        assert name not in during
    assert "overwrite" not in (used / "config.yaml").read_text()
    assert main(arguments(used, *changed)) == 2


def test_what_fails_before_the_training_leaves_the_old_fit(
    used: Path, tmp_path: Path, told: Callable[[], str]
) -> None:
    shutil.copytree(CATS, tmp_path / "cats")
    next(iter((tmp_path / "cats").iterdir())).write_bytes(b"no image")
    before = content(used)
    assert main(arguments(used, "--overwrite", "--data.root", tmp_path / "cats")) == 1
    assert "cannot read" in told()
    assert content(used) == before


def test_starting_over_and_going_on_exclude_each_other(used: Path, told: Callable[[], str]) -> None:
    for path in ("last", used / "checkpoints" / "last.ckpt"):
        assert main(arguments(used, "--overwrite", "--ckpt_path", path)) == 2
        assert told() == "error: --overwrite starts over, --ckpt_path goes on: take one of the two"


def test_a_fit_without_batches_is_refused(tmp_path: Path, told: Callable[[], str]) -> None:
    assert main(arguments(tmp_path / "out", "--trainer.limit_train_batches", 0)) == 2
    assert told() == "error: --trainer.limit_train_batches: 0 leaves nothing to train on"


def test_the_last_checkpoint_is_the_one_of_most_steps(used: Path) -> None:
    """Not the newest file: a copy of an earlier state has a new date."""
    folder = used / "checkpoints"
    saved = state(used)
    torch.save({**saved, "global_step": 3}, folder / "early.ckpt")
    os.utime(folder / "last.ckpt", (1, 1))
    assert newest_checkpoint(folder) == folder / "last.ckpt"
    torch.save(saved, folder / "again.ckpt")  # Of two of one step, the one written last.
    assert newest_checkpoint(folder) == folder / "again.ckpt"


class Command:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_no_code_of_a_checkpoint_is_run(
    used: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: Callable[[], str],
    stage: str,
) -> None:
    """Even where the environment tells torch to."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, proof = used / "checkpoints" / "last.ckpt", tmp_path / "proof"
    torch.save({**state(used), "x": Command(proof)}, path)
    _, *words = arguments(tmp_path / "new")
    assert main([stage, *words, "--ckpt_path", str(path)]) == 2
    assert "(posix.mkdir), and to load that would run code of its maker" in told()
    assert not proof.exists()


def test_code_that_hides_from_the_first_look_is_not_run_either(
    used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[[], str]
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr("cyclelight.commands.lightning_cli.damage", lambda path: None)
    path, proof = used / "checkpoints" / "last.ckpt", tmp_path / "proof"
    torch.save({**state(used), "x": Command(proof)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert main(arguments(used, "--ckpt_path", path)) == 1
    assert "run code of its maker" in told()
    assert not proof.exists()


def test_a_link_to_nothing_is_no_output_folder(tmp_path: Path, told: Callable[[], str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for output in (tmp_path / "link", tmp_path / "link" / "out"):
        assert main(arguments(output)) == 2
        assert told() == (
            f"error: the output folder {output}: {tmp_path}/link is a link to {tmp_path}/gone, "
            f"which is not there; make that or remove the link"
        )
    (tmp_path / "gone").mkdir()
    assert main(arguments(tmp_path / "link", "--trainer.max_steps", 1)) == 0


def test_a_closed_terminal_ends_a_fit_with_all_saved(
    tmp_path: Path, told: Callable[[], str]
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert main(arguments(tmp_path / "out", *kill(2, number=int(signal.SIGHUP)))) == 129
        assert told().startswith("stopped after step 2, saved in ")
        assert state(tmp_path / "out")["global_step"] == 2
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As under nohup.
        words = arguments(tmp_path / "on", *kill(2, number=int(signal.SIGHUP)))
        assert main(words) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
