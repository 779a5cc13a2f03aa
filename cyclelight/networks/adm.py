"""The ADM UNet of guided-diffusion (Dhariwal and Nichol 2021): the network of the AFHQ models.

Names and shapes of the tensors are those of guided-diffusion's checkpoints, and so are the names of
the settings. Two things are settled when a checkpoint is imported (`domains/adapters/adm.py`) and
do not appear here: the order of queries, keys and values, and the label of a class.
"""

from dataclasses import asdict, dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from cyclelight.networks.adm_parts import Block, Parts, norm, start_at_zero, timestep_embedding


@dataclass(frozen=True)
class ADMSettings:
    """The shape of an ADM UNet; the defaults are the 93.6 M network of AFHQ 256.

    Args:
        num_channels: channels that `channel_mult` multiplies.
        channel_mult: channels at each resolution, from the finest; each level halves it.
        num_res_blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention_resolutions: the resolutions, in pixels, that get self-attention; the middle of
            the network always does.
        num_heads: heads of each attention; only where `num_head_channels` is -1.
        num_head_channels: channels of a head, or -1 for a fixed number of heads.
        num_heads_upsample: heads on the way up, or -1 for as many as on the way down.
        use_scale_shift_norm: the timestep scales and shifts the second norm of a block, instead of
            being added before it.
        resblock_updown: halve and double the resolution inside residual blocks.
        dropout: probability, in [0, 1).
        learn_sigma: output a learned range of the variance too (Nichol and Dhariwal 2021).
    """

    num_channels: int = 128
    channel_mult: tuple[float, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 4
    num_head_channels: int = 64
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    dropout: float = 0.0
    learn_sigma: bool = True

    def build(self, *, resolution: int, channels: int) -> "ADMUNet":
        """A freshly initialised network for images of `channels` x `resolution` x `resolution`.

        Raises:
            ValueError: the settings contradict one another; the message names them.
        """
        return ADMUNet(sample_size=resolution, in_channels=channels, **asdict(self))


class ADMUNet(ModelMixin, ConfigMixin):
    """The network itself; a diffusers model, so that it is saved and loaded like one.

    Args:
        sample_size: height and width of the images in pixels.
        in_channels: channels of the images.
        **settings: those of `ADMSettings`.
        timestep_scale: what timesteps are multiplied by; 1000 / T in the networks of
            improved-diffusion, which are trained as if there were 1000 whatever T is.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        num_channels: int = 128,
        channel_mult: tuple[float, ...] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 1,
        attention_resolutions: tuple[int, ...] = (16,),
        num_heads: int = 4,
        num_head_channels: int = 64,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        dropout: float = 0.0,
        learn_sigma: bool = True,
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()
        parts = Parts(self.config)
        self.time_embed = parts.time_embed()
        self.input_blocks, skips = parts.way_down(in_channels)
        c = skips[-1]
        self.middle_block = parts.middle(c)
        self.output_blocks = nn.ModuleList()
        up_heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        for level, (width, size) in reversed(
            [*enumerate(zip(parts.widths, parts.sizes, strict=True))]
        ):
            for i in range(num_res_blocks + 1):
                attends = size in attention_resolutions
                attended = [parts.attention(width, up_heads)] if attends else []
                last = level > 0 and i == num_res_blocks
                up = [parts.resampler(width, "up")] if last else []
                block = parts.block(c + skips.pop(), width)
                self.output_blocks.append(Block(block, *attended, *up))
                c = width
        out_channels = in_channels * (2 if learn_sigma else 1)
        self.out = nn.Sequential(norm(c), nn.SiLU(), nn.Conv2d(c, out_channels, 3, padding=1))
        start_at_zero(self, [self.out[-1]])

    def embed(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedding of training timesteps (B,), of this dtype: (B, 4 num_channels)."""
        scale = self.config.timestep_scale
        scaled = t if scale == 1 else t * scale
        emb: Tensor = self.time_embed(timestep_embedding(scaled, self.config.num_channels, dtype))
        return emb

    def forward(self, sample: Tensor, timestep: Tensor | float) -> UNet2DOutput:
        """The prediction, in `.sample`: (B, C, H, W), or (B, 2 C, H, W) with a learned variance.

        Args:
            sample: noisy images (B, C, H, W).
            timestep: training timesteps, (B,) or one for all.
        """
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        emb = self.embed(t, sample.dtype)
        h, skips = sample, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return UNet2DOutput(sample=self.out(h))
