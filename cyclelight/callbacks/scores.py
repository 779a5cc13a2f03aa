"""Figures of a run: how real and how faithful its images are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from cyclelight.callbacks.texts import check_texts, load_clip, load_dino, warn_of_texts
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.figures import classes_of
from cyclelight.metrics.gather import agree, gather
from cyclelight.metrics.judge import Judge, PerImage
from cyclelight.metrics.protocol import protocol_of
from cyclelight.metrics.realism import IMAGENET_CLASSES
from cyclelight.runs.plan import plan_of
from cyclelight.runs.report import Report, Summary
from cyclelight.runs.task import PartCallback, Task
from datamodules.order import groups_of
from datamodules.predict_data import predict_data
from datamodules.square_images import SquareImages

T = TypeVar("T")

BATCH = 32
"""Reference images that a feature network sees at a time."""


class TaskScores(PartCallback):
    """Measures a `predict` run: `metrics.json`, `metrics.csv` and a table.

    Faithfulness to the source always, and nearness to the right results if the data has these (its
    `truth` and `candidates`); FID and KID if the data has a `reference`; the share of
    images that an ImageNet classifier takes for the target, if it has one and the target is a cat,
    dog or wild animal, or if `classes` says which. The pixels judged are those that are saved.

    With several processes each keeps what it knows of its own images; the first one gathers that.
    Images that an earlier run finished are read back and judged like the others.

    Args:
        protocol: how FID and KID are taken: default (works offline), cyclediffusion or egsde.
        network: feature network in place of the protocol's: efficientnet-lite0, inception,
            pytorch-fid, clean-fid, or your own as package.module:name.
        weights: file of the network's weights, if it lies in no usual place.
        classes: cat, dog or wild: whose share of the images is told.
        clip: a CLIP, a folder of transformers or a name on the Hugging Face Hub, by which edits are
            judged with their texts, S_CLIP and S_D-CLIP; papers': openai/clip-vit-base-patch32.
        dino: a ViT that DINO has trained, a folder of transformers or a name on the Hugging Face
            Hub, by whose keys the layout is judged, the structure distance; PIE-Bench's:
            facebook/dino-vitb8.
        least_match: a warning names images whose source text fits them less by that CLIP, as
            such edits go wrong. 0.2 is for OpenAI's CLIPs; for `checkpoints/emoji_clip`, 0.6.

    Raises:
        FileNotFoundError: there is no such CLIP.
        ValueError: no such protocol, classes or CLIP.
    """

    def __init__(
        self,
        protocol: str = "default",
        network: str | None = None,
        weights: str | None = None,
        classes: str | None = None,
        clip: str | None = None,
        least_match: float = 0.2,
        dino: str | None = None,
    ) -> None:
        self.protocol = protocol_of(protocol, network)
        if classes is not None:
            classes_of(classes)
        self.weights, self.classes, self.asked = weights, classes, classes is not None
        self.clip = None if clip is None else load_clip(clip)
        self.least_match = least_match
        self.dino = None if dino is None else load_dino(dino)
        self.report: Report | None = None
        """Of the last run; on the first process only."""
        self.make_judge: Callable[..., Judge] = Judge
        self.look_at_reference = look_at_share
        """Both may be shared by several runs against one reference."""
        self._seen = Columns()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the feature network: should it be missing, then before the run, not after it."""
        if stage != "predict":
            return
        data = predict_data(trainer)
        realism = data.reference_of(self.part) is not None or self.classes is not None
        self.judge = self.make_judge(
            self.protocol if realism else None,
            self.weights,
            resolution=self.task(pl_module).resolution,
            sources=data.sources is not None,
            clip=self.clip,
            truth=data.truths is not None,
            candidates=None if data.candidates is None else data.candidates.all_pixels(),
            regions=data.regions is not None,
            dino=self.dino,
        )
        if self.clip is not None:
            check_texts(self.clip, data.loaded)
        agree(self.judge)
        self._seen = Columns()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know by its name what the images show, and go where they are."""
        if self.classes is None and predict_data(trainer).reference_of(self.part) is not None:
            kind = self.task(pl_module).kind
            self.classes = kind if kind in IMAGENET_CLASSES else None
        self.judge.to(pl_module.device)
        self._judge_earlier(trainer, self.task(pl_module))

    def _judge_earlier(self, trainer: Trainer, task: Task) -> None:
        """Judge this process's share of what an earlier run finished, in the very same batches."""
        plan, sources = plan_of(trainer, self.part), predict_data(trainer).sources
        if plan is None:
            return
        folder, keys = plan.folder, plan.keys

        def made(index: int) -> Tensor:
            return folder.read_image(keys[index], task.resolution, task.channels)

        groups = share(plan.batches(done=True), trainer, "earlier images")
        of_sources = sources.pixels if sources is not None else None
        device = trainer.strategy.root_device
        fields = predict_data(trainer).loaded.fields

        def texts(index: int) -> tuple[str, str]:
            own = fields[keys[index]]
            return own["source_text"], own["target_text"]

        told = texts if self.clip is not None else None
        data, regions = predict_data(trainer), predict_data(trainer).regions
        right = None if data.truths is None else data.truths.pixels
        inside = None if regions is None else lambda index: regions[keys[index]]
        self._seen = self.judge.look(groups, keys, made, of_sources, device, told, right, inside)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judge the images of a batch, as the 8-bit pixels that they are saved in."""
        if batch["key"]:
            texts = None if self.clip is None else (batch["source_text"], batch["target_text"])
            data, keys = predict_data(trainer), batch["key"]
            right = inside = None
            if data.truths is not None:
                right = torch.stack([data.truths.pixels_of(key) for key in keys]).to(outputs)
            if data.regions is not None:
                inside = torch.stack([data.regions[key] for key in keys]).to(outputs.device)
            images = self.share(pl_module, outputs)
            judged = self.judge(images, batch.get("image"), texts, right, inside)
            self._seen.add(keys, judged)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the reference, gather, and write the figures."""
        images = predict_data(trainer).reference_of(self.part)
        reference = self.look_at_reference(self.judge, images, trainer)
        everything, real = gather(self._seen), gather(reference)
        if trainer.is_global_zero:
            self._seen = everything  # For the gallery.
            self.report = Report.of(
                everything, real, self.judge, self.protocol, self.classes, asked=self.asked
            )
            self.report.write(self.root(trainer))
            warn_of_texts(self.report.images, self.least_match)

    def per_image(self) -> Mapping[str, Mapping[str, float]]:
        """The figures of each image by its key: of all at the end, until then of this process."""
        return PerImage(self._seen, self.classes)

    def table(self) -> list[Summary]:
        """The figures over all images; none before the end."""
        return self.report.summaries() if self.report is not None else []


def look_at_share(judge: Judge, images: SquareImages | None, trainer: Trainer) -> Columns:
    """This process's share of real images, judged; nothing of None."""
    if images is None:
        return Columns()
    # Whole batches, since the last bits depend on their shape.
    groups = share(groups_of(len(images), BATCH), trainer, "reference")
    device = trainer.strategy.root_device
    return judge.look(groups, images.keys, images.pixels, device=device)


def share(groups: Sequence[T], trainer: Trainer, label: str) -> Iterable[T]:
    """This process's share, with a bar on the first process if the trainer shows one."""
    mine = groups[trainer.global_rank :: trainer.world_size]
    barred = trainer.is_global_zero and trainer.progress_bar_callback is not None
    return tqdm(mine, label, unit="batch", disable=not (barred and mine), leave=False)
