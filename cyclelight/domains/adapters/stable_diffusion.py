"""Stable Diffusion 1.x and 2.x, and whatever diffusers lays out so: a folder -> `TextModel`.

    FOLDER/model_index.json  unet/  scheduler/  text_encoder/  tokenizer/  vae/ (a latent space's)

So does `TextModule` lay out its models, without `vae/`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from cyclelight.diffusion.denoiser import NetworkDenoiser, PredictionType
from cyclelight.diffusion.latent_schedule import LatentDiffusionSchedule
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.autoencoder import Autoencoder
from cyclelight.domains.autoencoder_folder import load_autoencoder
from cyclelight.domains.model_files import (
    build,
    check_loaded,
    check_size,
    check_weights,
    held,
    judged,
    load_model,
)
from cyclelight.domains.schedulers import completed, schedule_of
from cyclelight.errors import BadValue, MissingFile, first_line
from cyclelight.files import read_json
from cyclelight.networks.sizes import check_config
from cyclelight.text.control import Spelling
from cyclelight.text.guided import Embeddings
from cyclelight.text.model import TextModel, TextReader
from cyclelight.text.tokens import check_length, token_ids

PARTS = {
    "unet": "config.json",
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
}
"""What a folder must have, and the file by which each part is known."""
FILES = [
    "model_index.json",
    "card.json",
    "scheduler/*.json",
    *(f"tokenizer/{name}" for name in ("*.json", "merges.txt")),
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    *(
        f"{part}/{name}{suffix}"
        for part, name in (
            ("unet", "diffusion_pytorch_model"),
            ("vae", "diffusion_pytorch_model"),
            ("text_encoder", "model"),
        )
        for suffix in (".safetensors", ".safetensors.index.json", "-*-of-*.safetensors")
    ),
]
"""What is downloaded: whole precision, and safetensors alone."""
FOREIGN = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Settings of a UNet that is told more than a text."""


