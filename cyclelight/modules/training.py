"""TrainingModule: what the trainings share: AdamW and its learning rates, flips, the ending."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any, ClassVar, Literal

import diffusers
import lightning
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cyclelight.callbacks.ema import EMA
from cyclelight.callbacks.samples import SampleGrid
from cyclelight.diffusion.noise import keyed_generator, step_generator
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import BadValue, at_least
from cyclelight.files import check_place
from cyclelight.runs.sharding import whole

log = logging.getLogger(__name__)

LearningRates = Literal["constant", "cosine", "linear"]


def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) flipped left-right with probability 1/2; `generator` is a CPU's."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)


LEVELS = 5
"""Validation judges in this many equal ranges of timesteps."""


def timestep_ranges(schedule: NoiseSchedule) -> dict[str, range]:
    """The ranges of timesteps in which validation judges, by the names they are logged under."""
    T = schedule.timesteps
    edges = pairwise(T * i // LEVELS for i in range(LEVELS + 1))
    return {f"t{low:04d}-{high - 1:04d}": range(low, high) for low, high in edges}


def judged_at(
    x_0: Tensor, keys: Sequence[str], timesteps: range, level: int, seed: int
) -> tuple[Tensor, Tensor]:
    """(a timestep of a range for each image, (B,), and noise for it, like x_0).

    Both depend on the image's key, `seed` and the number of the range, `level`, alone.
    """
    generators = [keyed_generator(seed, key, "val", level) for key in keys]
    low, high = timesteps.start, timesteps.stop
    t = torch.stack([torch.randint(low, high, (), generator=g) for g in generators])
    noise = torch.stack([torch.randn(x_0.shape[1:], generator=g) for g in generators])
    return t.to(x_0.device), noise.to(x_0)


def versions() -> dict[str, str]:
    """Versions of the libraries that a model was trained with."""
    return {
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "diffusers": diffusers.__version__,
    }


class Rates(LambdaLR):
    """Those of `TrainingModule`, by a name of their own to be told from a subclass's."""


