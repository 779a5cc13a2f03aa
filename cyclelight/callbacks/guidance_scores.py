"""What guidance has brought: energies, success by another judge, diversity, calls and seconds."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cyclelight.callbacks.scores import TaskScores
from cyclelight.callbacks.traces import Guides, TraceFolder
from cyclelight.errors import BadValue, MissingFile, one_of
from cyclelight.metrics.feature_network import FeatureNetwork
from cyclelight.metrics.features import feature_network
from cyclelight.metrics.figure_kinds import Score
from cyclelight.metrics.success import (
    classified_as,
    diversity,
    features,
    nearest_in_pixels,
    nearest_to,
)
from cyclelight.runs.plan import plan_of
from cyclelight.runs.task import Task, task_of
from datamodules.listing import list_images
from datamodules.square_images import SquareImages

log = logging.getLogger(__name__)

JudgeBy = Literal["features", "pixels"]
Dated = tuple[tuple[str, Path, int], ...]
"""Images by key, path, and when they were written."""


class GuidanceScores(TaskScores):
    """The figures of `predict`, and those of a run of `guide`, each before and after.

    Args:
        judge: network that judges success and diversity, other than the one that guides: its name
            or import path, see `network`. Success is that it names one of `judge_classes`, or that
            the nearest image of `judge_images` is called as one of `judge_names`. None for no
            diversity, and no success but by pixels.
        judge_weights: file of its weights, if it lies in no usual place.
        judge_classes: numbers of the classes that are wanted.
        judge_images: folder of real images, of which the nearest one judges.
        judge_names: names (without suffix) of those that are wanted, or patterns of such, as
            `cat_*` or `1f49[3-9a-f]`.
        judge_by: what the nearest is found by: the judge's `features`, or `pixels` (L2), as for
            drawings, of which networks trained on photographs know little.
        scores: see `TaskScores`.

    Raises:
        ValueError: these do not fit together.
        FileNotFoundError: `judge_images` does not exist.
    """

    def __init__(
        self,
        judge: str | None = None,
        judge_weights: str | None = None,
        judge_classes: list[int] | None = None,
        judge_images: str | None = None,
        judge_names: list[str] | None = None,
        judge_by: JudgeBy = "features",
        **scores: Any,
    ) -> None:
        super().__init__(**scores)
        one_of(get_args(JudgeBy), judge_by=judge_by)
        if judge_by == "pixels" and judge_images is None:
            raise BadValue("judge_by", "judge_by: pixels are those of judge_images: give these")
        if judge is None and (judge_classes or (judge_images and judge_by == "features")):
            raise BadValue("judge", "judge: name the network that is to judge")
        if (judge_images is None) != (not judge_names):
            raise BadValue("judge_names", "judge_names and judge_images go together")
        if judge_classes and judge_images:
            raise BadValue("judge_classes", "judge_classes: give these or judge_images, not both")
        if judge_images is not None and not Path(judge_images).is_dir():
            raise MissingFile("judge_images", f"judge_images: no such folder {judge_images}")
        self.judge_name, self.judge_weights = judge, judge_weights
        self.judge_classes, self.judge_by = judge_classes, judge_by
        self._known_files, self._wanted = _wanted_of(judge_images, judge_names or [])
        self._network: FeatureNetwork | None = None
        self._succeeds: Callable[[Tensor], Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the judge: should it be missing, then before the run, not after it."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict" or not trainer.is_global_zero:
            return
        if self.judge_name is not None:
            self._network = _judge(self.judge_name, self.judge_weights)
            if self._guides(pl_module):
                log.warning(
                    "%s guides, too: that it is pleased says little; take another --scores.judge",
                    self.judge_name,
                )
        self._succeeds = self._success(task_of(pl_module))

    def _success(self, task: Task) -> Callable[[Tensor], Tensor] | None:
        known = (self._dated(), task.resolution, task.channels)
        if self.judge_by == "pixels":
            return nearest_in_pixels(_pixels(*known), self._wanted)
        if self._network is None:
            return None
        if self.judge_classes:
            return classified_as(self._network, self.judge_classes)
        if self._known_files:
            rows = _rows(self._network, *known)
            return nearest_to(self._network, rows, self._wanted)
        return None

    def _dated(self) -> Dated:
        return tuple((key, path, path.stat().st_mtime_ns) for key, path in self._known_files)

    def _guides(self, module: LightningModule) -> bool:
        return isinstance(module, Guides) and self.judge_name in module.networks

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add what the traces of all images tell, on the first process."""
        super().on_predict_end(trainer, pl_module)
        plan = plan_of(trainer)
        if self.report is None or plan is None or not isinstance(pl_module, Guides):
            return
        root = Path(trainer.default_root_dir)
        folder = TraceFolder(root, plan.keys)
        traces = folder.read()
        scores = [*_of_traces(list(traces.values()), pl_module.calls)]
        if (self._network or self._succeeds) and traces:
            task = task_of(pl_module)
            shape = (task.resolution, task.channels)
            before = torch.stack([folder.start(key) for key in traces])
            after = torch.stack([plan.folder.read_image(key, *shape) for key in traces])
            scores += self._judged(before, after, self._guides(pl_module))
        self.report = replace(self.report, scores=[*self.report.scores, *scores])
        self.report.write(root)

    def _judged(self, before: Tensor, after: Tensor, guides: bool) -> Iterator[Score]:
        n = len(after)
        network = self._network.name if self._network else ""
        protocol = f"judged by {network}{', which guided, too' if guides else ''}"
        by = f"the nearest of {len(self._known_files)} images by L2 on pixels"
        for when, images in (("before", before), ("after", after)):
            if self._succeeds is not None:
                rate = float(self._succeeds(images).float().mean())
                yield Score(
                    figure=f"success {when}",
                    value=rate,
                    standard_error=math.sqrt(rate * (1 - rate) / n),
                    n=n,
                    protocol=f"judged by {by}" if self.judge_by == "pixels" else protocol,
                )
            if n > 1 and self._network is not None:
                value, error = diversity(features(self._network, images))
                yield Score(
                    figure=f"diversity {when}",
                    value=value,
                    standard_error=error,
                    n=n,
                    protocol=f"1 - cosine of features, mean over pairs; {protocol}",
                )


