"""What a fit says while it runs, and the curves that it keeps."""

import csv
import io
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from test_preemption import END, arguments, kill, state

from cyclelight.callbacks import fit_progress
from cyclelight.callbacks.fit_progress import FitProgress, images_of, unused_gpu
from cyclelight.cli import main
from cyclelight.runs.curve import COLOURS, MOST, Curve
from datamodules import DomainImages

NAMES = ("train/loss", "val/loss")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended"),
]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_long_curve_is_one_of_means() -> None:
    losses = np.random.default_rng(0).random(5000)
    curve = Curve()
    for step, loss in enumerate(losses, start=1):
        curve.add(step, float(loss), 1e-3 * step)
    assert MOST / 2 <= len(curve.train) <= MOST
    whole = losses[: len(curve.train) * curve.stride].reshape(-1, curve.stride)
    np.testing.assert_allclose([row[1] for row in curve.train], whole.mean(axis=1))
    assert [row[0] for row in curve.train] == list(range(curve.stride, 5001, curve.stride))


def test_a_curve_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    curves = Curve(), Curve()
    for step in range(1, 2050):
        for curve in curves:
            curve.add(step, 1 / step, 0.1)
        if step == 2001:
            curves[0].add_validation(step, 0.5), curves[1].add_validation(step, 0.5)
            torch.save(curves[1].state(), tmp_path / "state")
            kept = torch.load(tmp_path / "state", weights_only=True)
            curves = curves[0], Curve.of(kept)
    assert curves[0] == curves[1]


def test_higher_losses_are_higher_and_later_ones_further_right(tmp_path: Path) -> None:
    curve = Curve()
    for step in range(101):
        curve.add(step, 1.0 if step < 50 else 0.1, 0.1)
    curve.add_validation(100, 0.3)
    curve.write(tmp_path / "a.csv", tmp_path / "a.png", NAMES)
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.array(image)[40:, 95:885].astype(int)  # Within the frame.
    blue, orange = (
        np.abs(pixels - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).sum(axis=2) < 60
        for colour in COLOURS
    )
    left, right = blue[:, :300].nonzero()[0].mean(), blue[:, 500:].nonzero()[0].mean()
    between, across = (axis.mean() for axis in orange.nonzero())
    assert left < between < right and across > 700
    # Logarithmic: 0.3 is about half the way from 1 to 0.1.
    assert abs((between - left) / (right - left) - 0.52) < 0.05


@pytest.mark.parametrize("losses", [[], [0.0], [-1.0, float("nan"), 2.0], [1e-9, 1e9]])
def test_any_curve_can_be_drawn(losses: list[float]) -> None:
    curve = Curve()
    for step, loss in enumerate(losses):
        curve.add(step, loss, 0.1)
    assert curve.draw(NAMES).size == (900, 520)


def test_the_curve_of_a_resumed_fit_is_that_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(arguments(whole, *END)) == 0
    assert main(arguments(parts, *END, *kill(5))) == 143
    assert main(arguments(parts, *END, "--ckpt_path", "last")) == 0
    assert (whole / "loss.csv").read_text() == (parts / "loss.csv").read_text()
    table = rows(whole / "loss.csv")
    assert [int(row["step"]) for row in table] == list(range(1, 9))
    # The warm-up of three steps, then a cosine down to 0 at step 8.
    rates = [float(row["learning_rate"]) for row in table]
    cosine = [0.5 * (1 + np.cos(np.pi * i / 5)) for i in range(5)]
    np.testing.assert_allclose(rates, 1e-4 * np.array([1 / 3, 2 / 3, 1, *cosine]), rtol=1e-5)
    validated = [int(row["step"]) for row in table if row["val/loss"]]
    assert validated == [3, 6]
    last = state(whole)["callback_metrics"]
    assert float(table[-1]["train/loss"]) == pytest.approx(float(last["train/loss"]), rel=1e-5)


SHOWN = ("--trainer.enable_progress_bar", "true")


