"""The pixel-space UNet: diffusers' UNet2DModel from a handful of settings."""

from dataclasses import dataclass
from itertools import compress

from diffusers import UNet2DModel

from cyclelight.errors import BadValue


@dataclass(frozen=True)
class UNetSettings:
    """The shape of a UNet.

    Args:
        block_out_channels: channels at each resolution, from the finest; each level halves it.
        layers_per_block: residual blocks at each resolution on the way down; one more on the way
            up.
        attention_resolutions: the resolutions, in pixels, that get self-attention.
        head_channels: channels of one attention head.
        norm_groups: groups of the group norm; divides every number of channels.
        dropout: probability, in [0, 1).
        learned_variance: output a learned range of the variance too (Nichol and Dhariwal 2021).
    """

    block_out_channels: tuple[int, ...] = (64, 128, 192, 256)
    layers_per_block: int = 2
    attention_resolutions: tuple[int, ...] = (8, 16)
    head_channels: int = 32
    norm_groups: int = 16
    dropout: float = 0.0
    learned_variance: bool = False

    def build(self, *, resolution: int, channels: int) -> UNet2DModel:
        """A freshly initialised network for images of `channels` x `resolution` x `resolution`.

        Raises:
            ValueError: the resolution cannot be halved that often, or a number of channels is not a
                multiple of `norm_groups` or `head_channels` where it must be.
        """
        levels = [resolution >> i for i in range(len(self.block_out_channels))]
        _check_resolution(resolution, len(levels))
        if any(width % self.norm_groups for width in self.block_out_channels):
            raise BadValue(
                "block_out_channels",
                f"block_out_channels must be multiples of norm_groups = {self.norm_groups}, "
                f"got {self.block_out_channels}",
            )
        unknown = set(self.attention_resolutions) - set(levels)
        if unknown:
            raise BadValue(
                "attention_resolutions",
                f"attention_resolutions must be among {levels}, got {sorted(unknown)} besides",
            )
        attended = [level in self.attention_resolutions for level in levels]
        # The middle of the network, as wide as the last level, attends always.
        attends = [*attended[:-1], True]
        widths = compress(self.block_out_channels, attends)
        if any(width % self.head_channels for width in widths):
            raise BadValue(
                "block_out_channels",
                f"block_out_channels must be multiples of head_channels = {self.head_channels} at "
                f"attention_resolutions and in the last place, got {self.block_out_channels}",
            )
        return UNet2DModel(
            sample_size=resolution,
            in_channels=channels,
            out_channels=channels * (2 if self.learned_variance else 1),
            block_out_channels=tuple(self.block_out_channels),
            layers_per_block=self.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
            attention_head_dim=self.head_channels,
            norm_num_groups=self.norm_groups,
            norm_eps=1e-5,
            dropout=self.dropout,
            # Scale and shift from the time embedding, as in ADM (Dhariwal and Nichol 2021).
            resnet_time_scale_shift="scale_shift",
        )


def _check_resolution(resolution: int, levels: int) -> None:
    halvings = levels - 1
    if resolution % 2**halvings:
        raise BadValue(
            "resolution",
            f"resolution must be a multiple of {2**halvings} for {levels} levels of "
            f"block_out_channels, got {resolution}",
        )