def _wanted_of(folder: str | None, names: Sequence[str]) -> tuple[list[tuple[str, Path]], Tensor]:
    """(the images of a folder, which of them have one of the names, (N,), bool)."""
    files = [] if folder is None else list_images(Path(folder))
    wanted = torch.zeros(len(files), dtype=torch.bool)
    for name in names:
        stems = [Path(key).stem for key, _ in files]
        called = torch.tensor([stem == name or fnmatchcase(stem, name) for stem in stems])
        if not bool(called.any()):
            raise BadValue("judge_names", f"judge_names: there is no {name} in {folder}")
        wanted |= called
    return files, wanted


@lru_cache(maxsize=1)
def _judge(name: str, weights: str | None) -> FeatureNetwork:
    return feature_network(name, weights)


@lru_cache(maxsize=1)
def _pixels(files: Dated, resolution: int, channels: int) -> Tensor:
    """Real images, uint8 (N, H, W, C)."""
    images = SquareImages([(key, path) for key, path, _ in files], resolution, channels=channels)
    return torch.stack([images.pixels(i) for i in range(len(files))])


@lru_cache(maxsize=1)  # Minutes, for thousands of images; one for all runs of a comparison.
def _rows(network: FeatureNetwork, files: Dated, resolution: int, channels: int) -> Tensor:
    """What a judge says of real images, (N, D)."""
    log.info("%s looks at %d images to know the nearest by", network.name, len(files))
    return features(network, _pixels(files, resolution, channels))


def _of_traces(traces: Sequence[Mapping[str, Any]], calls: int) -> Iterator[Score]:
    if not traces:
        return
    for name in traces[0]["energies"]:
        for when in ("before", "after"):
            values = [trace[when][name] for trace in traces]
            yield _mean(f"{name} energy {when}", values, "unweighted, mean over images")
    yield _mean("restarts", [t["restarts"] for t in traces], "chains that began anew")
    yield _mean("seconds", [t["seconds"] for t in traces], "of an image's share of its batch")
    yield _mean("calls", [calls] * len(traces), "of the generator's networks, forwards")


def _mean(figure: str, values: Sequence[float], protocol: str) -> Score:
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values)
    return Score(
        figure=figure,
        value=mean,
        standard_error=math.sqrt(spread / (n - 1) / n) if n > 1 else None,
        n=n,
        protocol=protocol,
        higher_is_better=False,
    )
