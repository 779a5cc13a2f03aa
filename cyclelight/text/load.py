"""load_text_model: a text-to-image model from a folder, or from the Hugging Face Hub."""

from pathlib import Path

import torch

from cyclelight.domains.adapters.flow import FLOW
from cyclelight.domains.adapters.flux import FLUX
from cyclelight.domains.adapters.ldm import LDM
from cyclelight.domains.adapters.sdxl import SDXL
from cyclelight.domains.adapters.stable_diffusion import STABLE_DIFFUSION
from cyclelight.domains.adapters.text_parts import Family
from cyclelight.domains.hub import display_name, resolve
from cyclelight.domains.model_files import file_digest
from cyclelight.errors import BadValue, MissingFile, printable
from cyclelight.files import read_json
from cyclelight.text.model import TextModel

DOMAINS = ("DDPMPipeline", "LDMPipeline")
"""Pipelines without texts, whose folders are domains."""
FAMILIES = {
    "LDMTextToImage": LDM,
    "StableDiffusionXL": SDXL,
    "StableDiffusion3": FLOW,
    "StableDiffusion": STABLE_DIFFUSION,
    "FluxPipeline": FLUX,
}
"""Families of models, by what the names of their pipelines begin with."""


def check_model_path(path: str | Path) -> Path:
    """The folder of a text model, downloaded first if it is a name on the Hugging Face Hub.

    Raises:
        FileNotFoundError, ValueError: there is none; the message begins with `model`.
    """
    folder = resolve(path, ["model_index.json"], "model")
    if not folder.exists():
        raise MissingFile(
            "model",
            f"model: {folder} does not exist; give a text model's folder, or the owner/name of one "
            f"on the Hugging Face Hub",
        )
    if not (folder / "model_index.json").is_file():
        inner = folder / "text_model"
        hint = f"; did you mean {inner}?" if inner.is_dir() else ""
        raise BadValue("model", f"model: {folder} is no text model: no model_index.json{hint}")
    return resolve(path, family_of(folder).files, "model")


def family_of(folder: Path) -> Family:
    """What kind of model a folder with a model_index.json holds.

    Raises:
        ValueError: its images are not made of texts, or the kind is not known here.
    """
    kind = str(read_json(folder / "model_index.json", "model").get("_class_name"))
    if kind in DOMAINS:
        raise BadValue("model", f"model: {folder} is a {kind}: a domain, which reads no text")
    for start, family in FAMILIES.items():
        if kind.startswith(start):
            return family
    told = f"model: {folder} is a {printable(kind, 80)}, not one of {', '.join(FAMILIES)}..."
    raise BadValue("model", told)


def fingerprint_of(folder: Path) -> str:
    """The SHA-256 of a text model's weights, texts and settings, in hexadecimal.

    Args:
        folder: what `check_model_path` gave.
    """
    family = family_of(folder)
    kinds = ("json", "txt", "safetensors", "bin", "model")
    parts = (*family.parts, *family.optional)
    names = [f"{part}/*.{kind}" for part in parts for kind in kinds]
    names += ["model_index.json"] if family.index else []
    return file_digest([file for name in names for file in folder.glob(name)], folder)


def load_text_model(
    path: str | Path,
    *,
    resolution: int | None = None,
    tiled: bool = False,
    device: str | torch.device = "cpu",
) -> TextModel:
    """A text-to-image model: Stable Diffusion 1.x, 2.x, 3.x, XL, LDM, FLUX.1, `TextModule`'s.

    Checked on small random networks, and against lists of the published tensors; not verified with
    published weights.

    Args:
        path: a folder as diffusers lays it out, or `owner/name` or `owner/name@revision` on the
            Hugging Face Hub.
        resolution: height and width of the images in pixels; None for what it was trained at.
        tiled: let the autoencoder work on one image, and on parts of large ones, at a time: slower,
            in less memory, and with seams that are hardly seen.
        device: where the networks go; on `meta` their weights are not read.

    Returns:
        The model, in float32, in evaluation mode and without gradients; `prompted` makes a domain
        of it.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is no such model; the message says which part is wrong.
    """
    folder = check_model_path(path)
    load = family_of(folder).load
    model = load(folder, resolution=resolution, device=device, name=display_name(path))
    if tiled and model.autoencoder is not None:
        model.autoencoder.network.enable_slicing()
        model.autoencoder.network.enable_tiling()
    return model
