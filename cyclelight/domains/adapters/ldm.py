"""The text-to-image model of latent diffusion (Rombach et al. 2022): a folder -> `TextModel`.

    FOLDER/model_index.json  unet/  scheduler/  bert/  tokenizer/  vqvae/

as diffusers' LDMTextToImagePipeline lays it out. Its text encoder was trained along with the UNet;
`vqvae` is an AutoencoderKL or a VQModel.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from transformers import BertTokenizer

from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.domains.adapters.text_encoders import (
    EncodersReader,
    TextEncoder,
    load_encoder,
    load_tokenizer,
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
from cyclelight.text.guided import Embeddings
from cyclelight.text.model import TextModel


class BertReader(EncodersReader):
    """Texts in the hidden states of LDM's own transformer, which sees what fills them up too."""

    def forward(self, texts: Sequence[str]) -> Embeddings:
        (only,) = self.each
        return (only.encoder(only.ids(texts), return_dict=True).last_hidden_state,)


def load_ldm(
    folder: Path, *, resolution: int | None, device: str | torch.device, name: str
) -> TextModel:
    """The model of a folder; arguments and errors are those of `load_stable_diffusion`."""
    check_parts(folder, LDM)
    bare = is_bare(device)
    check_told(folder)
    unet = outline(folder, "unet", UNet2DConditionModel)
    schedule, prediction_type = schedule_and_type(folder)
    autoencoder = load_autoencoder(folder / "vqvae", "model")
    check_channels(folder, "unet", unet, autoencoder)
    bert = load_encoder(folder, "bert", {"LDMBertModel": LDMBertModel}, LDMBertConfig, bare=bare)
    tokenizer = load_tokenizer(folder, "tokenizer", BertTokenizer)
    encoder = TextEncoder(bert, tokenizer, bert.config.max_position_embeddings)
    wanted = unet.config.cross_attention_dim
    check_width(folder, "unet", "texts", wanted, encoder.width, "bert writes")
    if not bare:
        unet = load_network(folder, "unet", UNet2DConditionModel)
    return put_together(
        folder,
        NetworkDenoiser(unet, schedule, prediction_type=prediction_type),
        BertReader(encoder),
        side=side_of(unet.config.sample_size, autoencoder, resolution, downsampling(unet)),
        name=name,
        autoencoder=autoencoder,
        device=device,
    )


LDM = Family(
    load_ldm,
    {
        "unet": ["config.json"],
        "scheduler": ["scheduler_config.json"],
        "bert": ["config.json"],
        "tokenizer": TOKENIZER,
        "vqvae": ["config.json"],
    },
    optional=(),
    pickled=True,
)
