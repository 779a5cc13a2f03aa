"""A second head that learns how uncertain a noise prediction is (Bao et al. 2022).

The body is a network that predicts already, and stays as it is; only the head learns, from the
body's last features.
"""

from typing import Any, Literal, TypeAlias

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from cyclelight.errors import BadValue, one_of
from cyclelight.networks.adm import ADMUNet
from cyclelight.networks.adm_parts import ResBlock

Covariance = Literal["sn", "npr"]
"""What the head predicts: the mean of eps^2 (SN-DDPM, the squared noise), or that of
(eps - eps_hat)^2 (NPR-DDPM, the noise prediction's residual)."""
HeadKind = Literal["simple", "complex"]
"""A norm and a convolution; or a residual block, which sees the timestep, and then these."""
Body: TypeAlias = UNet2DModel | ADMUNet

BODIES: dict[str, type[Body]] = {"UNet2DModel": UNet2DModel, "ADMUNet": ADMUNet}


class CovarianceNetwork(ModelMixin, ConfigMixin):
    """A network and the covariance head on its last features.

    The body never trains: its dropout stays off, and its parameters ask for no gradient.

    Args:
        body: settings of the body, the name of its class among them as `_class_name`.
        sample_size: height and width of the body's images.
        in_channels: channels of the body's images, C.
        covariance: see `Covariance`.
        head: see `HeadKind`.

    Raises:
        ValueError: the body does not predict C channels, or a setting is not known.
    """

    @register_to_config
    def __init__(
        self,
        body: dict[str, Any],
        sample_size: int,
        in_channels: int = 3,
        covariance: Covariance = "sn",
        head: HeadKind = "simple",
    ) -> None:
        super().__init__()
        one_of(("sn", "npr"), covariance=covariance)
        one_of(("simple", "complex"), head=head)
        one_of(BODIES, body=str(body.get("_class_name")))
        self.trunk: Any = BODIES[body["_class_name"]].from_config(body)
        self.out = _take_out(self.trunk)
        norm: Any = self.out[0]
        convolution: Any = self.out[-1]
        if convolution.out_channels != in_channels:
            raise BadValue(
                "body",
                f"body must predict {in_channels} channels for a covariance head, "
                f"not {convolution.out_channels}",
            )
        self.out2 = nn.ModuleList(
            [
                *([_block(self.trunk, norm)] if head == "complex" else []),
                nn.GroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps),
                nn.SiLU(),
                nn.Conv2d(convolution.in_channels, in_channels, 3, padding=1),
            ]
        )
        self.trunk.requires_grad_(False).eval()
        self.out.requires_grad_(False)

    @classmethod
    def around(
        cls, body: Body, covariance: Covariance = "sn", head: HeadKind = "simple"
    ) -> "CovarianceNetwork":
        """A new head on a network's last features; the network's weights are copied."""
        config = {k: v for k, v in body.config.items() if k[0] != "_"}
        config["_class_name"] = next(n for n, kind in BODIES.items() if isinstance(body, kind))
        size, channels = body.config.sample_size, body.config.in_channels
        # By name, since diffusers takes what comes by position for defaults.
        network = cls(
            body=config, sample_size=size, in_channels=channels, covariance=covariance, head=head
        )
        weights = {f"trunk.{name}": value for name, value in body.state_dict().items()}
        last = ("out",) if isinstance(body, ADMUNet) else ("conv_norm_out", "", "conv_out")
        for name in list(weights):
            first, _, rest = name.removeprefix("trunk.").partition(".")
            if first in last:
                place = f"{last.index(first)}." if len(last) > 1 else ""
                weights[f"out.{place}{rest}"] = weights.pop(name)
        missing, unexpected = network.load_state_dict(weights, strict=False)
        assert not unexpected and all(name.startswith("out2.") for name in missing)
        return network

    def train(self, mode: bool = True) -> "CovarianceNetwork":
        """The head alone trains."""
        super().train(mode)
        self.trunk.eval()
        return self

    def features(self, sample: Tensor, timestep: Tensor | float) -> tuple[Tensor, Tensor]:
        """(the body's last features, its embedding of the timestep).

        Args:
            sample: noisy images (B, C, H, W).
            timestep: training timesteps, (B,) or one for all.
        """
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        return self.trunk(sample, t).sample, _embedding(self.trunk, t, sample.dtype)

    def second(self, h: Tensor, emb: Tensor) -> Tensor:
        """What the head says, (B, C, H, W), given `features`."""
        for layer in self.out2:
            h = layer(h, emb) if isinstance(layer, ResBlock | ResnetBlock2D) else layer(h)
        return h

    def forward(self, sample: Tensor, timestep: Tensor | float) -> UNet2DOutput:
        """The body's prediction and the head's, in `.sample`: (B, 2 C, H, W).

        Args:
            sample: noisy images (B, C, H, W).
            timestep: training timesteps, (B,) or one for all.
        """
        h, emb = self.features(sample, timestep)
        return UNet2DOutput(sample=torch.cat([self.out(h), self.second(h, emb)], dim=1))


def _take_out(body: Any) -> nn.Sequential:
    """A body's last norm, activation and convolution, in whose places it keeps nothing."""
    if isinstance(body, ADMUNet):
        out, body.out = body.out, nn.Identity()
        return out
    out = nn.Sequential(body.conv_norm_out, body.conv_act, body.conv_out)
    body.conv_norm_out, body.conv_act, body.conv_out = (nn.Identity() for _ in range(3))
    return out


def _block(body: Any, norm: nn.GroupNorm) -> nn.Module:
    c, dropout = norm.num_channels, body.config.dropout
    if isinstance(body, ADMUNet):
        scale_shift, width = body.config.use_scale_shift_norm, 4 * body.config.num_channels
        return ResBlock(c, c, width, dropout, scale_shift=scale_shift, resample=None)
    return ResnetBlock2D(
        in_channels=c,
        out_channels=c,
        temb_channels=body.time_embedding.linear_2.out_features,
        groups=norm.num_groups,
        eps=norm.eps,
        dropout=dropout,
        time_embedding_norm=body.config.resnet_time_scale_shift,
    )


def _embedding(body: Any, t: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(body, ADMUNet):
        return body.embed(t, dtype)
    embedding: Tensor = body.time_embedding(body.time_proj(t).to(dtype))
    return embedding
