"""FitProgress: what a fit is about to do, how far it is, and when it will end."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_warn
from tqdm import tqdm

from cyclelight.callbacks.loss_curve import curves_of
from datamodules.square_images import SquareImages

log = logging.getLogger(__name__)

FIRST, EVERY, REFRESH = 10.0, 30.0, 0.5
"""Seconds until the first line, between lines, and between two refreshments of the bar."""
BAR = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
NVIDIA, AMD = Path("/proc/driver/nvidia/gpus"), Path("/dev/kfd")
"""Where Linux shows the GPUs of its drivers."""


class FitProgress(ProgressBar):
    """One line at the start, then a bar over all steps, or, where stderr is no terminal, lines.

    A line comes after 10 seconds and then every 30: step, losses, images per second, and the time
    that is left, reckoned from all that this fit has spent so far, validations included.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what begins, and begin to count."""
        self._first = self._step = trainer.global_step
        self._total = total_steps(trainer)
        self._began = self._told = time.monotonic()
        self._wait, self._images, self._since = FIRST, 0, self._began
        if not self._enabled:
            return
        log.info(opening(trainer, pl_module, self._total))
        if reason := unused_gpu(trainer.strategy.root_device):
            rank_zero_warn(reason)
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=self._first,
                bar_format=BAR,
                # A terminal that does not know its size would show nothing.
                ncols=80,
                nrows=20,
                dynamic_ncols=os.get_terminal_size(sys.stderr.fileno()).columns > 0,
                mininterval=REFRESH,
            )
            self._wait = REFRESH

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and tell every so many seconds."""
        self._step = trainer.global_step
        self._images += _length(batch) * trainer.world_size
        now = time.monotonic()
        if not self._enabled or now - self._told < self._wait:
            return
        figures = _losses(trainer, pl_module)
        figures.append(f"{self._images / (now - self._since):.3g} images/s")
        if self._bar is None:
            told = ", ".join([*figures, *self._end(now)])
            log.info("step %s, %s", self._of_total(), told)
            self._wait = EVERY
        else:
            # Short, as a terminal has 80 columns.
            self._move(", ".join(figures).replace("train/", "").replace("val/loss", "val"))
        self._told = self._since = now
        self._images = 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how it ended."""
        if not self._enabled:
            return
        self._close()
        took = _duration(time.monotonic() - self._began)
        losses = "".join(f", {told}" for told in _losses(trainer, pl_module))
        log.info("The fit ended after step %s, in %s%s", self._of_total(), took, losses)
        if self._total is not None and self._step < self._total:
            rank_zero_warn(
                f"the fit ended {self._total - self._step} steps early: a callback, such as early "
                f"stopping, or trainer.max_time has ended it"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar, also after an interruption."""
        self._close()

    def _end(self, now: float) -> list[str]:
        if self._total is None or self._step == self._first:
            return []
        seconds = (now - self._began) / (self._step - self._first) * (self._total - self._step)
        return [f"{_duration(seconds)} left, ends {_clock(seconds)}"]

    def _of_total(self) -> str:
        return f"{self._step}" if self._total is None else f"{self._step} of {self._total}"

    def _move(self, figures: str) -> None:
        with suppress(OSError):  # The terminal may be gone; the fit need not be.
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(self._step - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.update(self._step - self._bar.n)
                self._bar.close()
            self._bar = None


def total_steps(trainer: Trainer) -> int | None:
    """At which step a fit will end; None if that is not known."""
    if trainer.max_steps == -1 and not trainer.lightning_module.automatic_optimization:
        return None  # How many steps a batch makes is known to the module alone.
    total = trainer.estimated_stepping_batches
    return None if total == float("inf") else int(total)


def opening(trainer: Trainer, module: LightningModule, total: int | None) -> str:
    """What is about to be trained, on what, of which images, for how long."""
    device, precision = trainer.strategy.root_device, trainer.precision
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    places = f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
    if device.type == "cpu":
        places += f" ({torch.get_num_threads()} threads)"
    learns = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    data: Any = getattr(trainer, "datamodule", None)
    step, end = trainer.global_step, "an end that is not known" if total is None else total
    return (
        f"Fitting {type(module).__name__} on {places}, {precision}: {learns / 1e6:.3g} M "
        f"parameters, {images_of(data)}; steps {step} to {end}, into {trainer.default_root_dir}"
    )


def images_of(data: Any) -> str:
    """How many images there are, and how many were left out."""
    summary = data.summary() if hasattr(data, "summary") else {}
    found = [
        f"{summary[name]} image{'s' * (summary[name] != 1)} to {purpose} on"
        for name, purpose in (("train_images", "train"), ("val_images", "validate"))
        if name in summary
    ]
    splits = (getattr(data, name, None) for name in ("train_images", "val_images"))
    train = getattr(data, "train_images", None)
    if isinstance(train, SquareImages) and not train.in_memory:
        found.append("decoded anew in each epoch, as they are more than data.memory holds")
    left_out = sum(len(split.skipped) for split in splits if isinstance(split, SquareImages))
    found += [f"{left_out} unreadable ones left out"] * (left_out > 0)
    return ", ".join(found) or "images of its own"


def unused_gpu(device: torch.device) -> str | None:
    """Why a GPU that this machine has is of no use, if it has one and torch cannot take it."""
    there = NVIDIA.is_dir() and any(NVIDIA.iterdir())
    if device.type != "cpu" or not (there or AMD.exists() or shutil.which("nvidia-smi")):
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"this machine has a GPU, but torch {torch.__version__} is a build for CPUs: the fit "
            f"runs on the CPU. https://pytorch.org/get-started has the one for your GPU"
        )
    if not torch.cuda.is_available() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return (
            f"this machine has a GPU, but torch {torch.__version__} cannot use it: the fit runs on "
            f"the CPU. Its driver may be too old, or the device closed to this process"
        )
    return None


def _losses(trainer: Trainer, module: LightningModule) -> list[str]:
    found = trainer.callback_metrics
    return [f"{name} {float(found[name]):.4g}" for name in curves_of(module) if name in found]


def _length(batch: Any) -> int:
    return len(batch["image"]) if isinstance(batch, Mapping) and "image" in batch else 0


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _clock(seconds: float) -> str:
    """The time of day in so many seconds, with the day if that is another one."""
    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    return end.strftime("%H:%M" if end.date() == now.date() else "%a %d %b %H:%M")
