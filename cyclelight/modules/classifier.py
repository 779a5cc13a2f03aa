"""DomainClassifierModule: train a classifier of several domains' noisy images (`lightning fit`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import ModuleDict
from torch.nn import functional as F
from torchmetrics import MeanMetric

from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.noise import KeyedNoise, gaussian_like
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.diffusion.steps import add_noise
from cyclelight.domains.classifier import MARK, DomainClassifier, save_classifier
from cyclelight.errors import BadValue, at_least
from cyclelight.modules.training import TrainingModule, judged_at, timestep_ranges
from cyclelight.networks import arrange
from cyclelight.networks.classifier import ClassifierSettings
from cyclelight.runs.sharding import shard


class DomainClassifierModule(TrainingModule):
    """Tells the domains of images apart at every noise level, for EGSDE (Zhao et al. 2022).

    It is trained on the images of all the domains, each noised to a timestep drawn evenly from the
    schedule (Dhariwal and Nichol 2021, sec. 4.1). An image's class is the first folder of its path
    below the data's root. The fit ends by writing `classifier/` into the output folder.

    Args:
        classes: the folders of the domains, at least two, such as cat and dog.
        resolution: height and width of the images in pixels.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the network.
        schedule: the noise schedule: that of the domains it is to be used with.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = "classifier", MARK

    def __init__(
        self,
        classes: tuple[str, ...],
        resolution: int = 64,
        channels: int = 3,
        network: ClassifierSettings = ClassifierSettings(),  # noqa: B008 (frozen)
        schedule: NoiseSchedule = NoiseSchedule(),  # noqa: B008 (frozen)
        ema_decay: float = 0.999,
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, **training)
        at_least(1, resolution=resolution, channels=channels)
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise BadValue(
                "classes", f"classes must be at least two different folders, got {list(classes)}"
            )
        self.classes, self.schedule = tuple(classes), schedule
        self.resolution, self.channels = resolution, channels
        self.network = network.build(
            resolution=resolution, channels=channels, classes=len(self.classes)
        )
        arrange(self.network)
        names = ("loss", "accuracy", *timestep_ranges(schedule))
        self.val_figures = ModuleDict({name: MeanMetric() for name in names})

    @property
    def trained_network(self) -> nn.Module:
        network: nn.Module = self.network
        return network

    def configure_model(self) -> None:
        """Shard the network, under the strategy fsdp2."""
        parts = [*self.network.input_blocks, self.network.middle_block, self.network]
        shard(parts, self.device_mesh)

    def on_fit_start(self) -> None:
        """Refuse now what would come to light amid the training: images of no class, no images.

        Raises:
            ValueError: an image lies in no folder of a class, or a class has none.
        """
        super().on_fit_start()
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        for images in ("train_images", "val_images"):
            keys = getattr(getattr(datamodule, images, None), "keys", None)
            if keys is None:  # Data that does not list its images.
                continue
            seen = Counter(self.labels(keys).tolist())
            for label, name in enumerate(self.classes):
                if not seen[label]:
                    what = images.replace("_", " ")
                    raise BadValue("classes", f"classes: there are no {what} in a folder {name}")

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """The images at a quarter of the timesteps, framed in the colour of what they pass for.

        Of k classes the colours are k hues, red the first.
        """
        k, t = len(self.classes), self.schedule.timesteps // 4
        timesteps = torch.full((len(real),), t, device=real.device)
        numbers = range(first, first + len(real))
        noise = KeyedNoise(self.seed, numbers)("classifier pictures", t, real)
        guesses = self._logits(real, timesteps, noise).argmax(1)
        hues = torch.tensor([hsv_to_rgb(number / k, 1, 1) for number in range(k)])
        colours = 2 * hues.to(real)[guesses, :, None, None] - 1
        width = max(1, self.resolution // 16)
        frame = torch.ones_like(real[0, 0], dtype=torch.bool)
        frame[width:-width, width:-width] = False
        shown = add_noise(real, noise, self.schedule.alpha_bar(t))
        return torch.where(frame, colours, shown.expand(-1, 3, -1, -1))

    def labels(self, keys: Sequence[str]) -> Tensor:
        """The classes' numbers (B,) of images, by their paths below the data's root.

        Raises:
            ValueError: one lies in no folder of a class.
        """
        numbers = {name: number for number, name in enumerate(self.classes)}
        found = []
        for key in keys:
            folder = key.partition("/")[0] if "/" in key else ""
            if folder not in numbers:
                raise BadValue(
                    "classes",
                    f"classes: the image {key} lies in no folder of {', '.join(self.classes)}",
                )
            found.append(numbers[folder])
        return torch.tensor(found)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The cross entropy of a batch, each image at a timestep of its own."""
        x_0, generator = self.training_images(batch, batch_idx)
        labels = self.labels(batch["key"]).to(x_0.device)
        t = torch.randint(self.schedule.timesteps, (len(x_0),), generator=generator)
        logits = self._logits(x_0, t.to(x_0.device), gaussian_like(x_0, generator))
        loss = finite(F.cross_entropy(logits, labels), self.global_step)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", (logits.argmax(1) == labels).float().mean())
        return loss

    def _logits(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        x_t = add_noise(x_0, noise, self.schedule.alpha_bars(t).to(x_0))
        logits: Tensor = self.network(x_t, t)
        return logits.float()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Each image at one timestep of each range; timestep and noise depend on its key alone."""
        if not len(batch["image"]):  # What a process without images gets.
            return
        x_0 = to_float(batch["image"])
        labels, figures = self.labels(batch["key"]).to(x_0.device), self._figures()
        for level, (name, timesteps) in enumerate(timestep_ranges(self.schedule).items()):
            t, noise = judged_at(x_0, batch["key"], timesteps, level, self.seed)
            logits = self._logits(x_0, t, noise)
            right = (logits.argmax(1) == labels).float()
            figures[name].update(right)
            figures["accuracy"].update(right)
            figures["loss"].update(F.cross_entropy(logits, labels, reduction="none"))

    def _figures(self) -> dict[str, MeanMetric]:
        figures = dict(self.val_figures.items())
        return {name: metric for name, metric in figures.items() if isinstance(metric, MeanMetric)}

    def _log_figures(self, stage: str) -> None:
        # Metric objects, since Lightning's own mean over batches ignores how many images each has.
        for name, metric in self._figures().items():
            plain = name in ("loss", "accuracy")
            label = f"{stage}/{name}" if plain else f"{stage}/accuracy_{name}"
            attribute = f"val_figures.{name}"
            self.log(label, metric, prog_bar=name == "accuracy", metric_attribute=attribute)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy over all timesteps, and the accuracy in each range of them."""
        self._log_figures("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self._log_figures("test")

    def card(self) -> dict[str, Any]:
        """What `classifier.json` says beside classes and schedule."""
        accuracy = self.trainer.callback_metrics.get("val/accuracy")
        told = None if accuracy is None else round(float(accuracy), 4)
        return {**super().card(), "val_accuracy": told}

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the classifier folder."""
        made = DomainClassifier(self.network, self.schedule, self.classes, self.card())
        return save_classifier(folder, made, weights)
