"""SampleGrid: pictures of what a fit makes so far, beside real images."""

import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from cyclelight.callbacks.ema import EMA
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.domains.domain import Domain
from cyclelight.errors import first_line
from cyclelight.files import atomic

COUNT, FEWEST, COLUMNS = 16, 4, 4
"""Images in a grid, those in one for which time is short, and those side by side."""
SHARE = 0.05
"""Share of the time of a fit that its pictures may take."""
SMALLEST, CAPTION, GAP = 64, 20, 24
"""Side in which an image is shown at least, height of the caption, space between the grids."""


@runtime_checkable
class HasDomain(Protocol):
    """A module that trains a domain."""

    @property
    def domain(self) -> Domain:
        """As it is now."""


def domain_of(module: LightningModule) -> Domain:
    """The domain that a module trains.

    Raises:
        ValueError: it trains none.
    """
    if not isinstance(module, HasDomain):
        name = type(module).__name__
        raise ValueError(f"{name} has no domain to sample: set scores.samples to 0")
    return module.domain


@runtime_checkable
class MakesPictures(Protocol):
    """A module with something to show beside real images."""

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """Images (B, C, R, R), near [-1, 1].

        Args:
            real: as many real images (B, C, R, R) in [-1, 1], which they are shown beside.
            first: the number of the first one; what is random in image i depends on i alone.
        """


class SampleGrid(Callback):
    """Writes `samples/step_<n>.png`: real images on the left, what the averaged weights make right.

    Pictures are drawn every so many steps and after the last one, as far as all of them take about
    5 % of the time: else fewer images (4 in place of 16), else none. TensorBoard gets them, too. A
    picture that cannot be made is a warning.

    Args:
        every_n_steps: how many steps apart.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._real: dict[str, Tensor] = {}
        self._step = self._drawn = 0
        self._spent = self._each = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count steps and seconds."""
        self._step = self._drawn = trainer.global_step
        self._began, self._spent, self._each = time.monotonic(), 0.0, 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first images that come along, each once."""
        if len(self._real) < COUNT:
            for key, image in zip(batch["key"], batch["image"], strict=True):
                if len(self._real) < COUNT and key not in self._real:
                    self._real[key] = image.cpu()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, where a multiple of the interval was reached (a batch may be two steps)."""
        before, self._step = self._step, trainer.global_step
        if self._step // self.every_n_steps > before // self.every_n_steps:
            affordable = not self._drawn or self._affords(FEWEST)
            # The first process's clock for all: under fsdp2 they draw together.
            if trainer.strategy.broadcast(affordable):
                self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the fit ends with."""
        if self._step > self._drawn:
            self._draw(trainer, pl_module)

    def _affords(self, images: int) -> bool:
        elapsed = time.monotonic() - self._began
        return self._spent + images * self._each <= SHARE * elapsed

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        self._drawn = self._step
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        (ema,) = (callback for callback in callbacks if isinstance(callback, EMA))
        with ema.averaged(trainer, module):
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                try:
                    self._write(trainer, *self._make(trainer, module))
                except (OSError, RuntimeError, ValueError) as error:
                    reason = first_line(error)
                    rank_zero_warn(f"no picture of step {self._step} could be made: {reason}")

    @torch.no_grad()
    def _make(self, trainer: Trainer, module: LightningModule) -> tuple[Tensor, Tensor]:
        """(real images, those to show beside them): uint8, (B, R, R, C); few if time is short."""
        assert isinstance(module, MakesPictures)
        real = torch.stack(list(self._real.values()))
        modes = {part: part.training for part in module.modules()}
        module.eval()
        made: list[Tensor] = []
        try:
            for first, end in ((0, FEWEST), (FEWEST, COUNT)):
                began, some = time.monotonic(), real[first:end]
                if not len(some) or (made and not self._affords(len(some))):
                    break
                with trainer.precision_plugin.forward_context():
                    images = module.pictures(to_float(some).to(module.device), first)
                made.append(to_uint8(images).cpu())
                seconds = time.monotonic() - began
                self._spent, self._each = self._spent + seconds, seconds / len(some)
        finally:
            for part, mode in modes.items():
                part.training = mode
        shown = torch.cat(made)
        return real[: len(shown)], shown

    def _write(self, trainer: Trainer, real: Tensor, made: Tensor) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", grid(made), self._step)
        picture = side_by_side({"real": real, f"step {self._step}": made})
        path = Path(trainer.default_root_dir) / "samples" / f"step_{self._step:06d}.png"
        with atomic(path) as temporary:
            picture.save(temporary, format="PNG")


def grid(images: Tensor) -> Tensor:
    """Images (B, H, W, C), uint8, in rows of four: (3, H', W'), uint8."""
    return make_grid(images.permute(0, 3, 1, 2), nrow=COLUMNS, pad_value=255)


def side_by_side(images: dict[str, Tensor]) -> Image.Image:
    """A grid of each of these images (B, H, W, C), uint8, under its name; small ones enlarged."""
    font, pictures = ImageFont.load_default(CAPTION * 0.7), []
    for some in images.values():
        picture = Image.fromarray(np.ascontiguousarray(grid(some).permute(1, 2, 0).numpy()))
        times = -(-SMALLEST // some.shape[1])
        size = (picture.width * times, picture.height * times)
        pictures.append(picture.resize(size, Image.Resampling.NEAREST))
    width = sum(picture.width + GAP for picture in pictures) - GAP
    whole = Image.new("RGB", (width, max(p.height for p in pictures) + CAPTION), "white")
    pen, left = ImageDraw.Draw(whole), 0
    for name, picture in zip(images, pictures, strict=True):
        pen.text((left + 4, 2), name, fill="black", font=font)
        whole.paste(picture, (left, CAPTION))
        left += picture.width + GAP
    return whole
