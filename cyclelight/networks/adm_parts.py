"""What the networks of guided-diffusion are made of (Dhariwal and Nichol 2021).

Names and shapes of the tensors are those of its checkpoints. Attention has its legacy order of
queries, keys and values; a checkpoint in the other is reordered when it is imported.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.errors import BadValue, at_least
from cyclelight.networks.unet import check_attention, check_resolution

GROUPS = 32
"""Groups of every group norm; every number of channels is a multiple of it."""


class Parts:
    """The parts of a network with the settings in `config`, which are checked.

    Args:
        config: those of `ADMSettings`, and `sample_size`.

    Raises:
        ValueError: the settings contradict one another; the message names them.
    """

    def __init__(self, config: Any) -> None:
        self.config, self.embedding = config, 4 * config.num_channels
        self.widths = [int(mult * config.num_channels) for mult in config.channel_mult]
        """Channels at each resolution, from the finest."""
        self.sizes = [config.sample_size >> level for level in range(len(self.widths))]
        """The resolutions, in pixels."""
        _check(config, self.widths, self.sizes)

    def time_embed(self) -> nn.Sequential:
        """What makes an embedding of the timestep's sines."""
        c, embedding = self.config.num_channels, self.embedding
        return nn.Sequential(nn.Linear(c, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

    def block(self, c_in: int, c_out: int, resample: str | None = None) -> "ResBlock":
        """A residual block, which may halve (`down`) or double (`up`) the resolution."""
        return ResBlock(
            c_in,
            c_out,
            self.embedding,
            self.config.dropout,
            scale_shift=self.config.use_scale_shift_norm,
            resample=resample,
        )

    def resampler(self, c: int, kind: str) -> nn.Module:
        """What halves (`down`) or doubles (`up`) the resolution."""
        return self.block(c, c, kind) if self.config.resblock_updown else Resample(c, kind)

    def attention(self, c: int, heads: int | None = None) -> "AttentionBlock":
        """Self-attention with the heads of the settings; `heads` only where they fix the number."""
        per_head = self.config.num_head_channels
        fixed = self.config.num_heads if heads is None else heads
        return AttentionBlock(c, fixed if per_head == -1 else c // per_head)

    def way_down(self, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
        """(the blocks on the way down, the channels that each puts out)."""
        c = self.widths[0]
        made = nn.ModuleList([Block(nn.Conv2d(in_channels, c, 3, padding=1))])
        put_out = [c]
        for level, (width, size) in enumerate(zip(self.widths, self.sizes, strict=True)):
            for _ in range(self.config.num_res_blocks):
                attends = size in self.config.attention_resolutions
                attention = [self.attention(width)] if attends else []
                made.append(Block(self.block(c, width), *attention))
                c = width
                put_out.append(c)
            if level < len(self.widths) - 1:
                made.append(Block(self.resampler(c, "down")))
                put_out.append(c)
        return made, put_out

    def middle(self, c: int) -> "Block":
        """The blocks at the lowest resolution."""
        return Block(self.block(c, c), self.attention(c), self.block(c, c))


def start_at_zero(network: nn.Module, more: Iterable[nn.Module] = ()) -> None:
    """Set the last layer of each block to zero, and `more`: each block begins as the identity."""
    lasts = (m.last for m in network.modules() if isinstance(m, ResBlock | AttentionBlock))
    for layer in chain(more, lasts):
        for weights in layer.parameters():
            nn.init.zeros_(weights)


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
        value = getattr(config, name, -1)
        if name == "num_head_channels" or config.num_head_channels == -1:
            if value < 1 and (value != -1 or name == "num_heads"):
                raise BadValue(name, f"{name} must be at least 1, got {value}")
            indivisible = sorted(w for w in attended if value > 0 and w % value)
            if indivisible:
                raise BadValue(name, f"{name} {value} does not divide the channels {indivisible}")


def norm(channels: int, groups: int = GROUPS) -> nn.GroupNorm:
    """As every norm here is."""
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
        self.in_layers = nn.Sequential(norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, (2 if scale_shift else 1) * c_out)
        )
        last = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.out_layers = nn.Sequential(norm(c_out), nn.SiLU(), nn.Dropout(dropout), last)
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
        self.norm = norm(channels, groups)
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
