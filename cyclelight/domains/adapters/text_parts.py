"""What folders of text-to-image models have in common: parts, networks, schedules, cards.

Each family of models is one file beside this one, which names its parts and puts them together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import ModelMixin
from torch import nn

from cyclelight.diffusion.denoiser import NetworkDenoiser, PredictionType
from cyclelight.diffusion.latent_schedule import LatentDiffusionSchedule
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.autoencoder import Autoencoder
from cyclelight.domains.model_files import build, check_weights, judged, load_model
from cyclelight.domains.schedulers import completed, schedule_of
from cyclelight.errors import BadValue, MissingFile, first_line, printable
from cyclelight.files import read_json
from cyclelight.text.model import TextModel, TextReader

TOKENIZER = ("tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.json")
"""The files of a tokenizer, by one of which it is known: old ones have but their tables."""
FOREIGN = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Settings of a UNet that is told more than a text."""


@dataclass(frozen=True)
class Family:
    """A kind of text-to-image models, as diffusers lays them out.

    Args:
        load: (folder, *, resolution, device, name) => the model.
        parts: the folders that one must have, and the files of which one at least is in each.
        optional: further folders.
        pickled: whether they were published as pickles of tensors, not as safetensors alone.
        index: whether model_index.json has a setting of the model.
    """

    load: Callable[..., TextModel]
    parts: Mapping[str, Sequence[str]]
    optional: Sequence[str] = ("vae",)
    pickled: bool = False
    index: bool = False

    @property
    def files(self) -> list[str]:
        """Patterns of what is downloaded: whole precision, and safetensors where there are."""
        settings = ["model_index.json", "card.json", "scheduler/*.json"]
        for part in (*self.parts, *self.optional):
            if part.startswith("tokenizer"):
                names = ("*.json", "merges.txt", "vocab.txt", "spiece.model")
                settings += [f"{part}/{name}" for name in names]
            elif part != "scheduler":
                theirs = part == "bert" or part.startswith("text_encoder")  # Of transformers.
                stem = "model" if theirs else "diffusion_pytorch_model"
                ends = (".safetensors", ".safetensors.index.json", "-*-of-*.safetensors")
                settings += [f"{part}/config.json", *(f"{part}/{stem}{end}" for end in ends)]
                if self.pickled:
                    settings += [f"{part}/{stem}.bin", f"{part}/pytorch_model.bin"]
        return settings


def outline(folder: Path, part: str, kind: type[ModelMixin], *, sized: bool = True) -> Any:
    """A network of diffusers by its settings, on the device `meta`, where it takes no memory.

    Args:
        folder: the model's.
        part: its folder's name.
        kind: its class.
        sized: whether its settings tell the side of its states.

    Raises:
        ValueError: it is of another class, or its settings are wrong.
    """
    path = folder / part
    config = read_json(path / "config.json", "model")
    name = config.get("_class_name")
    if name != kind.__name__:
        raise BadValue("model", f"model: {path} is a {printable(name, 80)}, not a {kind.__name__}")
    if sized and not isinstance(config.get("sample_size"), int):
        raise BadValue("model", f"model: {path}/config.json has no sample_size")
    with judged("model", path / "config.json"):
        return build(config, kind)


def load_network(folder: Path, part: str, kind: type[ModelMixin]) -> Any:
    """A network of diffusers in float32.

    Raises:
        ValueError: its weights do not fit its settings.
    """
    check_weights(folder / part, "model")
    # diffusers' own `to` warns about layers to be kept in float32, even where there are none.
    return nn.Module.to(load_model(kind, folder / part, "model"), torch.float32)


def check_parts(folder: Path, family: Family) -> None:
    """Raises FileNotFoundError, with its name, if a part is not there."""
    for part, names in family.parts.items():
        if not any((folder / part / name).is_file() for name in names):
            kind = read_json(folder / "model_index.json", "model").get("_class_name")
            raise MissingFile(
                "model",
                f"model: {folder} is no text model: it has no {part}/{names[-1]} "
                f"({printable(kind, 80)})",
            )


