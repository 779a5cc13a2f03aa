"""DistillationModule: teach one network what a slower method does (`lightning fit`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cyclelight.callbacks.samples import SampleGrid
from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.domains.translator import STUDENT, Translator, save_translator
from cyclelight.errors import BadValue, at_least
from cyclelight.metrics.faithfulness import psnr
from cyclelight.modules.training import TrainingModule
from cyclelight.networks import arrange, blocks
from cyclelight.networks.one_step import OneStepSettings
from cyclelight.runs.sharding import shard
from datamodules import DomainData, PairedImages


def gradient_l1(y_hat: Tensor, y: Tensor) -> Tensor:
    """The mean absolute error of the differences of neighbouring pixels, of each image: (B,).

    Both ways weigh as much. It minds edges, where the pixels' own error minds areas; close to the
    gradient difference loss (Mathieu et al. 2016, Eq. 6), which takes magnitudes first.

    Args:
        y_hat: images (B, C, H, W).
        y: what they should be.
    """
    error = y_hat - y
    ways = (error.diff(dim=3), error.diff(dim=2))
    return torch.stack([way.abs().mean(dim=(1, 2, 3)) for way in ways]).mean(0)


class FirstWay(SampleGrid):
    """Pictures of a student: of its first way, where it goes several."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep of the first images those that go the first way."""
        if "direction" in batch:  # Other data are refused where they are used.
            chosen = [i for i, way in enumerate(batch["direction"]) if not int(way)]
            batch = {name: [batch[name][i] for i in chosen] for name in ("key", "image")}
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)


def _refuse(data: str) -> NoReturn:
    raise ValueError(f"DistillationModule takes images and translations (PairedImages), got {data}")


class DistillationModule(TrainingModule):
    """A student that makes in one call what a teacher makes in many: its translations.

    The teacher is any method of `lightning predict`; the data, `PairedImages`, are images and what
    it has made of them. The loss is the mean absolute error of the pixels and `gradient_weight`
    times that of their differences. Of what the teacher draws by chance the student learns the
    median: it is as sure as the teacher, and less sharp where that is not. Where the data have
    several pairs of folders, such as from A to B and from B to A, one network learns all ways, told
    which by a number. The fit ends by writing `generator/` into the output folder, which the method
    OneStep takes, and `lightning export`.

    Args:
        names: what to call what it makes, such as dog; of each way, in the order of the data.
        resolution: height and width of the images in pixels.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the student.
        gradient_weight: weight of the error of the differences between neighbouring pixels.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        learning_rate: peak learning rate of AdamW.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = STUDENT.product, STUDENT.mark
    curves = ("train/l1", "val/l1")

    def __init__(
        self,
        names: tuple[str, ...] = ("target",),
        resolution: int = 48,
        channels: int = 3,
        network: OneStepSettings = OneStepSettings(),  # noqa: B008 (frozen)
        gradient_weight: float = 1.0,
        ema_decay: float = 0.999,
        learning_rate: float = 1e-3,
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, learning_rate, **training)
        at_least(1, resolution=resolution, channels=channels)
        at_least(0, gradient_weight=gradient_weight)
        if not names:
            raise BadValue("names", "names: give one for each way that the student goes")
        self.names, self.resolution, self.channels = tuple(names), resolution, channels
        self.gradient_weight = gradient_weight
        ways = len(self.names)
        self.network = network.build(resolution=resolution, channels=channels, directions=ways)
        arrange(self.network)
        self.val_l1, self.val_psnr = MeanMetric(), MeanMetric()

    @property
    def trained_network(self) -> nn.Module:
        network: nn.Module = self.network
        return network

    def configure_model(self) -> None:
        """Shard the network, under the strategy fsdp2."""
        shard([*blocks(self.network.unet), self.network], self.device_mesh)

    def configure_callbacks(self) -> list[Callback]:
        """The moving average, and the pictures of the first way."""
        callbacks = super().configure_callbacks()
        others = [callback for callback in callbacks if not isinstance(callback, SampleGrid)]
        every = self.sample_every_n_steps
        return [*others, *([FirstWay(every)] if every else [])]

    def on_fit_start(self) -> None:
        """Refuse now what would come to light amid the training.

        Raises:
            ValueError: the data have no translations, or go other ways.
        """
        super().on_fit_start()
        data: Any = getattr(self.trainer, "datamodule", None)
        if isinstance(data, PairedImages) and len(data.names) != len(self.names):
            raise BadValue(
                "names",
                f"names: the data go {len(data.names)} ways (to {', '.join(data.names)}), and "
                f"there are {len(self.names)} names: {', '.join(self.names)}",
            )
        if isinstance(data, DomainData) and not isinstance(data, PairedImages):
            _refuse(type(data).__name__)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch.

        Raises:
            ValueError: the data have no translations.
        """
        if "target" not in batch:
            _refuse("batches without target")
        # As one image of twice the channels, so that both are mirrored or neither.
        both = torch.cat([batch["image"], batch["target"]], dim=3)
        pair, _ = self.training_images({**batch, "image": both}, batch_idx)
        x, y = pair.chunk(2, dim=1)
        y_hat = self._translate(x, batch).float()
        l1, gradient = (y_hat - y).abs().mean(), gradient_l1(y_hat, y).mean()
        self.log("train/l1", l1, prog_bar=True)
        self.log("train/gradient", gradient)
        return finite(l1 + self.gradient_weight * gradient, self.global_step)

    def _translate(self, x: Tensor, batch: Mapping[str, Any]) -> Tensor:
        made: Tensor = self.network(x, torch.as_tensor(batch["direction"], device=x.device))
        return made

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """The translations of the real images, the first way."""
        made: Tensor = self.network(real)
        return made

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """How far from the teacher's translations, which are 8-bit images."""
        if not len(batch["image"]):  # What a process without images gets.
            return
        y_hat = self._translate(to_float(batch["image"]), batch).float()
        error = (y_hat - to_float(batch["target"])).abs()
        self.val_l1.update(error.mean(dim=(1, 2, 3)))
        self.val_psnr.update(psnr(to_uint8(y_hat), batch["target"]))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over images of the absolute error and of the PSNR."""
        self.log("val/l1", self.val_l1)
        self.log("val/psnr", self.val_psnr, prog_bar=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self.log("test/l1", self.val_l1)
        self.log("test/psnr", self.val_psnr)

    def card(self) -> dict[str, Any]:
        """What `student.json` says."""
        return {**super().card(), "gradient_weight": self.gradient_weight}

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the student's folder."""
        return save_translator(folder, Translator(self.network, self.names, self.card()), weights)
