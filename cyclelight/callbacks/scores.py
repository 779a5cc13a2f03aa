"""Figures of a run: how real and how faithful its images are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from cyclelight.callbacks.samples import domain_of
from cyclelight.callbacks.texts import check_texts, load_clip, load_dino, warn_of_texts
from cyclelight.chains.engine import Engine
from cyclelight.chains.sample import sample
from cyclelight.chains.source import check_eta
from cyclelight.diffusion.pixels import to_uint8
from cyclelight.errors import BadValue, at_least
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.figures import classes_of
from cyclelight.metrics.gather import agree, gather
from cyclelight.metrics.judge import Judge, PerImage
from cyclelight.metrics.protocol import protocol_of
from cyclelight.metrics.realism import IMAGENET_CLASSES
from cyclelight.runs.folder import RunFolder
from cyclelight.runs.plan import plan_of
from cyclelight.runs.report import Report, Summary
from cyclelight.runs.task import Task, task_of
from datamodules import DomainData
from datamodules.order import groups_of
from datamodules.predict_data import predict_data
from datamodules.square_images import SquareImages

T = TypeVar("T")

BATCH = 32
"""Reference images that a feature network sees at a time."""


class TaskScores(Callback):
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
        resolution = task_of(pl_module).resolution
        data = predict_data(trainer)
        realism = data.reference_images is not None or self.classes is not None
        self.judge = self.make_judge(
            self.protocol if realism else None,
            self.weights,
            resolution=resolution,
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
        if self.classes is None and predict_data(trainer).reference_images is not None:
            kind = task_of(pl_module).kind
            self.classes = kind if kind in IMAGENET_CLASSES else None
        self.judge.to(pl_module.device)
        self._judge_earlier(trainer, task_of(pl_module))

    def _judge_earlier(self, trainer: Trainer, task: Task) -> None:
        """Judge this process's share of what an earlier run finished, in the very same batches."""
        plan, sources = plan_of(trainer), predict_data(trainer).sources
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
            judged = self.judge(outputs, batch.get("image"), texts, right, inside)
            self._seen.add(keys, judged)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the reference, gather, and write the figures."""
        data = predict_data(trainer)
        reference = self.look_at_reference(self.judge, data.reference_images, trainer)
        everything, real = gather(self._seen), gather(reference)
        if trainer.is_global_zero:
            self._seen = everything  # For the gallery.
            self.report = Report.of(
                everything, real, self.judge, self.protocol, self.classes, asked=self.asked
            )
            self.report.write(Path(trainer.default_root_dir))
            warn_of_texts(self.report.images, self.least_match)

    def per_image(self) -> Mapping[str, Mapping[str, float]]:
        """The figures of each image by its key: of all at the end, until then of this process."""
        return PerImage(self._seen, self.classes)

    def table(self) -> list[Summary]:
        """The figures over all images; none before the end."""
        return self.report.summaries() if self.report is not None else []


class SampleScores(Callback):
    """Samples a domain in `test` and scores the samples against its validation images.

    Args:
        samples: how many; 0 for none.
        steps: timesteps of the chain.
        eta: 0 (DDIM) to 1 (DDPM).
        seed: of the samples; the n-th sample depends on this and on n alone.
        batch_size: samples at a time in each process.
        protocol, network, weights: as in `TaskScores`.
        classes: cat, dog or wild: whose share of the samples is told; by default the domain's name.
        folder: where the samples and the figures are written; None for nowhere.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        samples: int = 100,
        steps: int = 100,
        eta: float = 1.0,
        seed: int = 0,
        batch_size: int = 25,
        protocol: str = "default",
        network: str | None = None,
        weights: str | None = None,
        classes: str | None = None,
        folder: str | None = None,
    ) -> None:
        at_least(0, samples=samples)
        at_least(1, steps=steps, batch_size=batch_size)
        check_eta("eta", eta)
        if classes is not None:
            classes_of(classes)
        self.protocol = protocol_of(protocol, network)
        self.samples, self.steps, self.eta, self.seed = samples, steps, eta, seed
        self.batch_size, self.weights = batch_size, weights
        self.classes, self.asked, self.folder = classes, classes is not None, folder
        self.report: Report | None = None
        """Of the last run; on the first process only."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the feature network: should it be missing, then before the run."""
        if stage != "test" or not self.samples:
            return
        domain = domain_of(pl_module)
        if self.steps > domain.schedule.timesteps:
            raise BadValue(
                "steps", f"steps must be at most {domain.schedule.timesteps}, got {self.steps}"
            )
        if self.classes is None and domain.name in IMAGENET_CLASSES:
            self.classes = domain.name
        self.judge = Judge(self.protocol, self.weights, resolution=domain.resolution, sources=False)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, judge, gather and write."""
        if not self.samples:
            return
        data = getattr(trainer, "datamodule", None)
        val_images = data.val_images if isinstance(data, DomainData) else None
        if val_images is None:
            got = type(data).__name__
            raise ValueError(f"test takes a DomainData, such as DomainImages, got {got}")
        self.judge.to(pl_module.device)
        keys = [f"sample_{index:05d}.png" for index in range(self.samples)]
        folder = RunFolder(self.folder, keys) if self.folder is not None else None
        samples, domain, seed = Columns(), domain_of(pl_module), self.seed
        # A copy, since the module's own network is left as it is.
        domain = replace(domain, denoiser=deepcopy(domain.denoiser))
        Engine().speed_up(domain, str(trainer.precision))
        for group in share(groups_of(len(keys), self.batch_size), trainer, "samples"):
            batch = keys[group.start : group.stop]
            drawn = sample(
                domain, len(batch), steps=self.steps, eta=self.eta, seed=seed, keys=batch
            )
            images = to_uint8(drawn)
            for key, image in zip(batch, images, strict=True):
                if folder is not None:
                    folder.write_image(key, image)
            samples.add(batch, self.judge(images))
        reference = look_at_share(self.judge, val_images, trainer)
        everything, real = gather(samples), gather(reference)
        if trainer.is_global_zero:
            self.report = Report.of(
                everything, real, self.judge, self.protocol, self.classes, asked=self.asked
            )
            if folder is not None:
                self.report.write(folder.root)


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
