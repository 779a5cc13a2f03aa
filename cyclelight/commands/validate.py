"""`lightning validate`: the validation loss."""

from cyclelight.commands.lightning_cli import StageCLI, build
from cyclelight.modules.autoencoder import AutoencoderModule  # noqa: F401 (for its short name)
from cyclelight.modules.covariance import CovarianceModule  # noqa: F401
from cyclelight.modules.ddgan import DDGANModule  # noqa: F401
from cyclelight.modules.diffae import DiffAEModule  # noqa: F401
from cyclelight.modules.diffae_latent import DiffAELatentModule  # noqa: F401


class Validate(StageCLI):
    """The losses on the validation images."""

    name = "validate"
    summary = "Compute the validation loss of a domain's model."
    config_name = "config_validate.yaml"


def validate(args: list[str]) -> int:
    """`lightning validate`; the exit code."""
    cli = build(Validate, args)
    cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
    return 0
