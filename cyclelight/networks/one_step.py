"""The student of a distillation: a small UNet that is called once, and says what is to change."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.errors import BadValue, at_least
from cyclelight.networks import check_network
from cyclelight.networks.unet import UNetSettings


@dataclass(frozen=True)
class OneStepSettings:
    """The shape of a student; the defaults are 1.8 M parameters at 48 pixels.

    Args:
        block_out_channels: channels at each resolution, from the finest; each level halves it. All
            are multiples of 16, the last one of 32.
        layers_per_block: residual blocks at each resolution on the way down; one more on the way
            up.
        attention_resolutions: the resolutions, in the UNet's own pixels, that get self-attention.
        patch: side of the squares of pixels that the UNet sees as one pixel of many channels, as
            in super-resolution (Shi et al. 2016): 2 is four times cheaper than 1.
    """

    block_out_channels: tuple[int, ...] = (32, 64, 96)
    layers_per_block: int = 1
    attention_resolutions: tuple[int, ...] = ()
    patch: int = 2

    def build(self, *, resolution: int, channels: int, directions: int = 1) -> "OneStepUNet":
        """A student that gives images of `channels` x `resolution` x `resolution` back.

        Raises:
            ValueError: a setting is out of range, or the resolution cannot be halved that often.
        """
        at_least(1, patch=self.patch)
        if resolution % self.patch:
            raise BadValue(
                "resolution",
                f"resolution must be a multiple of patch {self.patch}, got {resolution}",
            )
        shape = UNetSettings(
            self.block_out_channels, self.layers_per_block, self.attention_resolutions
        )
        with torch.device("meta"):
            side, depth = resolution // self.patch, channels * self.patch**2
            unet = shape.build(resolution=side, channels=depth)
        body = {name: value for name, value in unet.config.items() if name[0] != "_"}
        return OneStepUNet(
            body={**body, "_class_name": "UNet2DModel"},
            sample_size=resolution,
            in_channels=channels,
            patch=self.patch,
            directions=directions,
        )


class OneStepUNet(ModelMixin, ConfigMixin):
    """A translator of images in one call: y = x + f(x, direction), f a UNet on patches.

    A new one gives images back. One network may go several ways, such as from A to B and from B to
    A: the number of the way takes the place of the UNet's timestep.

    Args:
        body: settings of the UNet2DModel, the name of its class among them as `_class_name`.
        sample_size: height and width of the images in pixels.
        in_channels: channels of the images.
        patch: side of the squares of pixels that it sees as one.
        directions: how many ways it goes.

    Raises:
        ValueError: a setting is out of range, or the body does not fit.
    """

    @register_to_config
    def __init__(
        self,
        body: dict[str, Any],
        sample_size: int,
        in_channels: int = 3,
        patch: int = 2,
        directions: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, in_channels=in_channels, patch=patch, directions=directions)
        if body.get("_class_name") != "UNet2DModel":
            raise BadValue("body", "body must be a UNet2DModel")
        self.unet: Any = UNet2DModel.from_config(body)
        depth, found = in_channels * patch**2, self.unet.config
        side = check_network(self.unet) * patch
        if (side, found.in_channels, found.out_channels) != (sample_size, depth, depth):
            raise BadValue(
                "body",
                f"body must take and give {depth} channels of {sample_size} / {patch} pixels, not "
                f"{found.in_channels} and {found.out_channels} of {side} / {patch}",
            )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, x: Tensor, direction: Tensor | int = 0) -> Tensor:
        """Translations, near [-1, 1], of images (B, C, R, R) in [-1, 1].

        Args:
            x: the images.
            direction: the number of the way, below `directions`; (B,) or one for all.
        """
        patch: int = self.config.patch
        seen = F.pixel_unshuffle(x, patch)
        ways = torch.as_tensor(direction, device=x.device).expand(x.shape[0])
        change: Tensor = F.pixel_shuffle(self.unet(seen, ways).sample, patch)
        return x + change
