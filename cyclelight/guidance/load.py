"""The generator that a path names."""

import hashlib
from pathlib import Path

from cyclelight.diffusion.denoiser import Variance
from cyclelight.domains.folder import check_domain_path, fingerprint, load_domain
from cyclelight.domains.generator_folder import MARK, load_generator
from cyclelight.domains.variance import check_learned_variance
from cyclelight.errors import BadValue
from cyclelight.files import read_json
from cyclelight.guidance.generators import DDGANMap, DiffAEMap, DomainGenerator, Generator
from cyclelight.networks.ddgan import DDGANGenerator


def load_map(
    path: str,
    *,
    steps: int | None = None,
    eta: float | None = None,
    variance: Variance | None = None,
    device: str = "cpu",
) -> Generator:
    """A generator as a map, in evaluation mode and without gradients of its weights.

    Args:
        path: a domain (folder, checkpoint, or `owner/name`) or a generator folder.
        steps: timesteps of a domain's chain, by default 50, or of both chains of a diffusion
            autoencoder, by default 20; not of a DDGAN, which has its own.
        eta: of a domain's chain, 0 (DDIM) .. 1 (DDPM); by default 1.
        variance: of a domain's chain: `learned` uses a covariance head (SN-DDPM) or a learned
            range; by default `fixed`.
        device: on `meta` the weights of a domain's network are not read.

    Raises:
        FileNotFoundError, ValueError: there is no such generator, or a setting is not for it.
    """
    folder = Path(path)
    if not (folder / MARK[1]).is_file():
        if folder.is_dir() and (folder / "generator" / MARK[1]).is_file():
            raise BadValue(
                "generator", f"generator: {path} is none; did you mean {folder / 'generator'}?"
            )
        found = check_domain_path(path, "generator")
        domain = load_domain(found, variance=variance or "fixed", device=device)
        eta = 1.0 if eta is None else eta
        if variance == "learned":
            check_learned_variance(domain, {"eta": eta}, f"generator {path}")
        return DomainGenerator(domain, 50 if steps is None else steps, eta)
    network, card = load_generator(path)
    for name, value in (("eta", eta), ("variance", variance)):
        if value is not None:
            raise BadValue(name, f"{name} is for the chain of a domain, which {path} is not")
    name = str(card.get("name", folder.resolve().name))
    if isinstance(network, DDGANGenerator):
        if steps is not None:
            told = f"steps: a DDGAN has its own, {network.config.timesteps} in {path}"
            raise BadValue("steps", told)
        return DDGANMap(network, name)
    if not card.get("latent_prior"):
        raise BadValue(
            "generator",
            f"generator: {path} has no latent prior to make codes of noise; train one with "
            f"DiffAELatentModule",
        )
    steps = 20 if steps is None else steps
    return DiffAEMap(network, steps, steps, name)


def map_resolution(path: str) -> int:
    """Height and width of a generator's images, without loading it."""
    if (Path(path) / MARK[1]).is_file():
        size: int = read_json(Path(path) / "network" / "config.json", "generator")["sample_size"]
        return size
    return load_domain(check_domain_path(path, "generator"), device="meta").resolution


def map_fingerprint(path: str) -> str:
    """The SHA-256 of a generator's weights and settings, in hexadecimal."""
    if not (Path(path) / MARK[1]).is_file():
        return fingerprint(check_domain_path(path, "generator"))
    total = hashlib.sha256()
    for file in sorted((Path(path) / "network").glob("*")):
        with file.open("rb") as content:
            total.update(
                f"{hashlib.file_digest(content, 'sha256').hexdigest()} {file.name}\n".encode()
            )
    return total.hexdigest()
