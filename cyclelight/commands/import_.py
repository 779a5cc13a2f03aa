"""`lightning import`: folders of ours from the field's checkpoints."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from tabulate import tabulate
from torch import nn

from cyclelight.commands.parsing import make_parser, usage
from cyclelight.diffusion.denoiser import NetworkDenoiser, PredictionType
from cyclelight.domains.adapters.adm import flags_of, load_adm, read_state
from cyclelight.domains.adapters.adm_classifier import is_classifier, load_adm_classifier
from cyclelight.domains.adapters.adm_flags import ADMFlags, plain_words
from cyclelight.domains.adapters.cut import is_cut, load_cut
from cyclelight.domains.adapters.generators import GeneratorFlags, read_generator
from cyclelight.domains.adapters.sn_ddpm import has_covariance, load_sn_ddpm
from cyclelight.domains.classifier import DomainClassifier, save_classifier
from cyclelight.domains.domain import Domain
from cyclelight.domains.folder import load_domain, save_domain
from cyclelight.domains.generator_folder import save_generator
from cyclelight.domains.hub import hub_name
from cyclelight.domains.translator import Translator, save_translator
from cyclelight.networks.cut import CUTGenerator
from cyclelight.networks.sn import Covariance

ADM_FILES = (".pt", ".pth", ".safetensors")


def _import_parser() -> ArgumentParser:
    parser = make_parser(
        "import",
        "FILE_OR_FOLDER --to DIR [--OPTION VALUE]",
        "Make a domain folder of a checkpoint: guided-diffusion's (ADM) or SN-DDPM's .pt or "
        ".safetensors, a diffusers folder, or a .ckpt of `fit`; or a generator folder of DDGAN's "
        ".pth or DiffAE's .ckpt; or a classifier folder of guided-diffusion's or EGSDE's .pt; or a "
        "folder for the method CUT of CUT's latest_net_G.pth. "
        "Files that would run code when read are refused.",
        epilog="What the tensors tell is read from them and printed; a flag of guided-diffusion's "
        "programs that contradicts them is an error. Those of sampling and training are passed "
        "over. "
        "SN-DDPM, DDGAN, DiffAE and CUT need --flags.image_size. What becomes a domain folder, "
        "a generator folder or a classifier folder is told from the tensors.",
    )
    parser.add_argument("source", metavar="FILE_OR_FOLDER", help="What to import.")
    parser.add_argument("--to", type=str, required=True, metavar="DIR", help="Folder to make.")
    parser.add_argument("--name", type=str | None, help="The domain's name; else that of DIR.")
    parser.add_argument(
        "--data_licence", type=str | None, help="Licence of the training images, for domain.json."
    )
    parser.add_class_arguments(ADMFlags, "flags")
    parser.add_argument(
        "--covariance",
        type=Literal["sn", "npr"] | None,
        help="Of SN-DDPM and NPR-DDPM: which of the two.",
    )
    parser.add_argument(
        "--classes",
        type=list[str] | None,
        metavar="[NAME, ...]",
        help="Of a classifier: the names of its classes, in the order of the logits.",
    )
    parser.add_class_arguments(GeneratorFlags, "generator")
    return parser


def import_(args: list[str]) -> int:
    """`lightning import`; the exit code."""
    with usage():
        words, passed_over = plain_words(args)
        options = _import_parser().parse_args(words)
        if passed_over:
            print(f"Not needed here: {', '.join(f'--flags.{name}' for name in passed_over)}")
        to, flags = Path(options.to), ADMFlags(**options.flags.as_dict())
        if to.exists():
            raise ValueError(f"--to: {to} exists already; name a new folder")
        more = GeneratorFlags(**options.generator.as_dict())
        generator = read_generator(options.source, flags.image_size, more)
        classifier = _read_classifier(options.source, flags, options.classes)
        translator = _read_translator(options.source, flags)
        others = any(found is not None for found in (generator, classifier, translator))
        domain = None if others else _read(options.source, flags, options.covariance)
    source = options.source if hub_name(options.source) else Path(options.source).name
    card: dict[str, Any] = {
        "name": options.name or to.resolve().name,
        "data_licence": options.data_licence or "not stated",
        "imported_from": source,
    }
    if generator is not None:
        network, told = generator
        size = network.config.sample_size
        save_generator(to, network, {**told, **card, "resolution": size})
        print(f"Wrote {to}: {_millions(network)} M parameters, {size} pixels.")
        return 0
    if classifier is not None:
        save_classifier(to, replace(classifier, card={**card, "resolution": classifier.resolution}))
        size = classifier.resolution
        print(f"Wrote {to}: {_millions(classifier.network)} M parameters, {size} pixels.")
        return 0
    if translator is not None:
        size = translator.config.sample_size
        made = Translator(translator, (card.pop("name"),), {**card, "resolution": size})
        save_translator(to, made)
        print(f"Wrote {to}: {_millions(translator)} M parameters, {size} pixels.")
        return 0
    assert domain is not None
    if not options.data_licence:
        card["data_licence"] = domain.card.get("data_licence", card["data_licence"])
    shape = {"resolution": domain.resolution, "channels": domain.channels}
    card = {**domain.card, **card, **shape}
    denoiser = domain.denoiser
    assert isinstance(denoiser, NetworkDenoiser)
    save_domain(
        to,
        denoiser.network,
        domain.schedule,
        prediction_type=denoiser.prediction_type,
        card=card,
        autoencoder=domain.autoencoder,
    )
    print(f"Wrote {to}: {_millions(denoiser.network)} M parameters, {domain.resolution} pixels.")
    return 0


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f}"


def _read_classifier(
    source: str, flags: ADMFlags, classes: list[str] | None
) -> DomainClassifier | None:
    """The classifier that a file holds; None if it holds something else."""
    path = Path(source)
    if path.suffix in ADM_FILES and path.is_file() and is_classifier(read_state(path)):
        return load_adm_classifier(path, flags, tuple(classes or ()))
    if classes is not None:
        raise ValueError(f"--classes is for a classifier, which {source} is not")
    return None


def _read_translator(source: str, flags: ADMFlags) -> CUTGenerator | None:
    """CUT's generator that a file holds; None if it holds something else."""
    path = Path(source)
    if path.suffix not in ADM_FILES or not path.is_file() or not is_cut(read_state(path)):
        return None
    if flags.image_size is None:
        raise ValueError("the image size cannot be told from the tensors: give --flags.image_size")
    for name, value in asdict(replace(flags, image_size=None)).items():
        if value != getattr(ADMFlags(), name):
            raise ValueError(f"--flags.{name} is not for {source}, which holds CUT's generator")
    return load_cut(path, image_size=flags.image_size)