class Stop(Callback):
    """Ends the fit after its second step."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == 2


def test_a_fit_says_what_it_does_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fit_progress, "FIRST", 0.0)
    monkeypatch.setattr(fit_progress, "EVERY", 0.0)
    assert main(arguments(tmp_path / "out", *SHOWN)) == 0
    first, *lines, last, wrote = caplog.messages
    threads = torch.get_num_threads()
    assert re.fullmatch(
        rf"Fitting DomainModule on cpu \({threads} threads\), 32-true: 0.0\d+ M parameters, "
        rf"\d images to train on, \d images? to validate on; steps 0 to 8, into {tmp_path}/out",
        first,
    )
    assert len(lines) == 8
    for step, line in enumerate(lines, start=1):
        val = r" val/loss [\d.e-]+," if step > 3 else ""
        assert re.fullmatch(
            rf"step {step} of 8, train/loss [\d.e-]+,{val} [\d.e+]+ images/s, "
            rf"0:00:\d\d left, ends (\w+ \d+ \w+ )?\d\d:\d\d",
            line,
        ), line
    assert last.startswith("The fit ended after step 8 of 8, in 0:00:")
    assert wrote == f"Wrote the domain to {tmp_path}/out/domain"


def test_a_fit_that_ends_early_says_so(tmp_path: Path) -> None:
    stop = ("--trainer.callbacks", "[{class_path: test_fit_progress.Stop}]")
    with pytest.warns(UserWarning, match="the fit ended 6 steps early: a callback"):
        assert main(arguments(tmp_path, *SHOWN, *stop)) == 0


def test_rates_and_times(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """10 seconds a step, in each 2 processes times 4 images; 100 steps, of which 40 were done."""
    caplog.set_level("INFO")
    clock = SimpleNamespace(monotonic=lambda: 1e6 + 10 * trainer.global_step)
    monkeypatch.setattr(fit_progress, "time", clock)
    monkeypatch.setattr(fit_progress, "opening", lambda *_: "begins")
    trainer: Any = SimpleNamespace(
        global_step=40,
        max_steps=100,
        estimated_stepping_batches=100,
        world_size=2,
        strategy=SimpleNamespace(root_device=torch.device("meta")),
        callback_metrics={"train/loss": torch.tensor(0.25)},
    )
    module: Any = SimpleNamespace()
    progress = FitProgress()
    progress.on_train_start(trainer, module)
    for step in range(41, 51):
        trainer.global_step = step
        progress.on_train_batch_end(trainer, module, None, {"image": torch.zeros(4)}, 0)
    lines = [message for message in caplog.messages if message.startswith("step")]
    told = [line.partition(", ends")[0] for line in lines]
    assert told == [
        "step 41 of 100, train/loss 0.25, 0.8 images/s, 0:09:50 left",
        "step 44 of 100, train/loss 0.25, 0.8 images/s, 0:09:20 left",
        "step 47 of 100, train/loss 0.25, 0.8 images/s, 0:08:50 left",
        "step 50 of 100, train/loss 0.25, 0.8 images/s, 0:08:20 left",
    ]


def test_a_gpu_that_torch_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(fit_progress, "AMD", tmp_path / "none")
    monkeypatch.setattr(fit_progress, "NVIDIA", tmp_path / "gpus")
    monkeypatch.setattr(fit_progress.shutil, "which", lambda name: None)
    assert unused_gpu(cpu) is None
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "is a build for CPUs" in str(unused_gpu(cpu))
    assert unused_gpu(torch.device("cuda")) is None
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "cannot use it" in str(unused_gpu(cpu))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unused_gpu(cpu) is None, "the user has chosen the CPU"


@pytest.mark.slow
def test_one_bar_in_a_terminal_and_a_fit_that_saves_when_it_is_closed(tmp_path: Path) -> None:
    """Writing to the bar fails from then on."""
    command = [sys.executable, "-m", "cyclelight", *arguments(tmp_path, *SHOWN)]
    command += ["--trainer.max_steps", "100000"]
    ours, theirs = pty.openpty()
    fit = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        shown = b""
        while shown.count(b"images/s") < 2:
            shown += os.read(ours, 4096)
        os.close(ours)
        fit.send_signal(signal.SIGHUP)
        assert fit.wait(60) == 129
    finally:
        fit.kill()
    assert 2 < state(tmp_path)["global_step"] < 100000
    bars = set(re.findall(rb"(\d+)/(\d+) \[", shown))
    assert len(bars) > 1 and {total for _, total in bars} == {b"100000"}
    assert b"Fitting DomainModule" in shown


def test_that_images_do_not_stay_in_memory_is_told(tmp_path: Path) -> None:
    for level in range(3):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{level}.png")
    told = []
    for memory in (None, 0):
        data = DomainImages(str(tmp_path), memory=memory)
        data.load(8)
        told.append(images_of(data))
    here = "2 images to train on, 1 image to validate on"
    assert told == [
        here,
        f"{here}, decoded anew in each epoch, as they are more than data.memory holds",
    ]
