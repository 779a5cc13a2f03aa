"""The parts of a diffusion autoencoder: blocks, encoder, conditioned denoiser.

Names and shapes of the tensors are those of the published checkpoints.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from cyclelight.networks.adm_parts import AttentionBlock, resampled, timestep_embedding


@dataclass(frozen=True)
class Shape:
    """What encoder and denoiser have in common; see `DiffAESettings`.

    Args:
        channels: of the images.
        width: `num_channels`.
        blocks: `num_res_blocks`.
        heads: `num_heads`.
        attention: `attention_resolutions`.
        groups: `norm_groups`.
    """

    channels: int
    width: int
    blocks: int
    heads: int
    attention: tuple[int, ...]
    groups: int

    def attend(self, c: int, size: int) -> list[nn.Module]:
        """Self-attention of c channels, if this resolution has any."""
        return [_attention(c, self.heads, self.groups)] if size in self.attention else []


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(groups, channels), channels, eps=1e-5)


def _attention(channels: int, heads: int, groups: int) -> nn.Module:
    return AttentionBlock(channels, heads, min(groups, channels))


class Layers(nn.Sequential):
    """Layers in a row, of which the residual blocks see timestep and code, if there are any."""

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, *given) if isinstance(layer, ResBlock | EncoderBlock) else layer(x)
        return x


class EncoderBlock(nn.Module):
    """Norm, SiLU and convolution, added to its input."""

    def __init__(self, c_in: int, c_out: int, groups: int, resample: str | None = None) -> None:
        super().__init__()
        self.resample = resample
        convolution = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.in_layers = nn.Sequential(_norm(c_in, groups), nn.SiLU(), convolution)
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(what the convolution gives, the input at its resolution)."""
        norm, activation, convolution = self.in_layers
        h = activation(norm(x))
        if self.resample:
            h, x = resampled(h, self.resample), resampled(x, self.resample)
        return convolution(h), x

    def forward(self, x: Tensor) -> Tensor:
        h, x = self.first(x)
        y: Tensor = self.skip_connection(x) + h
        return y


class ResBlock(EncoderBlock):
    """Two convolutions; the timestep scales and shifts between them, the code scales."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        groups: int,
        emb: int,
        dropout: float,
        resample: str | None = None,
    ) -> None:
        super().__init__(c_in, c_out, groups, resample)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * c_out))
        self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, c_out))
        last = nn.Conv2d(c_out, c_out, 3, padding=1)
        nn.init.zeros_(last.weight)  # So that each block begins as its skip connection.
        self.out_layers = nn.Sequential(_norm(c_out, groups), nn.SiLU(), nn.Dropout(dropout), last)

    def forward(self, x: Tensor, emb: Tensor, code: Tensor) -> Tensor:  # type: ignore[override]
        h, x = self.first(x)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = (norm(h) * (1 + scale) + shift) * (1 + self.cond_emb_layers(code)[:, :, None, None])
        for layer in rest:
            h = layer(h)
        y: Tensor = self.skip_connection(x) + h
        return y


class Encoder(nn.Module):
    """The semantic code of an image: (B, C, H, W) in [-1, 1] => (B, code_size)."""

    def __init__(self, size: int, mult: tuple[int, ...], code_size: int, shape: Shape) -> None:
        super().__init__()
        c, width, groups = shape.width, shape.width, shape.groups
        layers = [Layers(nn.Conv2d(shape.channels, c, 3, padding=1))]
        for level, m in enumerate(mult):
            for _ in range(shape.blocks):
                attends = shape.attend(m * width, size)
                layers.append(Layers(EncoderBlock(c, m * width, groups), *attends))
                c = m * width
            if level < len(mult) - 1:
                layers.append(Layers(EncoderBlock(c, c, groups, "down")))
                size //= 2
        self.input_blocks = nn.ModuleList(layers)
        first, last = EncoderBlock(c, c, groups), EncoderBlock(c, c, groups)
        self.middle_block = Layers(first, _attention(c, shape.heads, groups), last)
        pool, code = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, code_size, 1)
        self.out = nn.Sequential(_norm(c, groups), nn.SiLU(), pool, code)

    def forward(self, x: Tensor) -> Tensor:
        for block in chain(self.input_blocks, [self.middle_block]):
            x = block(x)
        return self.out(x).flatten(1)


class ConditionedUNet(nn.Module):
    """The noise in x_t, given the timestep and a semantic code: (x_t, t, code) => (B, C, H, W)."""

    def __init__(
        self, size: int, mult: tuple[int, ...], code_size: int, dropout: float, shape: Shape
    ) -> None:
        super().__init__()
        self.width = width = shape.width
        self.time_embed = nn.Sequential(
            nn.Linear(width, code_size), nn.SiLU(), nn.Linear(code_size, code_size)
        )

        def block(c_in: int, c_out: int, resample: str | None = None) -> ResBlock:
            return ResBlock(c_in, c_out, shape.groups, code_size, dropout, resample)

        c, skips = width, [width]
        layers = [Layers(nn.Conv2d(shape.channels, c, 3, padding=1))]
        for level, m in enumerate(mult):
            for _ in range(shape.blocks):
                layers.append(Layers(block(c, m * width), *shape.attend(m * width, size >> level)))
                c = m * width
                skips.append(c)
            if level < len(mult) - 1:
                layers.append(Layers(block(c, c, "down")))
                skips.append(c)
        self.input_blocks = nn.ModuleList(layers)
        middle = _attention(c, shape.heads, shape.groups)
        self.middle_block = Layers(block(c, c), middle, block(c, c))
        layers = []
        for level, m in reversed([*enumerate(mult)]):
            for i in range(shape.blocks + 1):
                parts = [block(c + skips.pop(), m * width), *shape.attend(m * width, size >> level)]
                c = m * width
                up = [block(c, c, "up")] if level and i == shape.blocks else []
                layers.append(Layers(*parts, *up))
        self.output_blocks = nn.ModuleList(layers)
        last = nn.Conv2d(c, shape.channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.out = nn.Sequential(_norm(c, shape.groups), nn.SiLU(), last)

    def forward(self, x_t: Tensor, t: Tensor, code: Tensor) -> Tensor:
        emb = self.time_embed(timestep_embedding(t, self.width, x_t.dtype))
        h, skips = x_t, []
        for block in self.input_blocks:
            h = block(h, emb, code)
            skips.append(h)
        h = self.middle_block(h, emb, code)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, code)
        eps: Tensor = self.out(h)
        return eps
