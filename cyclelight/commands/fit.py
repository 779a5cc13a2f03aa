"""`lightning fit`: train the model of a domain, or an autoencoder."""

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cyclelight.callbacks.fit_progress import FitProgress
from cyclelight.callbacks.loss_curve import LossCurve
from cyclelight.callbacks.preemption import Preemption
from cyclelight.callbacks.resumption import Resumption
from cyclelight.commands.guard import UsageError
from cyclelight.commands.lightning_cli import StageCLI, build
from cyclelight.modules.autoencoder import AutoencoderModule  # noqa: F401 (for its short name)
from cyclelight.modules.classifier import DomainClassifierModule  # noqa: F401
from cyclelight.modules.covariance import CovarianceModule  # noqa: F401
from cyclelight.modules.cut import CUTModule  # noqa: F401
from cyclelight.modules.ddgan import DDGANModule  # noqa: F401
from cyclelight.modules.diffae import DiffAEModule  # noqa: F401
from cyclelight.modules.diffae_latent import DiffAELatentModule  # noqa: F401
from cyclelight.modules.distillation import DistillationModule  # noqa: F401
from cyclelight.modules.training import TrainingModule
from cyclelight.runs.checkpoints import newest_checkpoint
from cyclelight.runs.fit_folder import CHECKPOINTS, StartOver, check_unused, is_within
from cyclelight.runs.folder import sole_use

log = logging.getLogger(__name__)


class Fit(StageCLI):
    """Training: logs in `logs/`, checkpoints in `checkpoints/` of the output folder."""

    name = "fit"
    summary = "Train the diffusion model of one image domain, or an autoencoder."
    output_required = True
    checkpoint_words = (None, "last")
    shards = True
    resumes = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What to do with an earlier fit in the folder."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="Start over in a folder that holds a fit: its checkpoints are removed when the "
            "training begins, what it has made is replaced when the new one is whole.",
        )

    def before_instantiate_classes(self) -> None:
        """Whether this fit is new, goes on, starts over, or is none that would leave anything."""
        super().before_instantiate_classes()
        # Whether anything is kept is for `check_unused` to say; Lightning would warn of any folder.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
        # Modules with optimizers of their own are saved after their steps, as wanted.
        manual = "Using ModelCheckpoint with manual optimization and every_n_train_steps"
        warnings.filterwarnings("ignore", message=manual)
        # For this once, and no option of the stages that read a fit's configuration.
        self.overwrite = self.config.pop("overwrite")
        self.is_dry = bool(self.config.trainer.fast_dev_run)
        if self.config.trainer.limit_train_batches == 0:
            raise UsageError("--trainer.limit_train_batches: 0 leaves nothing to train on")
        path = self.config.ckpt_path
        if path == "last":
            self.resumes, self.config.ckpt_path = True, None
        if self.is_dry and self.config.ckpt_path:
            raise UsageError(
                "--trainer.fast_dev_run tries the beginning of a fit: leave --ckpt_path out"
            )
        if self.overwrite and path and (self.resumes or is_within(Path(path), self.root)):
            raise UsageError("--overwrite starts over, --ckpt_path goes on: take one of the two")

    @property
    def root(self) -> Path:
        """The output folder."""
        return Path(self.config.output)

    def checkpoint(self) -> str | None:
        """Where to go on from, if anywhere. Asked when no other run can write in the folder.

        Raises:
            ValueError: an earlier fit would be destroyed.
        """
        if self.is_dry:
            return None
        path: str | None = self.config.ckpt_path
        folder = self.root / CHECKPOINTS
        newest = newest_checkpoint(folder) if self.resumes else path and Path(path)
        if not (self.overwrite or (newest and is_within(newest, self.root))):
            model, product = self.model, None
            if isinstance(model, TrainingModule):
                product = Path(model.product, model.mark[1])
            check_unused(self.root, product, resumes=self.resumes)
        if newest is None and self.resumes:
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
        self.trainer_defaults["callbacks"] = [Resumption(), LossCurve()]
        # The first line of `FitProgress` says what there is to say.
        kwargs["enable_model_summary"] = bool(settings.enable_model_summary)
        own = any(isinstance(callback, ProgressBar) for callback in settings.callbacks or ())
        if settings.enable_progress_bar is not False and not own:
            self.trainer_defaults["callbacks"] += [FitProgress()]
        if self.overwrite and not self.is_dry:
            self.trainer_defaults["callbacks"] += [StartOver(output)]
        if kwargs["enable_checkpointing"] and not self.is_dry:
            checkpoint = {**self.config_init.checkpoint, "dirpath": output / CHECKPOINTS}
            preemption = Preemption(output / CHECKPOINTS / "last.ckpt")
            self.trainer_defaults["callbacks"] += [ModelCheckpoint(**checkpoint), preemption]
        if not settings.plugins and SLURMEnvironment.detect():
            # Lightning's own handler under SLURM saves within the signal, amid a step.
            kwargs["plugins"] = [SLURMEnvironment(auto_requeue=False)]
        return super().instantiate_trainer(**kwargs)


def fit(args: list[str]) -> int:
    """`lightning fit`; the exit code."""
    cli = build(Fit, args)
    with ExitStack() as stack:
        try:
            if cli.trainer.is_global_zero and not cli.is_dry:
                stack.enter_context(sole_use(cli.root))
            checkpoint = cli.checkpoint()
        except ValueError as error:
            raise UsageError(str(error)) from error
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint)
    if cli.is_dry and cli.trainer.is_global_zero:
        log.info("A dry run (trainer.fast_dev_run): nothing was written to %s.", cli.root)
    return 0
