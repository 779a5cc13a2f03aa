"""`lightning predict`: make images, such as translations."""

from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from cyclelight.callbacks.gallery import Gallery
from cyclelight.callbacks.progress import TaskProgress
from cyclelight.callbacks.scores import TaskScores
from cyclelight.callbacks.writer import ImageWriter
from cyclelight.commands.guard import UsageError
from cyclelight.commands.lightning_cli import StageCLI, build, show
from cyclelight.commands.parsing import keep_settings_apart
from cyclelight.commands.same_run import (
    SaveRun,
    alone,
    check_apart,
    check_same_run,
    kept_precision,
)
from cyclelight.methods import import_methods
from cyclelight.methods.base import Method
from cyclelight.metrics.judge import Judge
from cyclelight.modules.translation import TranslationModule
from cyclelight.runs.folder import RunFolder, sole_use
from cyclelight.runs.task import Task, task_of
from datamodules.translation_images import TranslationImages

import_methods()  # For their short names.
keep_settings_apart(Method)


class Predict(StageCLI):
    """Translation: the images go to the output folder one by one, and nothing else is kept."""

    name = "predict"
    summary = "Translate images into another domain."
    default_model: type[LightningModule] = TranslationModule
    default_data: type[LightningDataModule] = TranslationImages
    output_required = True
    takes_checkpoint = False
    save_config = SaveRun
    makes_images = True
    scores: list[TaskScores]
    scores_class: ClassVar[type[TaskScores]] = TaskScores

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """How to score, and what to do with an earlier run's images."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(self.scores_class, "scores", instantiate=False)
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

    def kept_precision(self) -> str | None:
        if self.config.overwrite:
            return None
        several = isinstance(self.config.model.get("init_args", {}).get("target"), list)
        output = Path(self.config.output)
        folders = sorted(output.iterdir()) if several and output.is_dir() else [output]
        return next(filter(None, map(kept_precision, folders)), None)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With the writer of the images, the figures and the page that shows both."""
        shown = self.config_init.trainer.enable_progress_bar is not False
        bar = [TaskProgress()] if shown else []
        # What is no task is refused when the run begins.
        parts = list(self.model.parts) if isinstance(self.model, Task) else [""]
        writers = [ImageWriter(self.overwrite, part) for part in parts]
        self.scores = [self.scores_class(**self.config_init.scores) for _ in parts]
        share_judge(dict(zip(parts, self.scores, strict=True)))
        shown_by = [Gallery(part=part) for part in parts]
        first = self.more_callbacks()
        self.trainer_defaults["callbacks"] = [*first, *writers, *self.scores, *shown_by, *bar]
        return super().instantiate_trainer(**kwargs)

    def more_callbacks(self) -> list[Callback]:
        """What sees a batch before its images are written; nothing by default."""
        return []

    def tell(self) -> None:
        """Print the figures, on the first process."""
        for scores in self.scores:
            show(scores.report, scores.part)


def share_judge(scores: dict[str, TaskScores]) -> None:
    """Let the figures of several parts be taken by one judge, who looks at the sources once."""

    @cache
    def make_judge(*args: Any, **settings: Any) -> Judge:
        judge = Judge(*args, **settings)
        judge.remembered = {}
        return judge

    for part, measure in scores.items():
        measure.part = part
        if len(scores) > 1:
            measure.make_judge = make_judge


def predict(args: list[str]) -> int:
    """`lightning predict`; the exit code."""
    return run(Predict, args)


def run(stage: type[Predict], args: list[str]) -> int:
    """Make images as a stage does; the exit code."""
    cli = build(stage, args)
    make_images(cli)
    cli.tell()
    return 0


def make_images(cli: Predict) -> None:
    """Run what was built, in its own output folder, or in one of each part below it.

    Raises:
        UsageError: the folder is in use, or holds images that were made otherwise.
    """
    with ExitStack() as stack:
        try:
            for part, task in task_of(cli.model).parts.items():
                config = alone(cli.config, cli.model, part)
                folder = RunFolder(config.output)
                check_apart(cli.datamodule, folder)
                if cli.trainer.is_global_zero:
                    stack.enter_context(sole_use(folder.root))
                if not cli.overwrite:
                    check_same_run(cli.parser, config, task, folder)
        except ValueError as error:
            raise UsageError(str(error)) from error
        cli.trainer.predict(cli.model, cli.datamodule, return_predictions=False)
