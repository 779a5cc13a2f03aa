"""TaskProgress: how far a run of `predict` is, in images and in steps."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from cyclelight.runs.task import task_of


class TaskProgress(ProgressBar):
    """One bar that moves with every step of a batch, with steps and images per second."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar; a unit is one step of one batch."""
        task = task_of(pl_module)
        batches = sum(int(n) for n in trainer.num_predict_batches)
        self._bar = tqdm(
            total=batches * task.steps,
            desc="0 images",
            unit="step",
            disable=not self._enabled,
            dynamic_ncols=True,
            # A file need not hold each movement.
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )
        self._images, self._started = 0, time.monotonic()
        task.on_step = self._bar.update

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the finished images."""
        self._images += len(outputs)
        seconds = time.monotonic() - self._started
        self._bar.set_description(f"{self._images} images", refresh=False)
        self._bar.set_postfix_str(f"{self._images / seconds:.2f} image/s")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar, also after an interruption."""
        if self._bar is not None:
            self._bar.close()