class CLIPReader(TextReader):
    """One text encoder of CLIP's kind: its last hidden states are what the network takes.

    Args:
        encoder: a CLIPTextModel.
        tokenizer: its tokenizer.
    """

    def __init__(self, encoder: nn.Module, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        config: Any = encoder.config
        # A tokenizer whose folder does not say so has no longest text.
        self._length = min(tokenizer.model_max_length, config.max_position_embeddings)

    @property
    def length(self) -> int:
        return self._length

    def spell(self, text: str) -> Spelling:
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        return Spelling(text, ids, [str(self.tokenizer.decode(i)).strip() for i in ids[1:-1]])

    def check(self, texts: Sequence[str]) -> None:
        check_length(self.tokenizer, texts, self.length)

    def forward(self, texts: Sequence[str]) -> Embeddings:
        ids = token_ids(self.tokenizer, texts, self.length)
        ids = ids.to(next(self.encoder.parameters()).device)
        return (self.encoder(ids).last_hidden_state,)


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
    _check_parts(folder)
    bare = torch.device(device).type == "meta"
    config = read_json(folder / "unet" / "config.json", "model")
    _check_unet(folder, config)
    schedule, prediction_type = _schedule(folder)
    vae = folder / "vae"
    autoencoder = load_autoencoder(vae, "model") if vae.is_dir() else None
    with judged("model", folder / "unet" / "config.json"):
        unet = build(config, UNet2DConditionModel)
    _check_channels(folder, config, autoencoder)
    reader = CLIPReader(_encoder(folder, bare), _tokenizer(folder))
    encoder: Any = reader.encoder
    width = encoder.config.hidden_size
    if unet.config.cross_attention_dim != width:
        raise BadValue(
            "model",
            f"model: {folder}: unet reads texts of {unet.config.cross_attention_dim} channels, "
            f"text_encoder writes {width}",
        )
    if not bare:
        check_weights(folder / "unet", "model")
        unet = load_model(UNet2DConditionModel, folder / "unet", "model")
        # diffusers' own `to` warns about layers to be kept in float32, even where there are none.
        nn.Module.to(unet, torch.float32)
    factor = 1 if autoencoder is None else autoencoder.factor
    side = int(config["sample_size"]) * factor if resolution is None else resolution
    _check_resolution(side, factor << (len(unet.config.block_out_channels) - 1))
    card = folder / "card.json"
    model = TextModel(
        NetworkDenoiser(unet, schedule, prediction_type=prediction_type),
        reader,
        side,
        name,
        read_json(card, "model") if card.is_file() else {},
        autoencoder,
    )
    model.requires_grad_(False).eval()
    return model if bare else nn.Module.to(model, device)


def _check_parts(folder: Path) -> None:
    for part, file in PARTS.items():
        # A tokenizer of old has its two tables and nothing else.
        names = (file, "vocab.json", "tokenizer.json") if part == "tokenizer" else (file,)
        if not any((folder / part / name).is_file() for name in names):
            raise MissingFile(
                "model", f"model: {folder} is no text model: it has no {part}/{names[-1]}"
            )


def _check_unet(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("_class_name")
    if kind != "UNet2DConditionModel":
        raise BadValue("model", f"model: {folder}/unet is a {kind}, not a UNet2DConditionModel")
    for field in FOREIGN:
        if config.get(field) is not None:
            raise BadValue(
                "model",
                f"model: {folder}/unet has {field} {config[field]}: it is told more than one text, "
                f"as that of SDXL is, which is not read here",
            )
    if not isinstance(config.get("sample_size"), int):
        raise BadValue("model", f"model: {folder}/unet/config.json has no sample_size")


def _schedule(folder: Path) -> tuple[NoiseSchedule, PredictionType]:
    """Its schedule, shifted where the scheduler says so, and what the network predicts."""
    config = read_json(folder / "scheduler" / "scheduler_config.json", "model")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in get_args(PredictionType):
        raise BadValue(
            "model", f"model: {folder}: prediction_type {prediction_type!r} is not supported"
        )
    try:
        schedule = schedule_of(config)
        found = completed(config, ("set_alpha_to_one", "steps_offset"))
        shift = {"set_alpha_to_one": True, "steps_offset": 0}
        own = {field: found.get(field, plain) for field, plain in shift.items()}
        if own != shift:
            schedule = LatentDiffusionSchedule.from_diffusers({**schedule.to_diffusers(), **own})
    except ValueError as error:
        raise BadValue("model", f"model: {folder}: {first_line(error)}") from error
    return schedule, prediction_type


def _check_channels(folder: Path, config: dict[str, Any], autoencoder: Autoencoder | None) -> None:
    states = 3 if autoencoder is None else autoencoder.latent_channels
    found = (config.get("in_channels"), config.get("out_channels"))
    if found != (states, states):
        what = "pixels have" if autoencoder is None else "latents of its vae have"
        raise BadValue(
            "model",
            f"model: {folder}/unet takes {found[0]} channels and gives {found[1]}, where {what} "
            f"{states}: a model for inpainting, or of a folder without its vae, is not read here",
        )


def _check_resolution(side: int, multiple: int) -> None:
    if side < multiple or side % multiple:
        raise BadValue(
            "resolution", f"resolution must be a multiple of {multiple} for this model, got {side}"
        )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        found: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise a dozen kinds for a bad file
        told = f"model: {folder / 'tokenizer'} cannot be read: {first_line(error)}"
        raise BadValue("model", told) from error
    assert isinstance(found, CLIPTokenizer)
    return found


def _encoder(folder: Path, bare: bool) -> nn.Module:
    """The text encoder, in float32; on the device `meta` if it is to be bare."""
    path = folder / "text_encoder"
    config = read_json(path / "config.json", "model")
    kinds = config.get("architectures") or ["CLIPTextModel"]
    if kinds[0] not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise BadValue("model", f"model: {path} is a {kinds[0]}, not a CLIPTextModel")
    with judged("model", path / "config.json"), torch.device("meta"):
        check_config(config, CLIPTextConfig)
        shape = CLIPTextModel(CLIPTextConfig(**config))
    if bare:
        return shape
    check_weights(path, "model")
    with judged("model", path / "config.json"):
        check_size(shape, held(path))
    log: Any = transformers_logging
    verbosity, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    kind: Any = CLIPTextModel
    try:
        model, report = kind.from_pretrained(
            path, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # transformers and safetensors raise a dozen kinds for a bad file
        raise BadValue("model", f"model: {path} cannot be read: {first_line(error)}") from error
    finally:
        log.set_verbosity(verbosity)
        if shown:
            log.enable_progress_bar()
    check_loaded(report, path, "model")
    assert isinstance(model, nn.Module)
    return model
