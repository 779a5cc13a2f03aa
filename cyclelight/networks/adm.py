"""The ADM UNet of guided-diffusion (Dhariwal and Nichol 2021): the network of the AFHQ models.

Names and shapes of the tensors are those of guided-diffusion's checkpoints, and so are the names of
the settings. Two things are settled when a checkpoint is imported (`domains/adapters/adm.py`) and
do not appear here: the order of queries, keys and values, and the label of a class.
"""

from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.errors import BadValue, at_least
from cyclelight.networks.unet import check_attention, check_resolution

GROUPS = 32
"""Groups of every group norm; every number of channels is a multiple of it."""


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
    ) -> None:
        super().__init__()
        widths = [int(mult * num_channels) for mult in channel_mult]
        sizes = [sample_size >> level for level in range(len(widths))]
        _check(self.config, widths, sizes)
        embedding = 4 * num_channels
        self.time_embed = nn.Sequential(
            nn.Linear(num_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )

        def block(c_in: int, c_out: int, resample: str | None = None) -> ResBlock:
            return ResBlock(
                c_in, c_out, embedding, dropout, scale_shift=use_scale_shift_norm, resample=resample
            )

        def resampler(c: int, kind: str) -> nn.Module:
            return block(c, c, kind) if resblock_updown else Resample(c, kind)

        def attention(c: int, heads: int = num_heads) -> AttentionBlock:
            return AttentionBlock(c, heads if num_head_channels == -1 else c // num_head_channels)

        c = widths[0]
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(in_channels, c, 3, padding=1))])
        skips = [c]
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            for _ in range(num_res_blocks):
                attended = [attention(width)] if size in attention_resolutions else []
                self.input_blocks.append(Block(block(c, width), *attended))
                c = width
                skips.append(c)
            if level < len(widths) - 1:
                self.input_blocks.append(Block(resampler(c, "down")))
                skips.append(c)
        self.middle_block = Block(block(c, c), attention(c), block(c, c))
        self.output_blocks = nn.ModuleList()
        up_heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        for level, (width, size) in reversed([*enumerate(zip(widths, sizes, strict=True))]):
            for i in range(num_res_blocks + 1):
                attended = [attention(width, up_heads)] if size in attention_resolutions else []
                last = level > 0 and i == num_res_blocks
                up = [resampler(width, "up")] if last else []
                self.output_blocks.append(Block(block(c + skips.pop(), width), *attended, *up))
                c = width
        out_channels = in_channels * (2 if learn_sigma else 1)
        self.out = nn.Sequential(_norm(c), nn.SiLU(), nn.Conv2d(c, out_channels, 3, padding=1))
        # Such layers start at zero, so that each block begins as the identity.
        for layer in chain([self.out[-1]], (m.last for m in self.modules() if hasattr(m, "last"))):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, sample: Tensor, timestep: Tensor | float) -> UNet2DOutput:
        """The prediction, in `.sample`: (B, C, H, W), or (B, 2 C, H, W) with a learned variance.

        Args:
            sample: noisy images (B, C, H, W).
            timestep: training timesteps, (B,) or one for all.
        """
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        emb = self.time_embed(timestep_embedding(t, self.config.num_channels, sample.dtype))
        h, skips = sample, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return UNet2DOutput(sample=self.out(h))


def timestep_embedding(t: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """cos(t w_k), then sin(t w_k), w_k = 10000^(-k / half), k = 0 .. half - 1: (B, channels)."""
    # In float64: at t = 999, the angles of a float32 product are off by 6e-5.
    half = channels // 2
    k = torch.arange(half, dtype=torch.float64, device=t.device)
    angles = t.double()[:, None] * 10000 ** (-k / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2)).to(dtype)


def _check(config: Any, widths: list[int], sizes: list[int]) -> None:
    if not widths or any(width % GROUPS or width < 1 for width in widths):
        raise BadValue(
            "num_channels",
            f"num_channels times channel_mult must give multiples of {GROUPS}, got {widths}",
        )
    check_resolution(config.sample_size, len(widths), "channel_mult")
    check_attention(config.attention_resolutions, sizes)
    at_least(0, num_res_blocks=config.num_res_blocks)
    attended = {w for w, s in zip(widths, sizes, strict=True) if s in config.attention_resolutions}
    # The middle is as wide as the way down ends, which without blocks of its own stays narrow.
    attended.add(widths[-1] if config.num_res_blocks else widths[0])
    for name in ("num_head_channels", "num_heads", "num_heads_upsample"):
        value = getattr(config, name)
        if name == "num_head_channels" or config.num_head_channels == -1:
            if value < 1 and (value != -1 or name == "num_heads"):
                raise BadValue(name, f"{name} must be at least 1, got {value}")
            indivisible = sorted(w for w in attended if value > 0 and w % value)
            if indivisible:
                raise BadValue(name, f"{name} {value} does not divide the channels {indivisible}")


def _norm(channels: int, groups: int = GROUPS) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-5)


class Block(nn.Sequential):
    """Layers in a row, of which the residual blocks see the timestep."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, twice; the timestep enters between."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        dropout: float,
        *,
        scale_shift: bool,
        resample: str | None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, (2 if scale_shift else 1) * c_out)
        )
        last = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.out_layers = nn.Sequential(_norm(c_out), nn.SiLU(), nn.Dropout(dropout), last)
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    @property
    def last(self) -> nn.Module:
        """The layer that starts at zero."""
        return self.out_layers[-1]

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = activation(norm(x))
        if self.resample:
            h, x = resampled(h, self.resample), resampled(x, self.resample)
        h, e = convolution(h), self.emb_layers(emb)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + e)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class Resample(nn.Module):
    """Half or twice the resolution, by a strided convolution or by one after repeating pixels."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        # The names under which guided-diffusion keeps them.
        self.name = "op" if kind == "down" else "conv"
        stride = 2 if kind == "down" else 1
        self.add_module(self.name, nn.Conv2d(channels, channels, 3, stride=stride, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.name == "op" else resampled(x, "up")
        return getattr(self, self.name)(x)


def resampled(x: Tensor, kind: str) -> Tensor:
    """Means of 2 x 2 pixels (`down`), or each pixel four times (`up`)."""
    return F.avg_pool2d(x, 2) if kind == "down" else F.interpolate(x, scale_factor=2.0)


class AttentionBlock(nn.Module):
    """Self-attention over all positions, added to its input.

    Along the channels of `qkv` come the heads, and within each head its q, k and v: what
    guided-diffusion calls the legacy order.
    """

    def __init__(self, channels: int, heads: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    @property
    def last(self) -> nn.Module:
        """The layer that starts at zero."""
        return self.proj_out

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x).flatten(2))
        q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).transpose(-1, -2).unbind(2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        return x + self.proj_out(h).view_as(x)
