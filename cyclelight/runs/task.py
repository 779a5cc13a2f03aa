"""Task: what a run of `predict` makes. Writer, figures, gallery and resuming know nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cyclelight.diffusion.pixels import to_uint8


class Task(LightningModule, ABC):
    """Makes an image for each key of its batches; a subclass says how, in `make`.

    What it makes of a key depends on the key, its settings and the `seed` alone.
    """

    seed: int
    """Of all noise; it stands in the manifest."""

    def __init__(self) -> None:
        super().__init__()
        self.on_step: Callable[[], object] = lambda: None
        """Called after each step of a batch; a progress bar sets it."""

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Height and width R of the images in pixels."""

    @property
    def channels(self) -> int:
        """C of the images: 3 for RGB, or 1 for grey."""
        return 3

    @property
    @abstractmethod
    def steps(self) -> int:
        """How often `on_step` is called for a batch."""

    @property
    def kind(self) -> str | None:
        """The name of what the images show, by which a classifier may judge them; None if open."""
        return None

    @property
    def parts(self) -> Mapping[str, "Task"]:
        """What is made of the same batches at once, each as if it were made alone.

        By the folder of each below the output's, such as those of several targets of one source;
        by default this task itself, in the output folder. All have the same size and seed.
        """
        return {"": self}

    @property
    def gradients(self) -> bool:
        """Whether `make` takes gradients, which Lightning's inference mode forbids."""
        return False

    @abstractmethod
    def describe(self) -> str:
        """What is done and by which settings, in one line."""

    @abstractmethod
    def made_by(self) -> Mapping[str, str]:
        """The SHA-256 of all weights that take part, by the option that names their file.

        An option is named as below `--model.`, such as `source` or `method.classifier`.
        """

    @abstractmethod
    def make(self, batch: Mapping[str, Any]) -> Tensor:
        """The images of a batch that is not empty: (B, C, R, R), near [-1, 1].

        Of several `parts` (parts * B, C, R, R), one after another.

        Args:
            batch: `key`, B strings; `image`, uint8 (B, R, R, C), where there are sources; further
                fields of the data.
        """

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The images of a batch as they are saved and judged: uint8 (parts * B, R, R, C).

        Raises:
            RuntimeError: an image has values that are not finite.
        """
        if not batch["key"]:  # What a process without work gets.
            shape = (0, self.resolution, self.resolution, self.channels)
            return torch.empty(shape, dtype=torch.uint8, device=self.device)
        with torch.inference_mode(False) if self.gradients else nullcontext():
            images = self.make(batch)
        for key, image in zip([*batch["key"]] * len(self.parts), images, strict=True):
            if not image.isfinite().all():
                raise RuntimeError(
                    f"the image made of {key} has values that are not finite: weights are damaged, "
                    f"or trainer.precision is too low for them"
                )
        return to_uint8(images)


def task_of(pl_module: LightningModule) -> Task:
    """The module of a `predict` run.

    Raises:
        ValueError: it is of another kind.
    """
    if not isinstance(pl_module, Task):
        name = type(pl_module).__name__
        raise ValueError(f"predict takes a Task, such as TranslationModule, got {name}")
    return pl_module


class PartCallback(Callback):
    """A callback that looks after one part of a run, see `Task.parts`."""

    part: str = ""
    """Its folder below the output's; empty for the output folder itself."""

    def root(self, trainer: Trainer) -> Path:
        """The folder of the part."""
        return Path(trainer.default_root_dir, self.part)

    def task(self, pl_module: LightningModule) -> Task:
        """What makes the part.

        Raises:
            ValueError: the module is no `Task`.
        """
        return task_of(pl_module).parts[self.part]

    def share(self, pl_module: LightningModule, outputs: Tensor) -> Tensor:
        """The images of the part, (B, R, R, C), of what `predict_step` gives of a batch."""
        parts = list(task_of(pl_module).parts)
        batch = len(outputs) // len(parts)
        return outputs[parts.index(self.part) * batch :][:batch]
