"""guided-diffusion's classifier of noisy images (Dhariwal and Nichol 2021, sec. 4): half a UNet.

EGSDE's domain-specific extractor is such a network (Zhao et al. 2022, sec. 3.2), of which it uses
the features only. Names and shapes of the tensors are those of guided-diffusion's checkpoints.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.errors import BadValue, at_least, one_of
from cyclelight.networks.adm_parts import Parts, norm, start_at_zero, timestep_embedding

Pool = Literal["attention", "adaptive"]
"""How the feature map becomes logits: by attention over its positions, or by their mean."""


@dataclass(frozen=True)
class ClassifierSettings:
    """The shape of a classifier of noisy images; the defaults are for 64 pixels (1.8 M).

    Args:
        num_channels: channels that `channel_mult` multiplies.
        channel_mult: channels at each resolution, from the finest; each level halves it.
        num_res_blocks: residual blocks at each resolution.
        attention_resolutions: the resolutions, in pixels, that get self-attention; the middle of
            the network always does.
        num_head_channels: channels of a head.
        use_scale_shift_norm: the timestep scales and shifts the second norm of a block, instead of
            being added before it.
        resblock_updown: halve the resolution inside residual blocks.
        dropout: probability, in [0, 1).
        pool: `attention` over the positions of the last features, or `adaptive`, their mean.
    """

    num_channels: int = 32
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] = (8,)
    num_head_channels: int = 32
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    dropout: float = 0.0
    pool: Pool = "attention"

    def build(self, *, resolution: int, channels: int, classes: int) -> "ClassifierUNet":
        """A freshly initialised network for images of `channels` x `resolution` x `resolution`.

        Raises:
            ValueError: the settings contradict one another; the message names them.
        """
        return ClassifierUNet(
            sample_size=resolution, in_channels=channels, num_classes=classes, **asdict(self)
        )


class ClassifierUNet(ModelMixin, ConfigMixin):
    """The network itself; a diffusers model, so that it is saved and loaded like one.

    Args:
        sample_size: height and width of the images in pixels.
        in_channels: channels of the images.
        num_classes: how many classes it tells apart.
        num_heads: heads of each attention; only where `num_head_channels` is -1.
        **settings: those of `ClassifierSettings`.

    Raises:
        ValueError: the settings contradict one another; the message names them.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        num_classes: int = 2,
        num_channels: int = 128,
        channel_mult: tuple[float, ...] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        num_heads: int = 1,
        num_head_channels: int = 64,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        dropout: float = 0.0,
        pool: Pool = "attention",
    ) -> None:
        super().__init__()
        parts = Parts(self.config)
        at_least(2, num_classes=num_classes)
        one_of(("attention", "adaptive"), pool=pool)
        self.time_embed = parts.time_embed()
        self.input_blocks, put_out = parts.way_down(in_channels)
        c = put_out[-1]
        self.middle_block = parts.middle(c)
        self.out: nn.Sequential
        if pool == "attention":
            if num_head_channels == -1:
                raise BadValue(
                    "num_head_channels", "num_head_channels must be given with pool attention"
                )
            heads = AttentionPool(parts.sizes[-1] ** 2, c, c // num_head_channels, num_classes)
            self.out = nn.Sequential(norm(c), nn.SiLU(), heads)
            start_at_zero(self)
        else:
            last = nn.Conv2d(c, num_classes, 1)
            self.out = nn.Sequential(
                norm(c), nn.SiLU(), nn.AdaptiveAvgPool2d(1), last, nn.Flatten()
            )
            start_at_zero(self, [last])

    def forward(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """Logits of the classes (B, num_classes).

        Args:
            sample: noisy images (B, C, R, R).
            timestep: training timesteps, (B,) or one for all.
        """
        logits: Tensor = self.out(self.features(sample, timestep))
        return logits

    def features(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """What the middle of the network puts out: (B, C', H / 2^k, W / 2^k), k + 1 levels.

        The images' sides may be others than those it was trained on.
        """
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        emb = self.time_embed(timestep_embedding(t, self.config.num_channels, sample.dtype))
        h = sample
        for block in self.input_blocks:
            h = block(h, emb)
        h = self.middle_block(h, emb)
        return h


class AttentionPool(nn.Module):
    """One more position, the mean of all, looks at all of them (Radford et al. 2021, sec. 2.4).

    Unlike in the blocks, q, k and v come before the heads along the channels of `qkv_proj`.
    """

    def __init__(self, positions: int, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.heads = heads
        table = torch.randn(channels, positions + 1) / channels**0.5
        self.positional_embedding = nn.Parameter(table)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) => (B, out_channels)."""
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(dim=2, keepdim=True), tokens], dim=2)
        qkv = self.qkv_proj(tokens + self.positional_embedding)
        q, k, v = qkv.unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        pooled: Tensor = self.c_proj(h)[:, :, 0]
        return pooled
