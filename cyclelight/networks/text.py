"""Networks of small text models: a UNet with cross-attention, a text encoder, a CLIP."""

from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

from cyclelight.errors import BadValue, at_least
from cyclelight.networks.unet import check_attention, check_widths


@dataclass(frozen=True)
class TextEncoderSettings:
    """The shape of a text encoder, a transformer of CLIP's kind.

    Args:
        vocabulary: tokens that it knows.
        length: tokens of a text at most, those that begin and end it among them.
        width: channels.
        layers: layers.
        heads: heads of each attention; divides `width`.
    """

    vocabulary: int = 2048
    length: int = 24
    width: int = 128
    layers: int = 2
    heads: int = 4

    def config(self, projection: int = 512) -> CLIPTextConfig:
        """The configuration of transformers; `projection` is the size of a CLIP's embeddings.

        Raises:
            ValueError: a setting is out of range.
        """
        at_least(1, layers=self.layers, heads=self.heads, width=self.width)
        at_least(3, length=self.length)
        at_least(512, vocabulary=self.vocabulary)  # Two for each byte, and those of the ends.
        check_heads(self.width, self.heads)
        return CLIPTextConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            projection_dim=projection,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.length,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )

    def build(self) -> CLIPTextModel:
        """A freshly initialised text encoder."""
        return CLIPTextModel(self.config())


@dataclass(frozen=True)
class TextUNetSettings:
    """The shape of a UNet that reads a text.

    Args:
        block_out_channels: channels at each resolution, from the finest; each level halves it.
        layers_per_block: residual blocks at each resolution on the way down; one more on the way
            up.
        attention_resolutions: the resolutions, in pixels, that attend to themselves and the text.
        heads: heads of each attention; divides the channels there.
        norm_groups: groups of the group norm; divides every number of channels.
    """

    block_out_channels: tuple[int, ...] = (32, 96, 160)
    layers_per_block: int = 1
    attention_resolutions: tuple[int, ...] = (8,)
    heads: int = 4
    norm_groups: int = 16

    def build(self, *, resolution: int, channels: int, text_width: int) -> UNet2DConditionModel:
        """A freshly initialised network for images of `channels` x `resolution` x `resolution`.

        Raises:
            ValueError: the settings contradict one another; the message names them.
        """
        at_least(1, layers_per_block=self.layers_per_block, heads=self.heads)
        check_widths(self.block_out_channels, self.norm_groups, resolution)
        levels = [resolution >> i for i in range(len(self.block_out_channels))]
        check_attention(self.attention_resolutions, levels)
        attended = [level in self.attention_resolutions for level in levels]
        for width in self.block_out_channels:
            check_heads(width, self.heads)
        down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended]
        up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)]
        return UNet2DConditionModel(
            sample_size=resolution,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(self.block_out_channels),
            layers_per_block=self.layers_per_block,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            cross_attention_dim=text_width,
            attention_head_dim=self.heads,  # Their number, in spite of the name.
            norm_num_groups=self.norm_groups,
            resnet_time_scale_shift="scale_shift",
        )


@dataclass(frozen=True)
class VisionSettings:
    """The shape of the vision transformer of a CLIP.

    Args:
        patch: side of a patch in pixels; divides the resolution.
        width: channels.
        layers: layers.
        heads: heads of each attention; divides `width`.
    """

    patch: int = 4
    width: int = 192
    layers: int = 6
    heads: int = 4


def build_clip(
    vision: VisionSettings, text: TextEncoderSettings, *, resolution: int, projection: int
) -> CLIPModel:
    """A freshly initialised CLIP for images of that resolution, with embeddings of `projection`.

    Raises:
        ValueError: a setting is out of range.
    """
    at_least(1, patch=vision.patch, layers=vision.layers, heads=vision.heads)
    at_least(1, projection=projection)
    check_heads(vision.width, vision.heads)
    if resolution % vision.patch:
        raise BadValue(
            "patch", f"patch must divide the resolution {resolution}, got {vision.patch}"
        )
    config = CLIPVisionConfig(
        image_size=resolution,
        patch_size=vision.patch,
        hidden_size=vision.width,
        intermediate_size=4 * vision.width,
        projection_dim=projection,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
    )
    return CLIPModel(
        CLIPConfig(
            text_config=text.config(projection).to_dict(),
            vision_config=config.to_dict(),
            projection_dim=projection,
        )
    )


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless the heads share the width evenly."""
    if width % heads:
        raise BadValue("heads", f"heads must divide the width {width}, got {heads}")


class Reading(nn.Module):
    """A UNet that has been given its texts: called as (x_t, timesteps), like any other network.

    Args:
        unet: called with `encoder_hidden_states`, too.
        states: what the text encoder makes of one text for each image, (B, L, D).
    """

    def __init__(self, unet: UNet2DConditionModel, states: Tensor) -> None:
        super().__init__()
        self.unet, self.states = unet, states

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction (B, C, H, W) for x_t (B, C, H, W), timesteps (B,)."""
        out: Tensor = self.unet(x_t, timesteps, encoder_hidden_states=self.states).sample
        return out
