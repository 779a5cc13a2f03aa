"""Networks: tensors in, tensors out; each class with the settings that build it."""

import json
from typing import Any, TypeAlias

import torch
from diffusers import UNet2DModel
from torch import nn

from cyclelight.errors import BadValue
from cyclelight.networks.adm import ADMSettings, ADMUNet
from cyclelight.networks.sn import BODIES, CovarianceNetwork
from cyclelight.networks.unet import UNetSettings

Network: TypeAlias = UNet2DModel | ADMUNet | CovarianceNetwork
NetworkSettings: TypeAlias = UNetSettings | ADMSettings

NETWORKS: dict[str, type[Network]] = {**BODIES, "CovarianceNetwork": CovarianceNetwork}
"""Those that a domain folder may hold, by the name of their class."""


def blocks(network: Network) -> list[nn.Module]:
    """The large parts of a network, which run one after the other."""
    if isinstance(network, CovarianceNetwork):
        return [*blocks(network.trunk), network.out, network.out2]
    if isinstance(network, ADMUNet):
        return [*network.input_blocks, network.middle_block, *network.output_blocks]
    middle = [] if network.mid_block is None else [network.mid_block]
    return [*network.down_blocks, *middle, *network.up_blocks]


def network_config(network: Network) -> dict[str, Any]:
    """The settings that rebuild a network of the class they name, as plain JSON values."""
    config: dict[str, Any] = json.loads(network.to_json_string())
    # A sharded one has a class of its own.
    kinds = (name for name, kind in NETWORKS.items() if isinstance(network, kind))
    return {**config, "_class_name": next(kinds, config["_class_name"])}


def arrange(network: nn.Module) -> None:
    """Give a network that is to be trained the memory layout in which this machine is fastest.

    Channels last on CPUs. Where there is a GPU first, since torch's group norm of a GPU would bring
    them there and back each time.
    """
    first = torch.cuda.is_available()
    network.to(memory_format=torch.contiguous_format if first else torch.channels_last)


def learns_variance(network: Network) -> bool:
    """Whether a network outputs a learned range of the variance beside its prediction.

    Raises:
        ValueError: its number of output channels is neither that of its input nor twice that.
    """
    if isinstance(network, CovarianceNetwork):
        return False
    if isinstance(network, ADMUNet):
        return bool(network.config.learn_sigma)
    channels, out_channels = network.config.in_channels, network.config.out_channels
    if out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"out_channels must be {channels}, or {2 * channels} with a learned variance, "
            f"got {out_channels}"
        )
    return bool(out_channels == 2 * channels)


def check_network(network: Network) -> int:
    """The side of the states that a network works on, if a domain can be made of it.

    Raises:
        ValueError: it asks for more than a state and its timestep, does not answer with a state, or
            works on states that are not square.
    """
    if isinstance(network, CovarianceNetwork):
        return check_network(network.trunk)
    config: Any = network.config
    learns_variance(network)
    embedding = getattr(config, "time_embedding_type", "positional")
    if embedding == "fourier":
        raise ValueError(
            "its network takes noise levels (time_embedding_type fourier), not timesteps"
        )
    for name in ("num_class_embeds", "class_embed_type"):
        if getattr(config, name, None) is not None:
            raise ValueError(f"its network asks for a class ({name} {getattr(config, name)})")
    side = config.sample_size
    if isinstance(side, list | tuple) and len(set(side)) == 1:
        side = side[0]
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise ValueError(f"sample_size must be one positive integer, got {side}")
    if side % 2 ** _halvings(network):
        raise ValueError(
            f"sample_size must be a multiple of {2 ** _halvings(network)}, got {side}: its network "
            f"halves it {_halvings(network)} times"
        )
    if getattr(config, "downsample_padding", 1) not in (0, 1):
        raise ValueError(f"downsample_padding must be 0 or 1, got {config.downsample_padding}")
    for name in ("timestep_scale", "mid_block_scale_factor", "norm_eps"):
        if not getattr(config, name, 1) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")
    return side


def _halvings(network: UNet2DModel | ADMUNet) -> int:
    """How often the network halves the resolution on its way down."""
    config: Any = network.config
    adm = isinstance(network, ADMUNet)
    return len(config.channel_mult if adm else config.block_out_channels) - 1


def resize(network: Network, resolution: int) -> None:
    """Let a network work at another resolution: its weights, all convolutions, fit any.

    Self-attention stays at its levels, so that it sees more positions at a higher resolution.

    Raises:
        ValueError: the resolution cannot be halved as often as the network does.
    """
    if isinstance(network, CovarianceNetwork):
        resize(network.trunk, resolution)
        network.register_to_config(sample_size=resolution, body=dict(network.trunk.config))
        return
    config, old = network.config, network.config.sample_size
    halvings = _halvings(network)
    if resolution % 2**halvings:
        raise BadValue(
            "resolution",
            f"resolution must be a multiple of {2**halvings} for {halvings + 1} levels of "
            f"the network, got {resolution}",
        )
    network.register_to_config(sample_size=resolution)
    if isinstance(network, ADMUNet):
        attended = tuple(size * resolution // old for size in config.attention_resolutions)
        network.register_to_config(attention_resolutions=attended)
