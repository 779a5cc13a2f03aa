"""Wherever a checkpoint is saved, what follows it is what followed it without it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from cyclelight.callbacks.resumption import Resumption
from datamodules.order import TrainingOrder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric val"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
]


class Line(LightningModule):
    """Three batches an epoch, of six numbers."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.workers = workers

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.line(batch[0]).mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val", self.line(batch[0]).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        rates = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
        scheduler = {"scheduler": rates, "monitor": "val", "interval": "epoch", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def train_dataloader(self) -> DataLoader[Any]:
        numbers = TensorDataset(torch.arange(6.0).view(6, 1))
        order = TrainingOrder(numbers, 1, 0, seed=3, drop_last=False)
        order.follow(self.trainer, batches=3, batch_size=2)
        many = self.workers > 0
        return DataLoader(
            numbers, 2, sampler=order, num_workers=self.workers, persistent_workers=many
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.tensor([[1.0], [7.0], [-3.0]])))


class ShardOrder(Checkpoint):
    """Notes what happens, and saves a checkpoint at each place if there is a folder for it.

    Lightning calls it last, as it does those that save.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.events: list[tuple[Any, ...]] = []
        self.saved: dict[Path, int] = {}

    def note(self, what: str, trainer: Trainer, *more: Any) -> None:
        counted = trainer.fit_loop.epoch_loop._batches_that_stepped
        weight = trainer.lightning_module.line.weight.item()
        self.events.append((what, trainer.global_step, trainer.current_epoch, weight, *more))
        if what != "validation":
            self.events[-1] += (counted,)
        if self.folder is not None and what != "epoch":
            path = self.folder / f"{len(self.events)} {what} {trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            self.saved[path] = len(self.events)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note("epoch", trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.note("batch", trainer, batch_idx, batch[0].flatten().tolist())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note("validation", trainer, trainer.callback_metrics["val"].item())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note("end of epoch", trainer, trainer.callback_metrics.get("val"))


def fit(
    course: ShardOrder,
    workers: int = 0,
    path: Path | None = None,
    more: Sequence[Callback] = (),
    **settings: Any,
) -> ShardOrder:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Resumption(), *more, course],
        **settings,
    )
    torch.manual_seed(0)
    trainer.fit(Line(workers), ckpt_path=path, weights_only=True)
    return course


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        ({"max_steps": 8, "check_val_every_n_epoch": 2}, 0),
        ({"max_epochs": 2, "val_check_interval": 2}, 0),
        pytest.param({"max_steps": 5}, 1, marks=pytest.mark.slow),
        *(
            pytest.param(settings, 0, marks=pytest.mark.slow)
            for settings in [
                {"max_steps": 8},
                {"max_steps": 8, "val_check_interval": 1},
                {"max_steps": 8, "val_check_interval": 2},
                {"max_steps": 8, "val_check_interval": 2, "check_val_every_n_epoch": None},
                {"max_steps": 8, "limit_val_batches": 0},
                {"max_steps": 8, "limit_train_batches": 2},
                {"max_steps": 8, "limit_train_batches": 0.9},
                {"max_epochs": 3},
                {"max_epochs": 3, "check_val_every_n_epoch": 2},
                {"max_epochs": 3, "limit_val_batches": 0},
            ]
        ),
    ],
)
def test_every_place(tmp_path: Path, settings: dict[str, Any], workers: int) -> None:
    whole = fit(ShardOrder(tmp_path), workers, **settings)
    assert len(whole.saved) > 6
    last = settings.get("max_steps")
    for path, noted in whole.saved.items():
        rest = whole.events[noted:]
        if whole.events[noted - 1][1] == last:
            rest = []  # Nothing is done any more by a fit that has done its last step.
        assert fit(ShardOrder(), workers, path, **settings).events == rest, path.name


def test_patience_stays_lost(tmp_path: Path) -> None:
    """A fit that an EarlyStopping ends, and one that it has ended, takes no batch more."""

    def impatient() -> list[Callback]:
        return [EarlyStopping("val", mode="max", patience=2)]

    whole = fit(ShardOrder(tmp_path), more=impatient(), max_epochs=9)
    assert whole.events[-1][2] == 2  # Each value is below the first.
    for path, noted in whole.saved.items():
        rest = fit(ShardOrder(), path=path, more=impatient(), max_epochs=9).events
        assert rest == whole.events[noted:], path.name


def test_lost_gradients_are_told(tmp_path: Path) -> None:
    settings = {"max_steps": 2, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    amid, *_ = fit(ShardOrder(tmp_path), **settings).saved
    with pytest.warns(UserWarning, match="amid the batches of one step"):
        fit(ShardOrder(), path=amid, **settings)
