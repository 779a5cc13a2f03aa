"""Figures of samples of a domain, in `test`."""

from copy import deepcopy
from dataclasses import replace

from lightning.pytorch import Callback, LightningModule, Trainer

from cyclelight.callbacks.samples import domain_of
from cyclelight.callbacks.scores import look_at_share, share
from cyclelight.chains.engine import Engine
from cyclelight.chains.sample import sample
from cyclelight.chains.source import check_eta
from cyclelight.diffusion.pixels import to_uint8
from cyclelight.errors import BadValue, at_least
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.figures import classes_of
from cyclelight.metrics.gather import gather
from cyclelight.metrics.judge import Judge
from cyclelight.metrics.protocol import protocol_of
from cyclelight.metrics.realism import IMAGENET_CLASSES
from cyclelight.runs.folder import RunFolder
from cyclelight.runs.report import Report
from datamodules import DomainData
from datamodules.order import groups_of


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
