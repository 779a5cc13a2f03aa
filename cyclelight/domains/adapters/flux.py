"""FLUX.1 (Black Forest Labs 2024), dev and schnell, rectified flows: a folder -> `TextModel`.

    FOLDER/model_index.json  transformer/  scheduler/  text_encoder/  tokenizer/  text_encoder_2/
           tokenizer_2/  vae/

as diffusers' FluxPipeline lays it out. In float32 the published transformers take 48 GB, T5 19 GB.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from cyclelight.diffusion.flow import FlowDenoiser
from cyclelight.domains.adapters.flow import schedule_and_levels
from cyclelight.domains.adapters.text_encoders import (
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
    side_of,
)
from cyclelight.domains.autoencoder_folder import load_autoencoder
from cyclelight.text.guided import Embeddings
from cyclelight.text.model import TextModel

PATCH = 2
"""Height and width of the patches that latents are packed in: their channels stand in a row."""
SIDE = 128
"""Of the latents of published models, which their settings do not tell."""
T5_LENGTH, DISTILLED_LENGTH = 256, 512
"""Tokens that the published programs give to T5: of schnell, and of dev."""


class FluxReader(EncodersReader):
    """The states of T5, and CLIP's pooled text.

    Args:
        clip: a CLIPTextModel and its tokenizer.
        t5: a T5EncoderModel and its tokenizer.
    """

    def __init__(self, clip: TextEncoder, t5: TextEncoder) -> None:
        super().__init__(clip, t5)

    def forward(self, texts: Sequence[str]) -> Embeddings:
        clip, t5 = self.each
        states = t5.encoder(t5.ids(texts)).last_hidden_state
        return states, clip.encoder(clip.ids(texts)).pooler_output


class PackedTransformer(nn.Module):
    """A FluxTransformer2DModel, called as (state, u, states of texts, pooled texts, guidance).

    Only where the guidance is learnt is there one, (B,).
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer

    def forward(
        self,
        state: Tensor,
        u: Tensor,
        states: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The velocity (B, C, H, W)."""
        packed = F.pixel_unshuffle(state, PATCH)
        height, width = packed.shape[2:]
        # Places are (0, row, column), of texts (0, 0, 0); in float32, which has all of them.
        rows, columns = (torch.arange(n, device=state.device).float() for n in (height, width))
        grid = torch.meshgrid(rows, columns, indexing="ij")
        places = torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1)
        said = self.transformer(
            hidden_states=packed.flatten(2).mT,
            timestep=u,
            guidance=guidance,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            img_ids=places,
            txt_ids=places.new_zeros(states.shape[1], places.shape[1]),
        )
        return F.pixel_shuffle(said.sample.mT.unflatten(2, (height, width)), PATCH)


def load_flux(
    folder: Path, *, resolution: int | None, device: str | torch.device, name: str
) -> TextModel:
    """The model of a folder; arguments and errors are those of `load_stable_diffusion`."""
    check_parts(folder, FLUX)
    bare = is_bare(device)
    network = outline(folder, "transformer", FluxTransformer2DModel, sized=False)
    autoencoder = load_autoencoder(folder / "vae", "model")
    check_channels(folder, "transformer", network, autoencoder, PATCH)
    clip = load_clip(folder, "", bare=bare)
    kinds = {"T5EncoderModel": T5EncoderModel}
    encoder = load_encoder(folder, "text_encoder_2", kinds, T5Config, bare=bare)
    distilled = network.config.guidance_embeds
    length = DISTILLED_LENGTH if distilled else T5_LENGTH
    t5 = TextEncoder(encoder, load_tokenizer(folder, "tokenizer_2", T5Tokenizer), length)
    wanted = network.config.joint_attention_dim
    check_width(folder, "transformer", "texts", wanted, t5.width, "text_encoder_2 writes")
    wanted = network.config.pooled_projection_dim
    check_width(folder, "transformer", "pooled texts", wanted, clip.width, "text_encoder writes")
    side = side_of(SIDE, autoencoder, resolution, PATCH)
    patches = (side // autoencoder.factor // PATCH) ** 2
    schedule, _ = schedule_and_levels(folder, patches)
    if not bare:
        network = load_network(folder, "transformer", FluxTransformer2DModel)
    return put_together(
        folder,
        FlowDenoiser(PackedTransformer(network), schedule, factor=1.0),
        FluxReader(clip, t5),
        side=side,
        name=name,
        autoencoder=autoencoder,
        device=device,
        distilled=distilled,
    )


FLUX = Family(
    load_flux,
    {
        "transformer": ["config.json"],
        "scheduler": ["scheduler_config.json"],
        "text_encoder": ["config.json"],
        "tokenizer": TOKENIZER,
        "text_encoder_2": ["config.json"],
        "tokenizer_2": TOKENIZER,
        "vae": ["config.json"],
    },
    optional=(),
)