def _read(source: str, flags: ADMFlags, covariance: Covariance | None) -> Domain:
    """The domain of whatever `source` is."""
    path = Path(source)
    if path.suffix not in ADM_FILES:
        if flags != ADMFlags():
            raise ValueError(
                f"--flags are for guided-diffusion's files ({', '.join(ADM_FILES)}), "
                f"which {source} is not"
            )
        return load_domain(source)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    schedule = flags.schedule
    if has_covariance(read_state(path)):
        if covariance is None:
            raise ValueError(
                f"{source} has a covariance head: give --covariance sn or --covariance npr, "
                f"whichever it was trained for"
            )
        head = load_sn_ddpm(path, flags, covariance)
        size, channels = head.config.sample_size, head.config.in_channels
        return Domain(NetworkDenoiser(head, schedule), size, channels)
    if covariance is not None:
        raise ValueError(f"--covariance is for a network with a covariance head, {source} has none")
    network = load_adm(path, flags)
    told = {name: value for name, value in asdict(flags).items() if value is not None}
    print(_table(flags_of(network), told))
    config = network.config
    card = {"data_licence": "not stated", "flags": told}
    if config.in_channels not in (1, 3):
        raise ValueError(
            f"{source} takes {config.in_channels} channels: images have 1 or 3 (networks for "
            f"super-resolution take a second image)"
        )
    kind: PredictionType = "sample" if flags.predict_xstart else "epsilon"
    denoiser = NetworkDenoiser(network, schedule, prediction_type=kind)
    return Domain(denoiser, config.sample_size, config.in_channels, card=card)


def _table(flags: dict[str, str], told: dict[str, Any]) -> str:
    """The flags of the network that was read, and how each is known."""
    assumed = {"image_size", "num_heads", "num_head_channels", "num_heads_upsample", "dropout"}
    assumed.add("rescale_timesteps")  # Of no effect with 1000 of them.
    rows = []
    for name, value in {**flags, **{n: str(v) for n, v in told.items()}}.items():
        known = "assumed" if name in assumed else "read from the tensors"
        if name in told:
            default = told[name] == getattr(ADMFlags(), name)
            known = "guided-diffusion's default" if default else "given"
        rows.append((name, value, known))
    return tabulate(rows, headers=("flag", "value", ""), disable_numparse=True)
