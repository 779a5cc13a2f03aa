"""`lightning test`: sample a domain and score the samples."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from cyclelight.callbacks.sample_scores import SampleScores
from cyclelight.commands.lightning_cli import StageCLI, build, show
from cyclelight.modules.autoencoder import AutoencoderModule  # noqa: F401 (for its short name)
from cyclelight.modules.covariance import CovarianceModule  # noqa: F401
from cyclelight.modules.ddgan import DDGANModule  # noqa: F401
from cyclelight.modules.diffae import DiffAEModule  # noqa: F401
from cyclelight.modules.diffae_latent import DiffAELatentModule  # noqa: F401


class Test(StageCLI):
    """The losses on the test images, and samples against those images."""

    name = "test"
    summary = "Sample a domain, score the samples against its validation images, and its loss."
    config_name = "config_test.yaml"
    makes_images = True
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


def test(args: list[str]) -> int:
    """`lightning test`; the exit code."""
    cli = build(Test, args)
    cli.trainer.test(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
    show(cli.scores.report)
    return 0
