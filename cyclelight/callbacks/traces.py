"""The way of each guided image: what its energies were, what it began as.

traces/<key>.json    energies and |z|^2 / d at each step, before and after, restarts, seconds
starts/<key>.png     the image of the first z
ways/<key>.png       the first image, some on the way, the last, side by side
traces.png           energies and |z|^2 / d by step, the means over images
logs/                the same for TensorBoard
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cyclelight.callbacks.plot import plot
from cyclelight.diffusion.pixels import pil_image, to_uint8
from cyclelight.files import atomic, write_json
from cyclelight.guidance.guided import Guided
from cyclelight.runs.folder import output_names
from cyclelight.runs.plan import plan_of

SQUARE = "|z|^2 / d"
"""1 on average for z ~ N(0, I)."""


@runtime_checkable
class Guides(Protocol):
    """A task that guides images."""

    guided: Guided | None
    """What it has made of its last batch."""

    @property
    def names(self) -> list[str]:
        """Of the energies."""

    @property
    def networks(self) -> list[str]:
        """The names of the classifiers that guide."""

    @property
    def calls(self) -> int:
        """Calls of the generator's networks for an image."""


class GuidanceTraces(Callback):
    """Writes what is known of the way of each image, before the image itself is called finished.

    It stands before the writer among the callbacks: an image that a run finds finished has its
    trace, too.
    """

    def __init__(self) -> None:
        self._began = 0.0

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the clock."""
        self._began = time.monotonic()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the traces, the first images and the ways of a batch."""
        keys, plan = batch["key"], plan_of(trainer)
        if not keys or plan is None or not isinstance(pl_module, Guides):
            return
        guided = pl_module.guided
        assert guided is not None
        seconds = (time.monotonic() - self._began) / len(keys)
        folder = TraceFolder(Path(trainer.default_root_dir), plan.keys)
        for index, key in enumerate(keys):
            folder.write(key, guided, index, pl_module.names, seconds)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the means over all images, those of an earlier run included."""
        plan = plan_of(trainer)
        trainer.strategy.barrier()  # All processes have written theirs.
        if not trainer.is_global_zero or plan is None:
            return
        root = Path(trainer.default_root_dir)
        curves = mean_curves(list(TraceFolder(root, plan.keys).read().values()))
        with atomic(root / "traces.png") as temporary:
            plot(curves).save(temporary, format="PNG")
        writer: Any = SummaryWriter(str(root / "logs"))
        for name, values in curves.items():
            for step, value in enumerate(values):
                writer.add_scalar(f"guide/{name.replace('|z|^2 / d', 'z2_over_d')}", value, step)
        writer.close()


class TraceFolder:
    """The traces of a run, by the keys of its images.

    Args:
        root: folder of the run.
        keys: all keys of the run.
    """

    def __init__(self, root: Path, keys: Sequence[str]) -> None:
        self.root, self._names = root, output_names(keys)

    def _path(self, part: str, key: str, suffix: str = ".png") -> Path:
        return (self.root / part / self._names[key]).with_suffix(suffix)

    def write(self, key: str, guided: Guided, i: int, names: Sequence[str], seconds: float) -> None:
        """What is known of image i of a batch; the trace last, which makes it whole."""
        frames = torch.stack([guided.start[i], *guided.way[:, i], guided.end[i]])
        pixels = to_uint8(frames).cpu()
        _save(pixels[0], self._path("starts", key))
        _save(torch.cat(list(pixels), dim=1), self._path("ways", key))
        kept = guided.kept
        write_json(
            self._path("traces", key, ".json"),
            {
                "energies": {n: kept.values[:, k, i].tolist() for k, n in enumerate(names)},
                SQUARE: kept.squares[:, i].tolist(),
                "before": dict(zip(names, guided.before[:, i].tolist(), strict=True)),
                "after": dict(zip(names, guided.after[:, i].tolist(), strict=True)),
                "restarts": int(kept.restarts[i]),
                "seconds": seconds,
            },
        )

    def read(self) -> dict[str, dict[str, Any]]:
        """The traces that are there, by key."""
        paths = {key: self._path("traces", key, ".json") for key in self._names}
        there = {key: path for key, path in paths.items() if path.is_file()}
        return {key: json.loads(path.read_text()) for key, path in there.items()}

    def start(self, key: str) -> Tensor:
        """The first image of a key, uint8 (R, R, 3); of a grey one three equal channels."""
        with Image.open(self._path("starts", key), formats=("PNG",)) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))


def mean_curves(traces: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Energies and |z|^2 / d by step, the means over images."""

    def curves() -> Iterator[tuple[str, list[list[float]]]]:
        for name in traces[0]["energies"]:
            yield name, [trace["energies"][name] for trace in traces]
        yield SQUARE, [trace[SQUARE] for trace in traces]

    return {n: np.mean(values, axis=0).tolist() for n, values in curves()} if traces else {}


def _save(pixels: Tensor, path: Path) -> None:
    with atomic(path) as temporary:
        pil_image(pixels).save(temporary, format="PNG")
