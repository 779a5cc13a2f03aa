"""A diffusion autoencoder (Preechakul et al. 2022): encoder, conditioned denoiser, latent prior.

Names and shapes of the tensors are those of the published checkpoints, but for the prefixes of the
three parts and for weights that are there twice.
"""

from dataclasses import asdict, dataclass
from itertools import chain

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from cyclelight.errors import BadValue, at_least
from cyclelight.networks.adm_parts import AttentionBlock, resampled, timestep_embedding
from cyclelight.networks.latent_prior import LatentPrior
from cyclelight.networks.unet import check_attention, check_resolution


@dataclass(frozen=True)
class DiffAESettings:
    """The shape of a diffusion autoencoder.

    Args:
        num_channels: channels that both multipliers multiply.
        channel_mult: channels of the denoiser at each resolution, from the finest.
        encoder_mult: channels of the encoder at each resolution, from the finest.
        num_res_blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention_resolutions: the resolutions, in pixels, that get self-attention; the middle of
            both networks always does.
        num_heads: heads of each attention.
        code_size: numbers of the semantic code.
        latent_width: width of the latent prior.
        latent_layers: layers of the latent prior; all but the first see its input again.
        latent_time: width of the sines of the latent prior's timestep.
        latent_beta_start: the latent prior's schedule is linear, from this variance
        latent_beta_end: to this one, in 1000 timesteps, as that of the images from 1e-4 to 0.02.
        dropout: probability in the denoiser, in [0, 1).
    """

    num_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 2)
    encoder_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    code_size: int = 128
    latent_width: int = 512
    latent_layers: int = 8
    latent_time: int = 64
    latent_beta_start: float = 1e-4
    latent_beta_end: float = 0.02
    dropout: float = 0.0

    def build(self, *, resolution: int, channels: int) -> "DiffusionAutoencoder":
        """Freshly initialised, for images of `channels` x `resolution` x `resolution`.

        Raises:
            ValueError: the settings contradict one another; the message names them.
        """
        return DiffusionAutoencoder(sample_size=resolution, in_channels=channels, **asdict(self))


