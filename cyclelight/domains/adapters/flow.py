"""Stable Diffusion 3 and 3.5 (Esser et al. 2024), rectified flows: a folder -> `TextModel`.

    FOLDER/model_index.json  transformer/  scheduler/  text_encoder/  tokenizer/  text_encoder_2/
           tokenizer_2/  vae/  text_encoder_3/  tokenizer_3/

as diffusers' StableDiffusion3Pipeline lays it out. The third text encoder, T5, may be left out, as
the model was trained for; in float32 that of the published models takes 19 GB.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from cyclelight.diffusion.flow import FlowDenoiser, flow_schedule
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.adapters.text_encoders import (
    PROJECTED,
    EncodersReader,
    TextEncoder,
    load_clip,
    load_encoder,
    load_tokenizer,
)
from cyclelight.domains.adapters.text_parts import (
    TOKENIZER,
    Family,
    check_channels,
    check_parts,
    check_width,
    is_bare,
    load_network,
    outline,
    put_together,
    scheduler_config,
    side_of,
)
from cyclelight.domains.autoencoder_folder import load_autoencoder
from cyclelight.errors import BadValue, MissingFile, first_line, real, whole
from cyclelight.files import read_json
from cyclelight.text.guided import Embeddings
from cyclelight.text.model import TextModel

T5_LENGTH = 256
"""Tokens that the pipeline of diffusers gives to T5."""
OTHER_LEVELS = (
    *("invert_sigmas", "shift_terminal", "stochastic_sampling"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
)
"""Settings of a scheduler by which its levels would be others."""


class FlowReader(EncodersReader):
    """Two encoders of CLIP side by side, T5 behind them, and both pooled texts.

    Args:
        first, second: each a CLIPTextModelWithProjection and its tokenizer.
        third: a T5EncoderModel and its tokenizer; None for zeros in its place.
        width: channels of what the network reads; narrower states are filled up with zeros.
    """

    def __init__(
        self, first: TextEncoder, second: TextEncoder, third: TextEncoder | None, width: int
    ) -> None:
        super().__init__(*filter(None, (first, second, third)))
        self.width = width

    def forward(self, texts: Sequence[str]) -> Embeddings:
        first, second, *rest = self.each
        said = [e.encoder(e.ids(texts), output_hidden_states=True) for e in (first, second)]
        clip = torch.cat([each.hidden_states[-2] for each in said], dim=-1)
        clip = F.pad(clip, (0, self.width - clip.shape[-1]))
        t5 = clip.new_zeros(len(texts), T5_LENGTH, self.width)
        for third in rest:
            t5 = third.encoder(third.ids(texts)).last_hidden_state
        pooled = torch.cat([each.text_embeds for each in said], dim=-1)
        return torch.cat([clip, t5], dim=1), pooled


class JointTransformer(nn.Module):
    """An SD3Transformer2DModel, called as (state, timesteps, states of texts, pooled texts)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer

    def forward(self, state: Tensor, timesteps: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        """The velocity (B, C, H, W)."""
        said = self.transformer(
            hidden_states=state,
            timestep=timesteps,
            encoder_hidden_states=states,
            pooled_projections=pooled,
        )
        return said.sample


def load_flow(
    folder: Path, *, resolution: int | None, device: str | torch.device, name: str
) -> TextModel:
    """The model of a folder; arguments and errors are those of `load_stable_diffusion`."""
    check_parts(folder, FLOW)
    bare = is_bare(device)
    network = outline(folder, "transformer", SD3Transformer2DModel)
    autoencoder = load_autoencoder(folder / "vae", "model")
    check_channels(folder, "transformer", network, autoencoder)
    first, second = (load_clip(folder, number, PROJECTED, bare=bare) for number in ("", "_2"))
    third = _third(folder, bare)
    wanted = network.config.joint_attention_dim
    if third is not None:
        check_width(folder, "transformer", "texts", wanted, third.width, "text_encoder_3 writes")
    elif first.width + second.width > wanted:
        clips = first.width + second.width
        check_width(folder, "transformer", "texts", wanted, clips, "its other encoders write")
    pooled = sum(each.encoder.config.projection_dim for each in (first, second))  # type: ignore
    told, wanted = "pooled texts", network.config.pooled_projection_dim
    check_width(folder, "transformer", told, wanted, pooled, "its first two encoders write")
    patch = network.config.patch_size
    side = side_of(network.config.sample_size, autoencoder, resolution, patch)
    patches = side // autoencoder.factor // patch
    if patches > network.config.pos_embed_max_size:
        most = network.config.pos_embed_max_size * patch * autoencoder.factor
        raise BadValue(
            "resolution", f"resolution must be at most {most} for this model, got {side}"
        )
    schedule, levels = schedule_and_levels(folder, patches**2)
    if not bare:
        network = load_network(folder, "transformer", SD3Transformer2DModel)
    return put_together(
        folder,
        FlowDenoiser(JointTransformer(network), schedule, levels),
        FlowReader(first, second, third, network.config.joint_attention_dim),
        side=side,
        name=name,
        autoencoder=autoencoder,
        device=device,
    )


def _third(folder: Path, bare: bool) -> TextEncoder | None:
    """T5 and its tokenizer; None where the index says that there is none.

    Raises:
        FileNotFoundError: the index says that there is one.
    """
    listed = read_json(folder / "model_index.json", "model").get("text_encoder_3") or [None]
    if listed[0] is None:
        return None
    for part in ("text_encoder_3/config.json", "tokenizer_3"):
        if not (folder / part).exists():
            raise MissingFile(
                "model",
                f"model: {folder} has no {part}; where model_index.json has null in the place of "
                f"text_encoder_3, the model goes without",
            )
    kinds = {"T5EncoderModel": T5EncoderModel}
    encoder = load_encoder(folder, "text_encoder_3", kinds, T5Config, bare=bare)
    return TextEncoder(encoder, load_tokenizer(folder, "tokenizer_3", T5Tokenizer), T5_LENGTH)


def schedule_and_levels(folder: Path, patches: int) -> tuple[NoiseSchedule, int]:
    """The schedule, shifted as the scheduler does for images of so many patches; how many levels.

    Raises:
        ValueError: it is another scheduler, or has settings by which its levels are others.
    """
    config = scheduler_config(folder)
    kind = FlowMatchEulerDiscreteScheduler.__name__
    if config.get("_class_name") != kind:
        told = f"its scheduler is {config.get('_class_name')}, not {kind}"
        raise BadValue("model", f"model: {folder}: {told}")
    for field in OTHER_LEVELS:
        if config.get(field):
            raise BadValue("model", f"model: {folder}: {field} of its scheduler is not supported")
    try:
        levels = whole("num_train_timesteps", config.get("num_train_timesteps", 1000))
        shift = real("shift", config.get("shift", 1.0))
        if config.get("use_dynamic_shifting"):
            shift = _dynamic_shift(config, patches)
        return flow_schedule(shift, levels), levels
    except (ValueError, ArithmeticError) as error:
        raise BadValue("model", f"model: {folder}: {first_line(error)}") from error


def _dynamic_shift(config: Mapping[str, Any], patches: int) -> float:
    """The shift that grows with the number of patches of an image, as the pipeline has it."""
    few, many, low, high = (
        real(name, config.get(name, default))
        for name, default in (
            *(("base_image_seq_len", 256), ("max_image_seq_len", 4096)),
            *(("base_shift", 0.5), ("max_shift", 1.15)),
        )
    )
    mu = low + (high - low) * (patches - few) / (many - few)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


FLOW = Family(
    load_flow,
    {
        "transformer": ["config.json"],
        "scheduler": ["scheduler_config.json"],
        "text_encoder": ["config.json"],
        "tokenizer": TOKENIZER,
        "text_encoder_2": ["config.json"],
        "tokenizer_2": TOKENIZER,
        "vae": ["config.json"],
    },
    optional=("text_encoder_3", "tokenizer_3"),
    index=True,
)
