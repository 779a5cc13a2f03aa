"""`lightning fit`: train the model of a domain, or an autoencoder."""

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cyclelight.callbacks.preemption import Preemption
from cyclelight.callbacks.resumption import Resumption
from cyclelight.commands.guard import UsageError
from cyclelight.commands.lightning_cli import StageCLI, build
from cyclelight.modules.autoencoder import AutoencoderModule  # noqa: F401 (for its short name)
from cyclelight.modules.covariance import CovarianceModule  # noqa: F401
from cyclelight.modules.ddgan import DDGANModule  # noqa: F401
from cyclelight.modules.diffae import DiffAEModule  # noqa: F401
from cyclelight.modules.diffae_latent import DiffAELatentModule  # noqa: F401
from cyclelight.runs.checkpoints import AtomicCheckpoints, newest_checkpoint
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
