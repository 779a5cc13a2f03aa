"""Whatever foreign checkpoint holds a generator that is no domain."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyclelight.domains.adapters.adm import read_state
from cyclelight.domains.adapters.ddgan import is_ddgan, load_ddgan
from cyclelight.domains.adapters.diffae import is_diffae, load_diffae
from cyclelight.domains.generator_folder import GeneratorNetwork
from cyclelight.domains.model_files import read_tensors


@dataclass(frozen=True)
class GeneratorFlags:
    """What the tensors of a generator do not tell.

    Args:
        timesteps: of DDGAN: steps from noise to image that it was trained for; by default 4.
        codes: of DiffAE: the `latent.pkl` with the statistics of the codes.
        latent_beta_start: of DiffAE: the schedule of its latent prior is linear, from this
            variance; by default 1e-4
        latent_beta_end: to this one; by default 0.02. The published FFHQ models have 0.008 twice.
    """

    timesteps: int | None = None
    codes: str | None = None
    latent_beta_start: float | None = None
    latent_beta_end: float | None = None


def read_generator(
    source: str, image_size: int | None, flags: GeneratorFlags
) -> tuple[GeneratorNetwork, dict[str, Any]] | None:
    """(the network, what a card tells of it), or None if `source` holds no DDGAN and no DiffAE.

    Raises:
        ValueError: it is one, but cannot be read; a flag is missing, or not for it.
    """
    path = Path(source)
    told = {name: value for name, value in asdict(flags).items() if value is not None}
    kind = _kind(path)
    allowed = {"ddgan": {"timesteps"}, "diffae": {*asdict(flags)} - {"timesteps"}}
    for name in told:
        if name not in allowed.get(kind, ()):
            raise ValueError(f"--generator.{name} is not for {source}")
    if not kind:
        return None
    if image_size is None:
        raise ValueError("the image size cannot be told from the tensors: give --flags.image_size")
    if kind == "ddgan":
        return load_ddgan(path, image_size=image_size, **told), {"flags": told}
    network, has_prior = load_diffae(path, image_size=image_size, **told)
    told.pop("codes", None)
    return network, {"flags": told, "latent_prior": has_prior}


def _kind(path: Path) -> str:
    if path.suffix in (".pt", ".pth", ".safetensors") and path.is_file():
        return "ddgan" if is_ddgan(read_state(path)) else ""
    if path.suffix == ".ckpt" and path.is_file():
        return "diffae" if is_diffae(read_tensors(path, "import")) else ""
    return ""
