"""fit, validate, test, predict: what each adds to a stage, and how it runs."""

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cyclelight.callbacks.gallery import Gallery
from cyclelight.callbacks.preemption import Preemption
from cyclelight.callbacks.progress import TaskProgress
from cyclelight.callbacks.resumption import Resumption
from cyclelight.callbacks.scores import SampleScores, TaskScores
from cyclelight.callbacks.writer import ImageWriter
from cyclelight.commands.errors import UsageError
from cyclelight.commands.lightning_cli import Stage, build
from cyclelight.commands.same_run import SaveRun, check_apart, check_same_run
from cyclelight.methods import ddcm, edit_friendly, sdedit  # noqa: F401 (for their short names)
from cyclelight.modules.autoencoder import AutoencoderModule  # noqa: F401 (for its short name)
from cyclelight.modules.translation import TranslationModule
from cyclelight.runs.checkpoints import AtomicCheckpoints, newest_checkpoint
from cyclelight.runs.folder import RunFolder, sole_use
from cyclelight.runs.report import Report
from datamodules.translation_images import TranslationImages

log = logging.getLogger(__name__)


class Fit(Stage):
    """Training: logs in `logs/`, checkpoints in `checkpoints/` of the output folder."""

    name = "fit"
    summary = "Train the diffusion model of one image domain, or an autoencoder."
    output_required = True
    checkpoint_words = (None, "last")
    shards = True
    resumes = False

    def before_instantiate_classes(self) -> None:
        """Lightning warns if there are checkpoints already; not when they are resumed."""
        super().before_instantiate_classes()
        if not self.config.ckpt_path:
            return
        warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
        if self.config.ckpt_path == "last":
            self.resumes, self.config.ckpt_path = True, None

    def checkpoint(self) -> str | None:
        """Where to go on from, if anywhere. Asked when no other run can write in the folder."""
        if not self.resumes:
            path: str | None = self.config.ckpt_path
            return path
        folder = Path(self.config.output) / "checkpoints"
        newest = newest_checkpoint(folder)
        if newest is None:
            # Not an error: a job that is submitted again begins the same way each time.
            message = "There is no checkpoint in %s: starting from the beginning."
            rank_zero_only(log.warning)(message, folder)
        return None if newest is None else str(newest)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """TensorBoard in one folder, so that a resumed run continues its curves."""
        output, settings = Path(self.config_init.output), self.config_init.trainer
        if settings.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(output, name="", version="logs")
        kwargs["enable_checkpointing"] = settings.enable_checkpointing is not False
        self.trainer_defaults["callbacks"] = [Resumption()]
        if kwargs["enable_checkpointing"]:
            checkpoint = {**self.config_init.checkpoint, "dirpath": output / "checkpoints"}
            preemption = Preemption(output / "checkpoints" / "last.ckpt")
            self.trainer_defaults["callbacks"] += [ModelCheckpoint(**checkpoint), preemption]
        if not settings.plugins:
            # Lightning's own handler under SLURM saves within the signal, amid a step.
            slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
            kwargs["plugins"] = [AtomicCheckpoints(), *slurm]
        return super().instantiate_trainer(**kwargs)


class Validate(Stage):
    """The losses on the validation images."""

    name = "validate"
    summary = "Compute the validation loss of a domain's model."
    config_name = "config_validate.yaml"


class Test(Stage):
    """The losses on the test images, and samples against those images."""

    name = "test"
    summary = "Sample a domain, score the samples against its validation images, and its loss."
    config_name = "config_test.yaml"
    scores: SampleScores

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """How to sample and to score."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(SampleScores, "scores", skip={"folder"}, instantiate=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With the callback that samples."""
        output = self.config_init.output
        self.scores = SampleScores(**self.config_init.scores, folder=output)
        self.trainer_defaults["callbacks"] = [self.scores]
        return super().instantiate_trainer(**kwargs)


class Predict(Stage):
    """Translation: the images go to the output folder one by one, and nothing else is kept."""

    name = "predict"
    summary = "Translate images from one domain into another."
    default_model = TranslationModule
    default_data = TranslationImages
    output_required = True
    takes_checkpoint = False
    save_config = SaveRun
    scores: TaskScores

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """How to score, and what to do with an earlier run's images."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(TaskScores, "scores", instantiate=False)
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="Start over: remove what an earlier run left in the output folder. Without it, "
            "the images that are there already are kept, and only the others are made.",
        )

    def before_instantiate_classes(self) -> None:
        """Overwriting is for this once: the configuration that is kept serves to go on."""
        super().before_instantiate_classes()
        self.overwrite, self.config.overwrite = self.config.overwrite, False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With the writer of the images, the figures and the page that shows both."""
        shown = self.config_init.trainer.enable_progress_bar is not False
        bar = [TaskProgress()] if shown else []
        writer = ImageWriter(overwrite=self.overwrite)
        self.scores = TaskScores(**self.config_init.scores)
        self.trainer_defaults["callbacks"] = [writer, self.scores, Gallery(), *bar]
        return super().instantiate_trainer(**kwargs)


def fit(args: list[str]) -> int:
    """`lightning fit`; the exit code."""
    cli = build(Fit, args)
    with ExitStack() as stack:
        if cli.trainer.is_global_zero:
            try:
                stack.enter_context(sole_use(Path(cli.config.output)))
            except ValueError as error:
                raise UsageError(str(error)) from error
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.checkpoint())
    return 0


def validate(args: list[str]) -> int:
    """`lightning validate`; the exit code."""
    cli = build(Validate, args)
    cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
    return 0


def test(args: list[str]) -> int:
    """`lightning test`; the exit code."""
    cli = build(Test, args)
    cli.trainer.test(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
    _show(cli.scores.report)
    return 0


def predict(args: list[str]) -> int:
    """`lightning predict`; the exit code."""
    cli = build(Predict, args)
    with ExitStack() as stack:
        try:
            folder = RunFolder(cli.config.output)
            check_apart(cli.datamodule, folder)
            if cli.trainer.is_global_zero:
                stack.enter_context(sole_use(folder.root))
            if not cli.overwrite:
                check_same_run(cli, folder)
        except ValueError as error:
            raise UsageError(str(error)) from error
        cli.trainer.predict(cli.model, cli.datamodule, return_predictions=False)
    _show(cli.scores.report)
    return 0


def _show(report: Report | None) -> None:
    """The table, on the first process."""
    if report is not None and report.scores:
        print(report)