class TrainingModule(LightningModule, ABC):
    """A module that learns by AdamW: a linear warm-up, then constant or down to 0.

    A fit that goes on takes these settings as they are now, not as its checkpoint has them. It ends
    by writing what it has made into the output folder.

    Args:
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        lr_schedule: after the warm-up: constant, a cosine down to 0 at the last step, or linear:
            constant for half of the steps that are left, then a line down to 0 at the last one.
        flip: mirror training images left-right, each with probability 1/2.
        data_licence: licence of the training images, for the card.
        sample_every_n_steps: how many steps apart pictures go to `samples/` of the output folder
            and to TensorBoard, real images beside what the averaged weights make; 0 for never. They
            take about 5 % of the time at most: there are fewer where they would take more.
        seed: seed of whatever is random in training, validation and samples.

    Raises:
        ValueError: a setting is out of range.
    """

    product: ClassVar[str]
    """What the fit makes; its folder has this name, too."""
    mark: ClassVar[tuple[str, str]]
    """What such a folder is called, and the file by which it is known."""
    curves: tuple[str, str] = ("train/loss", "val/loss")
    """The figures, of those that it logs, which tell how training and validation go."""
    resolution: int
    """Height and width of the images in pixels."""
    channels: int = 3
    """Channels of the images: 3 for RGB, or 1 for grey."""

    def __init__(
        self,
        ema_decay: float,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        warmup_steps: int = 500,
        lr_schedule: LearningRates = "constant",
        flip: bool = True,
        data_licence: str = "not stated",
        sample_every_n_steps: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least(0, warmup_steps=warmup_steps, sample_every_n_steps=sample_every_n_steps)
        if not learning_rate > 0:
            raise BadValue("learning_rate", f"learning_rate must be above 0, got {learning_rate}")
        if not 0 <= ema_decay < 1:
            raise BadValue("ema_decay", f"ema_decay must be in [0, 1), got {ema_decay}")
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps, self.lr_schedule = warmup_steps, lr_schedule
        self.ema_decay, self.flip, self.seed = ema_decay, flip, seed
        self.data_licence, self.sample_every_n_steps = data_licence, sample_every_n_steps

    @property
    @abstractmethod
    def trained_network(self) -> nn.Module:
        """What learns."""

    @abstractmethod
    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write what the fit has made; the folder.

        Args:
            folder: where to; it appears whole or not at all.
            weights: the averaged weights of `trained_network`, which may hold only a part of them.
        """

    def configure_callbacks(self) -> list[Callback]:
        """The moving average, and the pictures, which show it."""
        callbacks: list[Callback] = [EMA(self.ema_decay)]
        if self.sample_every_n_steps:
            callbacks.append(SampleGrid(self.sample_every_n_steps))
        return callbacks

    @abstractmethod
    def pictures(self, real: Tensor, first: int) -> Tensor:
        """What is shown beside real images: as many images (B, C, R, R), near [-1, 1].

        Args:
            real: (B, C, R, R) in [-1, 1].
            first: the number of the first one; what is random in image i depends on i alone.
        """

    def training_images(
        self, batch: Mapping[str, Any], batch_idx: int
    ) -> tuple[Tensor, torch.Generator]:
        """(images of a batch, float (B, C, R, R) in [-1, 1] and mirrored by chance, a generator).

        What is random in a step depends on (seed, step, batch, rank) alone.
        """
        generator = step_generator(self.seed, self.global_step, batch_idx, self.global_rank)
        x = to_float(batch["image"])
        return (mirror(x, generator) if self.flip else x), generator

    def card(self) -> dict[str, Any]:
        """Where the weights come from: data and licence, steps, versions."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        return {
            "resolution": self.resolution,
            "data": datamodule.summary() if hasattr(datamodule, "summary") else {},
            "data_licence": self.data_licence,
            "steps": self.trainer.global_step,
            "ema_decay": self.ema_decay,
            "versions": versions(),
        }

    def on_fit_start(self) -> None:
        """Refuse now, rather than at the end, to put it in the place of something else."""
        check_place(self._folder, *self.mark)

    def on_fit_end(self) -> None:
        """Write what was made; the weights are the averaged ones by now."""
        if self.trainer.interrupted or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        weights = whole(self.trained_network.state_dict())
        if self.trainer.is_global_zero:
            log.info("Wrote the %s to %s", self.product, self.write(self._folder, weights))

    @property
    def _folder(self) -> Path:
        return Path(self.trainer.default_root_dir) / self.product

    def configure_optimizers(self) -> Any:
        """For all parameters; the learning rate changes with each step.

        Raises:
            ValueError: a cosine or a line without an end.
        """
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": Rates(optimizer, self.rate_factor()),
                "interval": "step",
            },
        }

    def rate_factor(self) -> Callable[[int], float]:
        """What the peak learning rate is multiplied by, given the step.

        Raises:
            ValueError: a cosine or a line without an end.
        """
        last = 0 if self.lr_schedule == "constant" else self._last_step()

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if self.lr_schedule == "constant":
                return 1.0
            done = min(1.0, (step - self.warmup_steps) / max(1, last - self.warmup_steps))
            if self.lr_schedule == "linear":
                return min(1.0, 2 * (1 - done))
            return 0.5 * (1 + cos(pi * done))

        return factor

    def _last_step(self) -> float:
        """Raises ValueError if there is none."""
        loop = self.trainer.fit_loop
        loader = loop._combined_loader
        last = self.trainer.estimated_stepping_batches
        # It has made the loader, to count, before a checkpoint tells where in an epoch to begin.
        loop._combined_loader = loader
        if last == float("inf"):
            raise BadValue(
                "lr_schedule",
                f"lr_schedule {self.lr_schedule!r} needs an end: set trainer.max_steps or "
                f"max_epochs",
            )
        return last

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network's weights, in one line; torch has one for each of them.

        Raises:
            ValueError: names or shapes differ.
        """
        if not self.strict_loading:
            return
        there, here = shapes(checkpoint["state_dict"]), shapes(self.state_dict())
        for name in sorted({*there, *here}):
            if there.get(name) != here.get(name):
                raise ValueError(
                    f"the checkpoint is of another network: {name} is {there.get(name, 'missing')} "
                    f"there, {here.get(name, 'missing')} here; take the settings of that fit, "
                    f"which its config.yaml has"
                )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the learning rate of the step; of several optimizers, the first one's."""
        if optimizer is self.trainer.optimizers[0]:
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def on_train_start(self) -> None:
        """Put the present settings in place of those that a checkpoint has brought back."""
        scheduler = self.lr_schedulers()
        if not isinstance(scheduler, Rates):  # A subclass with an optimizer of its own.
            return
        scheduler.base_lrs = [self.learning_rate]
        (group,) = scheduler.optimizer.param_groups
        group["initial_lr"], group["weight_decay"] = self.learning_rate, self.weight_decay
        group["lr"] = self.learning_rate * scheduler.lr_lambdas[0](scheduler.last_epoch)


def shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
