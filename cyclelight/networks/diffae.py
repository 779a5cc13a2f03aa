"""A diffusion autoencoder (Preechakul et al. 2022): encoder, conditioned denoiser, latent prior.

Names and shapes of the tensors are those of the published checkpoints, but for the prefixes of the
three parts and for weights that are there twice.
"""

from dataclasses import asdict, dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from cyclelight.errors import BadValue, at_least
from cyclelight.networks.diffae_parts import ConditionedUNet, Encoder, Shape
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
        norm_groups: groups of the group norms, at most one for each channel; 32 as published.
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
    norm_groups: int = 32

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
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        at_least(1, num_channels=num_channels, num_res_blocks=num_res_blocks, num_heads=num_heads)
        at_least(1, code_size=code_size, latent_width=latent_width, norm_groups=norm_groups)
        at_least(2, latent_layers=latent_layers, latent_time=latent_time)
        for name, mult in (("channel_mult", channel_mult), ("encoder_mult", encoder_mult)):
            check_resolution(sample_size, len(mult), name)
            widths = [num_channels * m for m in mult]
            # Those of the way up see what comes along and what was kept, together.
            together = [a + b for a in widths for b in widths] if name == "channel_mult" else []
            odd = any(w < 1 or w % min(norm_groups, w) for w in (*widths, *together))
            if not widths or odd or any(w % num_heads for w in widths):
                raise BadValue(
                    name,
                    f"{name} times num_channels must give multiples of norm_groups {norm_groups}, "
                    f"or sums below, and multiples of num_heads {num_heads}, got {widths}",
                )
        sizes = [sample_size >> level for level in range(len(channel_mult))]
        check_attention(attention_resolutions, sizes)
        blocks = (num_res_blocks, num_heads, tuple(attention_resolutions))
        shape = Shape(in_channels, num_channels, *blocks, norm_groups)
        self.encoder = Encoder(sample_size, encoder_mult, code_size, shape)
        self.denoiser = ConditionedUNet(sample_size, channel_mult, code_size, dropout, shape)
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
