"""The generator of a denoising diffusion GAN (Xiao, Kreis and Vahdat 2022), and its discriminator.

The generator is the NCSN++ of Song et al. (2021) with a latent that scales and shifts its group
norms. Names and shapes of its tensors are those of the published checkpoints; what these number is
numbered here alike.
"""

from dataclasses import asdict, dataclass
from math import log, sqrt

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.errors import at_least
from cyclelight.networks.fir import FIRConv, halved, stretched
from cyclelight.networks.scaled import conv, dense
from cyclelight.networks.unet import check_attention, check_resolution


@dataclass(frozen=True)
class DDGANSettings:
    """The shape of a DDGAN generator.

    Args:
        num_channels: channels that `channel_mult` multiplies.
        channel_mult: channels at each resolution, from the finest; each level halves it.
        num_res_blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention_resolutions: the resolutions, in pixels, that get self-attention; the middle of
            the network always does.
        latent_size: numbers of the latent that each step takes.
        embedding_size: width of the latent's embedding.
        mapping_layers: layers of the latent's embedding after the first.
        dropout: probability, in [0, 1).
        timesteps: steps from noise to image.
        beta_min: rate of the noise at the clean end (`DDGANSchedule`).
        beta_max: rate of the noise at the other end.
    """

    num_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    latent_size: int = 100
    embedding_size: int = 256
    mapping_layers: int = 3
    dropout: float = 0.0
    timesteps: int = 4
    beta_min: float = 0.1
    beta_max: float = 20.0

    def build(self, *, resolution: int, channels: int) -> "DDGANGenerator":
        """A freshly initialised generator of images of `channels` x `resolution` x `resolution`.

        Raises:
            ValueError: the settings contradict one another; the message names them.
        """
        return DDGANGenerator(sample_size=resolution, in_channels=channels, **asdict(self))


class DDGANGenerator(ModelMixin, ConfigMixin):
    """x_0 from a noisy image, its timestep and a latent.

    Args:
        sample_size: height and width of the images in pixels.
        in_channels: channels of the images.
        **settings: those of `DDGANSettings`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        num_channels: int = 64,
        channel_mult: tuple[int, ...] = (1, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (16,),
        latent_size: int = 100,
        embedding_size: int = 256,
        mapping_layers: int = 3,
        dropout: float = 0.0,
        timesteps: int = 4,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
    ) -> None:
        super().__init__()
        at_least(4, num_channels=num_channels)
        at_least(1, num_res_blocks=num_res_blocks, latent_size=latent_size, timesteps=timesteps)
        check_resolution(sample_size, len(channel_mult), "channel_mult")
        sizes = [sample_size >> level for level in range(len(channel_mult))]
        check_attention(attention_resolutions, sizes)
        widths = [num_channels * mult for mult in channel_mult]
        embedding = 4 * num_channels

        def block(c_in: int, c_out: int, resample: str | None = None) -> nn.Module:
            return ResBlock(c_in, c_out, embedding, embedding_size, dropout, resample)

        c = num_channels
        parts: list[nn.Module] = [
            dense(c, embedding),
            dense(embedding, embedding),
            conv(in_channels, c),
        ]
        skips, pyramid, last = [c], in_channels, len(widths) - 1
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            for _ in range(num_res_blocks):
                parts.append(block(c, width))
                c = width
                if size in attention_resolutions:
                    parts.append(Attention(c))
                skips.append(c)
            if level < last:
                parts += [block(c, c, "down"), FIRConv(pyramid, c)]
                pyramid = c
                skips.append(c)
        parts += [block(c, c), Attention(c), block(c, c)]
        for level, (width, size) in reversed([*enumerate(zip(widths, sizes, strict=True))]):
            for _ in range(num_res_blocks + 1):
                parts.append(block(c + skips.pop(), width))
                c = width
            if size in attention_resolutions:
                parts.append(Attention(c))
            if level:
                parts.append(block(c, c, "up"))
        parts += [_norm(c), conv(c, in_channels, scale=0)]
        self.all_modules = nn.ModuleList(parts)
        mapping: list[nn.Module] = [
            PixelNorm(),
            dense(latent_size, embedding_size, "out"),
            nn.SiLU(),
        ]
        for _ in range(mapping_layers):
            mapping += [dense(embedding_size, embedding_size, "out"), nn.SiLU()]
        self.z_transform = nn.Sequential(*mapping)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The clean image, (B, C, H, W) in [-1, 1].

        Args:
            x_t: noisy images (B, C, H, W).
            t: (B,) integers, 0 .. timesteps - 1.
            z: latents (B, latent_size), N(0, I).
        """
        config, parts = self.config, iter(self.all_modules)
        first, second, stem = next(parts), next(parts), next(parts)
        style = self.z_transform(z)
        emb = second(F.silu(first(sine_embedding(t, config.num_channels).to(x_t.dtype))))
        levels, blocks = len(config.channel_mult), config.num_res_blocks
        h, pyramid = stem(x_t), x_t
        skips = [h]
        for level in range(levels):
            for _ in range(blocks):
                h = next(parts)(h, emb, style)
                h = next(parts)(h) if self._attends(h) else h
                skips.append(h)
            if level < levels - 1:
                h = next(parts)(h, emb, style)
                h = pyramid = (next(parts)(pyramid) + h) / sqrt(2)
                skips.append(h)
        h = next(parts)(h, emb, style)
        h = next(parts)(h)
        h = next(parts)(h, emb, style)
        for level in reversed(range(levels)):
            for _ in range(blocks + 1):
                h = next(parts)(torch.cat([h, skips.pop()], dim=1), emb, style)
            h = next(parts)(h) if self._attends(h) else h
            h = next(parts)(h, emb, style) if level else h
        norm, convolution = parts
        return convolution(F.silu(norm(h))).tanh()

    def _attends(self, h: Tensor) -> bool:
        return h.shape[-1] in self.config.attention_resolutions


