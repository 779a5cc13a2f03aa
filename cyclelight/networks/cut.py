"""CUT's networks (Park et al. 2020, sec. 4 and appendix): generator, discriminator, projections.

The generator's layers are numbered, and its tensors named, as in the authors' program.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.errors import BadValue, at_least

GAIN = 0.02
"""Of Xavier's normal initialisation, as published; instance norm brings all to scale again."""
BODY = 12
"""The number of the layer at which the residual blocks begin."""


@dataclass(frozen=True)
class CUTSettings:
    """The shape of CUT's generator; the defaults are the published one (11.4 M).

    Args:
        ngf: channels at the finest resolution; twice and four times as many at the others.
        n_blocks: residual blocks at a quarter of the resolution.
    """

    ngf: int = 64
    n_blocks: int = 9

    def build(self, *, resolution: int, channels: int) -> "CUTGenerator":
        """A freshly initialised network for images of `channels` x `resolution` x `resolution`.

        Raises:
            ValueError: a setting is out of range, or the resolution no multiple of 4.
        """
        return CUTGenerator(sample_size=resolution, in_channels=channels, **asdict(self))


class CUTGenerator(ModelMixin, ConfigMixin):
    """A translator of images in one call: two levels down, residual blocks, two levels up.

    Each change of resolution is a convolution that keeps it, and a small blur (Zhang 2019). It is a
    diffusers model, so that it is saved and loaded like one.

    Args:
        sample_size: height and width of the images in pixels, a multiple of 4 from 8 on.
        in_channels: channels of the images, which are the results', too.
        ngf: see `CUTSettings`.
        n_blocks: see `CUTSettings`.

    Raises:
        ValueError: a setting is out of range.
    """

    @register_to_config
    def __init__(
        self, sample_size: int = 256, in_channels: int = 3, ngf: int = 64, n_blocks: int = 9
    ) -> None:
        super().__init__()
        at_least(1, in_channels=in_channels, ngf=ngf, n_blocks=n_blocks)
        if sample_size % 4 or sample_size < 8:
            raise BadValue(
                "resolution", f"resolution must be a multiple of 4 from 8 on, got {sample_size}"
            )
        widths = [ngf, 2 * ngf, 4 * ngf]
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, ngf, 7),
            *_after(ngf),
        ]
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), *_after(b), Halve()]
        layers += [ResidualBlock(widths[-1]) for _ in range(n_blocks)]
        for a, b in pairwise(reversed(widths)):
            layers += [Double(), nn.Conv2d(a, b, 3, padding=1), *_after(b)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, in_channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        begin(self)

    def forward(self, x: Tensor) -> Tensor:
        """Translations, in [-1, 1], of images (B, C, H, W) in [-1, 1]; H and W multiples of 4."""
        y: Tensor = self.model(x)
        return y

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """What these layers, in ascending order, make of images (B, C, H, W): (B, C', H', W') each.

        Layer 0 is the padded image itself; what comes after the last of them is not computed.
        """
        found = []
        for number, layer in enumerate(self.model[: max(layers) + 1]):
            x = layer(x)
            if number in layers:
                found.append(x)
        return found

    def feature_channels(self, layers: Sequence[int]) -> list[int]:
        """The channels of `features`.

        Raises:
            ValueError: a layer is none of the encoder's, they do not ascend, or there is none.
        """
        last = BODY - 1 + self.config.n_blocks
        ordered = all(a < b for a, b in pairwise(layers))
        if not layers or not ordered or min(layers) < 0 or max(layers) > last:
            raise BadValue(
                "nce_layers",
                f"nce_layers must be ascending numbers of layers in 0..{last}, got {list(layers)}",
            )
        channels, found = self.config.in_channels, []
        for number, layer in enumerate(self.model[: max(layers) + 1]):
            channels = layer.out_channels if isinstance(layer, nn.Conv2d) else channels
            found += [channels] * (number in layers)
        return found


def _after(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels), nn.ReLU()]


def begin(network: nn.Module) -> None:
    """Initialise convolutions and linear layers as published, in place."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(layer.weight, GAIN)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ResidualBlock(nn.Module):
    """Two convolutions between reflecting borders, beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), *_after(channels)),
            *(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv_block(x)
        return y


class Halve(nn.Module):
    """(B, C, H, W) => (B, C, ceil(H / 2), ceil(W / 2)) through the filter (1, 2, 1) / 4 each way.

    The border is reflected. The filter is that of two means of two: pooling is far faster than a
    convolution of each channel by itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.avg_pool2d(F.avg_pool2d(padded, 2, stride=1), 2)


class Double(nn.Module):
    """(B, C, H, W) => (B, C, 2 H, 2 W) through the filter (1, 3, 3, 1) / 8 each way, times 4.

    The border is repeated. It is what is called bilinear interpolation.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class PatchDiscriminator(nn.Module):
    """How real each patch of an image is, without a range (Isola et al. 2017), blurs as above.

    Args:
        channels: channels of the images.
        width: channels at the finest resolution; at most eight times as many at the others.
        layers: how often the resolution is halved; 3 gives patches of about 70 pixels.
        resolution: height and width of the images in pixels.

    Raises:
        ValueError: a setting is out of range, or nothing would be left of an image.
    """

    def __init__(self, channels: int, width: int, layers: int, resolution: int) -> None:
        super().__init__()
        at_least(1, discriminator_width=width, discriminator_layers=layers)
        # A convolution leaves one pixel less, and of these a half, rounded up; the norm needs two.
        if resolution // 2**layers < 3:
            raise BadValue(
                "discriminator_layers",
                f"discriminator_layers {layers} leave nothing of {resolution} pixels to judge: "
                f"take fewer",
            )
        widths = [width * min(2**n, 8) for n in range(layers + 1)]
        parts: list[nn.Module] = [_conv(channels, width), nn.LeakyReLU(0.2), Halve()]
        for n, (a, b) in enumerate(pairwise(widths), 1):
            parts += [_conv(a, b), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2)]
            parts += [Halve()] * (n < layers)
        self.model = nn.Sequential(*parts, _conv(widths[-1], 1))
        begin(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, R, R) in [-1, 1] => (B, 1, H, W)."""
        y: Tensor = self.model(x)
        return y


def _conv(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 4, padding=1)


class PatchSampleF(nn.Module):
    """Projects features at some positions to unit vectors, by an MLP of two layers for each map.

    Args:
        channels: those of each map.
        width: length of the vectors.
    """

    def __init__(self, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)) for c in channels
        )
        begin(self)

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Vectors (B, P, width) for each map.

        Args:
            maps: (B, C, H, W) each.
            positions: (P,) each, numbers of positions row by row, the same for all images.
        """
        found = []
        for features, chosen, mlp in zip(maps, positions, self.mlps, strict=True):
            vectors = mlp(features.flatten(2)[:, :, chosen].transpose(1, 2))
            found.append(F.normalize(vectors.float(), dim=2, eps=1e-7))
        return found


def draw_positions(maps: Sequence[Tensor], count: int, generator: torch.Generator) -> list[Tensor]:
    """Up to `count` different positions of each map (B, C, H, W), see `PatchSampleF`.

    `generator` is a CPU's.
    """
    sizes = [features.shape[2] * features.shape[3] for features in maps]
    drawn = [torch.randperm(size, generator=generator)[:count] for size in sizes]
    return [chosen.to(features.device) for chosen, features in zip(drawn, maps, strict=True)]
