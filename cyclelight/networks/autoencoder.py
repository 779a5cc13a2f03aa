"""The autoencoder of a latent space: diffusers' AutoencoderKL from a handful of settings."""

from dataclasses import dataclass

from diffusers import AutoencoderKL

from cyclelight.errors import BadValue


@dataclass(frozen=True)
class AutoencoderSettings:
    """The shape of an autoencoder.

    Args:
        block_out_channels: channels at each resolution, from the finest; each level but the last
            halves it, so that three levels make latents of a quarter of the side.
        layers_per_block: residual blocks at each resolution of the encoder; one more in the
            decoder.
        latent_channels: channels of the latents.
        norm_groups: groups of the group norm; divides every number of channels.
    """

    block_out_channels: tuple[int, ...] = (64, 128, 256)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_groups: int = 16


def build_autoencoder(
    settings: AutoencoderSettings, *, resolution: int, channels: int
) -> AutoencoderKL:
    """A freshly initialised autoencoder for images of `channels` x `resolution` x `resolution`.

    Raises:
        ValueError: the resolution cannot be halved that often, or a number of channels is not a
            multiple of `norm_groups`.
    """
    levels = len(settings.block_out_channels)
    if resolution % 2 ** (levels - 1):
        raise BadValue(
            "resolution",
            f"resolution must be a multiple of {2 ** (levels - 1)} for {levels} levels of "
            f"block_out_channels, got {resolution}",
        )
    if any(width % settings.norm_groups for width in settings.block_out_channels):
        raise ValueError(
            f"block_out_channels must be multiples of norm_groups = {settings.norm_groups}, "
            f"got {settings.block_out_channels}"
        )
    return AutoencoderKL(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(settings.block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_groups,
        # What latents are multiplied by: measured after the training.
        scaling_factor=1.0,
    )