def sine_embedding(t: Tensor, channels: int) -> Tensor:
    """sin(t w_k), then cos(t w_k), w_k = 10000^(-k / (half - 1)): (B, channels), float64."""
    half = channels // 2
    k = torch.arange(half, dtype=torch.float64, device=t.device)
    angles = t.double()[:, None] * torch.exp(-log(10000) / max(1, half - 1) * k)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6, affine=affine)


class PixelNorm(nn.Module):
    """Latents of root mean square 1."""

    def forward(self, z: Tensor) -> Tensor:
        return z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class StyleNorm(nn.Module):
    """Group norm whose scale and shift come from an embedding; the scale is not 1 + ..."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.norm = _norm(channels, affine=False)
        self.style = dense(style, 2 * channels, "out")
        nn.init.ones_(self.style.bias[:channels])

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
        return scale * self.norm(x) + shift


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the timestep is added between, the latent in the norms."""

    def __init__(
        self, c_in: int, c_out: int, emb: int, style: int, dropout: float, resample: str | None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.GroupNorm_0 = StyleNorm(c_in, style)
        self.Conv_0 = conv(c_in, c_out)
        self.Dense_0 = dense(emb, c_out)
        self.GroupNorm_1 = StyleNorm(c_out, style)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = conv(c_out, c_out, scale=0)  # Each block begins as its skip connection.
        if c_in != c_out or resample:
            self.Conv_2 = conv(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor, style: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x, style))
        if self.resample:
            change = halved if self.resample == "down" else stretched
            h, x = change(h), change(x)
        h = self.Conv_0(h) + self.Dense_0(F.silu(emb))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h, style))))
        x = self.Conv_2(x) if hasattr(self, "Conv_2") else x
        return (x + h) / sqrt(2)


class Mix(nn.Module):
    """A 1 x 1 convolution, its matrix the other way round, as the checkpoints have it."""

    def __init__(self, channels: int, scale: float = 0.1) -> None:
        super().__init__()
        bound = sqrt(3 * scale / channels)
        self.W = nn.Parameter(torch.empty(channels, channels).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) => (B, N, C)."""
        return x @ self.W + self.b


class Attention(nn.Module):
    """Self-attention of one head over all positions, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2 = (Mix(channels) for _ in range(3))
        self.NIN_3 = Mix(channels, scale=1e-10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        q, k, v = self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)
        h = self.NIN_3(F.scaled_dot_product_attention(q, k, v))
        return (x + h.transpose(1, 2).reshape(x.shape)) / sqrt(2)
