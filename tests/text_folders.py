"""Tiny random text-to-image models, written by the pipelines of diffusers as their folders."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LDMTextToImagePipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from transformers import (
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = [*string.ascii_lowercase, *string.digits, "+", "="]
LENGTH = 12
"""Tokens of a text, two of which begin and end it."""


def unet(width: int, **settings: Any) -> UNet2DConditionModel:
    """Of latents of 4 channels, 8 x 8, that reads texts of so many channels."""
    given: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(cross_attention_dim=width, **{**given, **settings})


def vae(levels: int, **settings: Any) -> AutoencoderKL:
    """Of images of 3 channels, latents of 4, 2^(levels - 1) times smaller."""
    given: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 0.2, "norm_num_groups": 4}
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **{**given, **settings},
    )


def scheduler() -> DDIMScheduler:
    """Of Stable Diffusion, with the grid of latent diffusion."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )


def bert_tokenizer() -> BertTokenizer:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
    return BertTokenizer({n: i for i, n in enumerate(names)}, model_max_length=512)


def ldm() -> LDMTextToImagePipeline:
    """Images of 64 pixels, as the pipeline takes 8 of them for one."""
    config = LDMBertConfig(
        vocab_size=64,
        max_position_embeddings=77,
        encoder_layers=2,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        head_dim=8,
        d_model=16,
    )
    return LDMTextToImagePipeline(
        vqvae=vae(4),
        bert=LDMBertModel(config),
        tokenizer=bert_tokenizer(),
        unet=unet(16),
        scheduler=scheduler(),
    )


def clip_tokenizer() -> CLIPTokenizer:
    vocabulary = {f"{word}</w>": i for i, word in enumerate([*WORDS, "##s"])}
    vocabulary |= {"<|startoftext|>": 48, "<|endoftext|>": 49}
    return CLIPTokenizer(vocabulary, [], model_max_length=LENGTH)  # type: ignore[arg-type]


def clip_config(width: int, **settings: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=50,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=48,
        eos_token_id=49,
        **settings,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """Images of 16 pixels."""
    return StableDiffusionXLPipeline(
        vae=vae(2),
        text_encoder=CLIPTextModel(clip_config(16)),
        text_encoder_2=CLIPTextModelWithProjection(
            clip_config(24, projection_dim=20, hidden_act="gelu")
        ),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=68,
            transformer_layers_per_block=[1, 2],
            use_linear_projection=True,
        ),
        scheduler=scheduler(),
        add_watermarker=False,
    )


def flow() -> StableDiffusion3Pipeline:
    """Images of 16 pixels."""
    t5 = T5Config(vocab_size=64, d_model=48, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    words = [(n, 0.0) for n in ("<pad>", "</s>", "<unk>", "s")] + [(f"▁{w}", -1.0) for w in WORDS]
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=48,
            pooled_projection_dim=32,
            pos_embed_max_size=12,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(2, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config(16, projection_dim=12)),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(24, projection_dim=20)),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=T5Tokenizer(vocab=words, extra_ids=0),
    )


def flux(*, distilled: bool = True) -> FluxPipeline:
    """Images of 256 pixels, as its settings tell no size; schnell where not distilled."""
    t5 = T5Config(vocab_size=64, d_model=48, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    words = [(n, 0.0) for n in ("<pad>", "</s>", "<unk>", "s")] + [(f"▁{w}", -1.0) for w in WORDS]
    dynamic = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            pooled_projection_dim=16,
            guidance_embeds=distilled,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**(dynamic if distilled else {})),
        vae=vae(2, scaling_factor=0.4, shift_factor=0.1, use_quant_conv=False),
        text_encoder=CLIPTextModel(clip_config(16)),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5Tokenizer(vocab=words, extra_ids=0),
    )


def schnell() -> FluxPipeline:
    """FLUX without learnt guidance, and without a shift that grows with the image."""
    return flux(distilled=False)


MAKERS = {"flow": flow, "flux": flux, "ldm": ldm, "schnell": schnell, "sdxl": sdxl}
"""Families, by their adapters' names; FLUX has two kinds."""


def pipeline(family: str) -> Any:
    """A pipeline of random networks, the same at each call, whose outputs are not small."""
    torch.manual_seed(0)
    made = MAKERS[family]()
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    with torch.no_grad():
        for name in ("unet", "transformer"):
            for parameter in getattr(made, name, torch.nn.Module()).parameters():
                parameter.mul_(1.5)
    made.set_progress_bar_config(disable=True)
    return made


def edit_json(file: Path, **fields: object) -> None:
    """Change fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
