"""Stable Diffusion XL (Podell et al. 2023), its base model: a folder -> `TextModel`.

    FOLDER/model_index.json  unet/  scheduler/  text_encoder/  tokenizer/  text_encoder_2/
           tokenizer_2/  vae/

as diffusers' StableDiffusionXLPipeline lays it out. Beside the texts its UNet is told a pooled text
and the size and crop of the images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.domains.adapters.text_encoders import (
    PROJECTED,
    EncodersReader,
    TextEncoder,
    load_clip,
)
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
from cyclelight.errors import BadValue
from cyclelight.files import read_json
from cyclelight.text.guided import Embeddings
from cyclelight.text.model import TextModel

SIZES = 6
"""Numbers that the UNet is told of an image: height and width before and after the crop, and where
the crop begins."""


class XLReader(EncodersReader):
    """Two encoders of CLIP side by side in their last but one hidden states, and a pooled text.

    Args:
        first: a CLIPTextModel and its tokenizer.
        second: a CLIPTextModelWithProjection, which pools the text, and its tokenizer.
        zeros: whether the empty text is all zeros, as it was in the training of the base model.
    """

    def __init__(self, first: TextEncoder, second: TextEncoder, *, zeros: bool) -> None:
        super().__init__(first, second)
        self.zeros = zeros

    def forward(self, texts: Sequence[str]) -> Embeddings:
        said = [e.encoder(e.ids(texts), output_hidden_states=True) for e in self.each]
        states = torch.cat([each.hidden_states[-2] for each in said], dim=-1)
        pooled = said[1].text_embeds
        if self.zeros:
            kept = states.new_tensor([bool(text) for text in texts])
            states, pooled = states * kept[:, None, None], pooled * kept[:, None]
        return states, pooled


class SizedUNet(nn.Module):
    """A UNet that is told of whole images of one size, called as (x_t, timesteps, states, pooled).

    Args:
        unet: of `addition_embed_type` `text_time`.
        side: height and width of the images in pixels.
    """

    def __init__(self, unet: nn.Module, side: int) -> None:
        super().__init__()
        self.unet: Any = unet
        # Integers, which no change of precision rounds: height, width; top, left; height, width.
        sizes = torch.tensor([side, side, 0, 0, side, side])
        self.register_buffer("sizes", sizes, persistent=False)

    @property
    def attn_processors(self) -> Any:
        """Those of the UNet, for control over attention."""
        return self.unet.attn_processors

    def set_attn_processor(self, processors: Any) -> None:
        """Set those of the UNet."""
        self.unet.set_attn_processor(processors)

    def forward(self, x_t: Tensor, timesteps: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        """What the UNet predicts, (B, C, H, W)."""
        sizes: Any = self.sizes
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(x_t), SIZES)}
        return self.unet(x_t, timesteps, states, added_cond_kwargs=added).sample


def load_sdxl(
    folder: Path, *, resolution: int | None, device: str | torch.device, name: str
) -> TextModel:
    """The model of a folder; arguments and errors are those of `load_stable_diffusion`."""
    check_parts(folder, SDXL)
    bare = is_bare(device)
    check_told(folder, "text_time")
    unet = outline(folder, "unet", UNet2DConditionModel)
    schedule, prediction_type = schedule_and_type(folder)
    autoencoder = load_autoencoder(folder / "vae", "model")
    check_channels(folder, "unet", unet, autoencoder)
    first = load_clip(folder, "", bare=bare)
    second = load_clip(folder, "_2", PROJECTED, bare=bare)
    widths = first.width + second.width
    wanted = unet.config.cross_attention_dim
    check_width(folder, "unet", "texts", wanted, widths, "text_encoder and text_encoder_2 write")
    pooled: Any = second.encoder.config
    sizes = SIZES * (unet.config.addition_time_embed_dim or 0)
    wanted = (unet.config.projection_class_embeddings_input_dim or 0) - sizes
    told = "a pooled text"
    check_width(folder, "unet", told, wanted, pooled.projection_dim, "text_encoder_2 writes")
    side = side_of(unet.config.sample_size, autoencoder, resolution, downsampling(unet))
    if not bare:
        unet = load_network(folder, "unet", UNet2DConditionModel)
    zeros = read_json(folder / "model_index.json", "model").get("force_zeros_for_empty_prompt")
    if not isinstance(zeros, bool | None):
        told = "force_zeros_for_empty_prompt of its index must be true or false"
        raise BadValue("model", f"model: {folder}: {told}")
    return put_together(
        folder,
        NetworkDenoiser(SizedUNet(unet, side), schedule, prediction_type=prediction_type),
        # What the pipeline of diffusers does where the index does not say.
        XLReader(first, second, zeros=zeros is not False),
        side=side,
        name=name,
        autoencoder=autoencoder,
        device=device,
    )


SDXL = Family(
    load_sdxl,
    {
        "unet": ["config.json"],
        "scheduler": ["scheduler_config.json"],
        "text_encoder": ["config.json"],
        "tokenizer": TOKENIZER,
        "text_encoder_2": ["config.json"],
        "tokenizer_2": TOKENIZER,
        "vae": ["config.json"],
    },
    optional=(),
    index=True,
)