class DiffusionAutoencoder(ModelMixin, ConfigMixin):
    """The three networks, and the mean and standard deviation of the codes.

    Args:
        sample_size: height and width of the images in pixels.
        in_channels: channels of the images.
        **settings: those of `DiffAESettings`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        num_channels: int = 64,
        channel_mult: tuple[int, ...] = (1, 2, 2),
        encoder_mult: tuple[int, ...] = (1, 2, 4),
        num_res_blocks: int = 1,
        attention_resolutions: tuple[int, ...] = (16,),
        num_heads: int = 1,
        code_size: int = 128,
        latent_width: int = 512,
        latent_layers: int = 8,
        latent_time: int = 64,
        latent_beta_start: float = 1e-4,
        latent_beta_end: float = 0.02,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(1, num_channels=num_channels, num_res_blocks=num_res_blocks, num_heads=num_heads)
        at_least(1, code_size=code_size, latent_width=latent_width)
        at_least(2, latent_layers=latent_layers, latent_time=latent_time)
        for name, mult in (("channel_mult", channel_mult), ("encoder_mult", encoder_mult)):
            check_resolution(sample_size, len(mult), name)
            widths = [num_channels * m for m in mult]
            # Those of the way up see what comes along and what was kept, together.
            together = [a + b for a in widths for b in widths] if name == "channel_mult" else []
            odd = any(w < 1 or w % min(32, w) for w in (*widths, *together))
            if not widths or odd or any(w % num_heads for w in widths):
                raise BadValue(
                    name,
                    f"{name} times num_channels must give multiples of 32, or sums below 32, and "
                    f"multiples of num_heads {num_heads}, got {widths}",
                )
        sizes = [sample_size >> level for level in range(len(channel_mult))]
        check_attention(attention_resolutions, sizes)
        shape = (in_channels, num_channels, num_res_blocks, num_heads, attention_resolutions)
        self.encoder = Encoder(sample_size, encoder_mult, code_size, *shape)
        self.denoiser = ConditionedUNet(sample_size, channel_mult, code_size, dropout, *shape)
        self.prior = LatentPrior(code_size, latent_width, latent_layers, latent_time)
        self.register_buffer("code_mean", torch.zeros(code_size))
        self.register_buffer("code_std", torch.ones(code_size))

    def forward(self, x_t: Tensor, t: Tensor, code: Tensor) -> Tensor:
        """The noise in x_t, (B, C, H, W).

        Args:
            x_t: noisy images (B, C, H, W).
            t: training timesteps (B,).
            code: semantic codes (B, code_size), as the encoder gives them.
        """
        eps: Tensor = self.denoiser(x_t, t, code)
        return eps


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels, eps=1e-5)


def _attention(channels: int, heads: int) -> nn.Module:
    return AttentionBlock(channels, heads, min(32, channels))


class Layers(nn.Sequential):
    """Layers in a row, of which the residual blocks see timestep and code, if there are any."""

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, *given) if isinstance(layer, ResBlock | EncoderBlock) else layer(x)
        return x


class EncoderBlock(nn.Module):
    """Norm, SiLU and convolution, added to its input."""

    def __init__(self, c_in: int, c_out: int, resample: str | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
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
        self, c_in: int, c_out: int, emb: int, dropout: float, resample: str | None = None
    ) -> None:
        super().__init__(c_in, c_out, resample)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * c_out))
        self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, c_out))
        last = nn.Conv2d(c_out, c_out, 3, padding=1)
        nn.init.zeros_(last.weight)  # So that each block begins as its skip connection.
        self.out_layers = nn.Sequential(_norm(c_out), nn.SiLU(), nn.Dropout(dropout), last)

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

    def __init__(
        self,
        size: int,
        mult: tuple[int, ...],
        code_size: int,
        channels: int,
        width: int,
        blocks: int,
        heads: int,
        attention: tuple[int, ...],
    ) -> None:
        super().__init__()
        c = width
        layers = [Layers(nn.Conv2d(channels, c, 3, padding=1))]
        for level, m in enumerate(mult):
            for _ in range(blocks):
                attends = [_attention(m * width, heads)] if size in attention else []
                layers.append(Layers(EncoderBlock(c, m * width), *attends))
                c = m * width
            if level < len(mult) - 1:
                layers.append(Layers(EncoderBlock(c, c, "down")))
                size //= 2
        self.input_blocks = nn.ModuleList(layers)
        middle = [_attention(c, heads)]
        self.middle_block = Layers(EncoderBlock(c, c), *middle, EncoderBlock(c, c))
        pool, last = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, code_size, 1)
        self.out = nn.Sequential(_norm(c), nn.SiLU(), pool, last)

    def forward(self, x: Tensor) -> Tensor:
        for block in chain(self.input_blocks, [self.middle_block]):
            x = block(x)
        return self.out(x).flatten(1)


class ConditionedUNet(nn.Module):
    """The noise in x_t, given the timestep and a semantic code: (x_t, t, code) => (B, C, H, W)."""

    def __init__(
        self,
        size: int,
        mult: tuple[int, ...],
        code_size: int,
        dropout: float,
        channels: int,
        width: int,
        blocks: int,
        heads: int,
        attention: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.width = width
        self.time_embed = nn.Sequential(
            nn.Linear(width, code_size), nn.SiLU(), nn.Linear(code_size, code_size)
        )

        def block(c_in: int, c_out: int, resample: str | None = None) -> ResBlock:
            return ResBlock(c_in, c_out, code_size, dropout, resample)

        def attend(c: int, size: int) -> list[nn.Module]:
            return [_attention(c, heads)] if size in attention else []

        c, skips = width, [width]
        layers = [Layers(nn.Conv2d(channels, c, 3, padding=1))]
        for level, m in enumerate(mult):
            for _ in range(blocks):
                layers.append(Layers(block(c, m * width), *attend(m * width, size >> level)))
                c = m * width
                skips.append(c)
            if level < len(mult) - 1:
                layers.append(Layers(block(c, c, "down")))
                skips.append(c)
        self.input_blocks = nn.ModuleList(layers)
        self.middle_block = Layers(block(c, c), *[_attention(c, heads)], block(c, c))
        layers = []
        for level, m in reversed([*enumerate(mult)]):
            for i in range(blocks + 1):
                parts = [block(c + skips.pop(), m * width), *attend(m * width, size >> level)]
                c = m * width
                up = [block(c, c, "up")] if level and i == blocks else []
                layers.append(Layers(*parts, *up))
        self.output_blocks = nn.ModuleList(layers)
        last = nn.Conv2d(c, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.out = nn.Sequential(_norm(c), nn.SiLU(), last)

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