def check_told(folder: Path, added: str | None = None) -> None:
    """Raises ValueError if a folder's UNet is told more than texts and what is `added` to them."""
    config = read_json(folder / "unet" / "config.json", "model")
    known = {"addition_embed_type": added}
    for field in FOREIGN:
        value = config.get(field)
        if value != known.get(field):
            raise BadValue(
                "model",
                f"model: {folder}/unet has {field} {printable(value, 80)}, not {known.get(field)}: "
                f"it is told more or less than its kind of model, which is not read here",
            )


def check_channels(
    folder: Path, part: str, network: Any, autoencoder: Autoencoder | None, packed: int = 1
) -> None:
    """Raises ValueError unless a network works on the latents of the autoencoder, or on pixels.

    Args:
        folder: the model's.
        part: the network's.
        network: of diffusers.
        autoencoder: None for pixels.
        packed: side of the patches whose channels it takes in a row.
    """
    states = packed**2 * (3 if autoencoder is None else autoencoder.latent_channels)
    found = (network.config.in_channels, network.config.out_channels or network.config.in_channels)
    if found != (states, states):
        what = "pixels have" if autoencoder is None else "latents of its vae have"
        raise BadValue(
            "model",
            f"model: {folder}/{part} takes {found[0]} channels and gives {found[1]}, where {what} "
            f"{states}: a model for inpainting, or of a folder without its vae, is not read here",
        )


def check_width(
    folder: Path, part: str, setting: str, wanted: object, found: int, who: str
) -> None:
    """Raises ValueError unless a network reads texts of as many channels as are written."""
    if wanted != found:
        told = f"model: {folder}: {part} reads {setting} of {wanted} channels, {who} {found}"
        raise BadValue("model", told)


def scheduler_config(folder: Path) -> dict[str, Any]:
    """What scheduler/scheduler_config.json holds."""
    return read_json(folder / "scheduler" / "scheduler_config.json", "model")


def schedule_and_type(folder: Path) -> tuple[NoiseSchedule, PredictionType]:
    """The schedule, shifted where the scheduler says so, and what the network predicts.

    Raises:
        ValueError: they are of another kind.
    """
    config = scheduler_config(folder)
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


def side_of(
    own: int, autoencoder: Autoencoder | None, resolution: int | None, multiple: int
) -> int:
    """Height and width of a model's images in pixels.

    Args:
        own: side of the states that its network was trained with.
        autoencoder: None for pixels.
        resolution: that is asked for; None for the model's.
        multiple: what the side of the states must be a multiple of.

    Raises:
        ValueError: the resolution does not go with the model.
    """
    factor = 1 if autoencoder is None else autoencoder.factor
    side = own * factor if resolution is None else resolution
    if side < factor * multiple or side % (factor * multiple):
        raise BadValue(
            "resolution",
            f"resolution must be a multiple of {factor * multiple} for this model, got {side}",
        )
    return side


def downsampling(unet: Any) -> int:
    """What the side of a UNet's states must be a multiple of."""
    return 1 << (len(unet.config.block_out_channels) - 1)


def put_together(
    folder: Path,
    denoiser: NetworkDenoiser,
    reader: TextReader,
    *,
    side: int,
    name: str,
    autoencoder: Autoencoder | None,
    device: str | torch.device,
    distilled: bool = False,
) -> TextModel:
    """The model of its parts, in evaluation mode, without gradients and on a device."""
    card = folder / "card.json"
    known = read_json(card, "model") if card.is_file() else {}
    model = TextModel(denoiser, reader, side, name, known, autoencoder, distilled)
    model.requires_grad_(False).eval()
    return model if is_bare(device) else nn.Module.to(model, device)


def is_bare(device: str | torch.device) -> bool:
    """Whether weights are not read, for a model of the device `meta`."""
    return torch.device(device).type == "meta"
