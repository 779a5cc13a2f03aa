"""Stable Diffusion 1.x and 2.x, and whatever diffusers lays out so: a folder -> `TextModel`.

    FOLDER/model_index.json  unet/  scheduler/  text_encoder/  tokenizer/  vae/ (a latent space's)

So does `TextModule` lay out its models, without `vae/`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.domains.adapters.text_encoders import CLIP_MODELS, EncodersReader, load_clip
from cyclelight.domains.adapters.text_parts import (
    TOKENIZER,
    Family,
    check_channels,
    check_parts,
    check_told,
    check_width,
    downsampling,
    is_bare,
    load_network,
    outline,
    put_together,
    schedule_and_type,
    side_of,
)
from cyclelight.domains.autoencoder_folder import load_autoencoder
from cyclelight.text.guided import Embeddings
from cyclelight.text.model import TextModel


class CLIPReader(EncodersReader):
    """One text encoder of CLIP: its last hidden states are what the network takes."""

    def forward(self, texts: Sequence[str]) -> Embeddings:
        (only,) = self.each
        return (only.encoder(only.ids(texts)).last_hidden_state,)


def load_stable_diffusion(
    folder: Path, *, resolution: int | None, device: str | torch.device, name: str
) -> TextModel:
    """The model of a folder, its networks in float32, in evaluation mode and without gradients.

    Args:
        folder: see the head of this file.
        resolution: of its images in pixels; None for the one that it was trained at.
        device: where the networks go; on `meta` their weights are not read.
        name: what to call it.

    Raises:
        FileNotFoundError, ValueError: a part is missing, or not what it should be; the message
            begins with `model`.
    """
    check_parts(folder, STABLE_DIFFUSION)
    bare, vae = is_bare(device), folder / "vae"
    check_told(folder)
    unet = outline(folder, "unet", UNet2DConditionModel)
    schedule, prediction_type = schedule_and_type(folder)
    autoencoder = load_autoencoder(vae, "model") if vae.is_dir() else None
    check_channels(folder, "unet", unet, autoencoder)
    # A text encoder that could also pool is read without that.
    kinds = {**CLIP_MODELS, "CLIPTextModelWithProjection": CLIP_MODELS["CLIPTextModel"]}
    encoder = load_clip(folder, "", kinds, bare=bare)
    wanted = unet.config.cross_attention_dim
    check_width(folder, "unet", "texts", wanted, encoder.width, "text_encoder writes")
    if not bare:
        unet = load_network(folder, "unet", UNet2DConditionModel)
    return put_together(
        folder,
        NetworkDenoiser(unet, schedule, prediction_type=prediction_type),
        CLIPReader(encoder),
        side=side_of(unet.config.sample_size, autoencoder, resolution, downsampling(unet)),
        name=name,
        autoencoder=autoencoder,
        device=device,
    )


STABLE_DIFFUSION = Family(
    load_stable_diffusion,
    {
        "unet": ["config.json"],
        "scheduler": ["scheduler_config.json"],
        "text_encoder": ["config.json"],
        "tokenizer": TOKENIZER,
    },
)
