"""`lightning export`: a folder of ours as a file that other programs read."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from cyclelight.commands.parsing import make_parser, usage
from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.domains.adapters.adm import flags_of, save_adm
from cyclelight.domains.adapters.onnx import save_onnx
from cyclelight.domains.folder import load_domain
from cyclelight.domains.translator import load_translator
from cyclelight.networks.adm import ADMUNet

SUFFIXES = (".pt", ".onnx")


def _parser() -> ArgumentParser:
    parser = make_parser(
        "export",
        "DIR --to FILE.pt|FILE.onnx",
        "Write the ADM network of a domain folder as guided-diffusion's programs read it, and "
        "print the flags that they need: FILE.pt. Or write a generator that translates in one "
        "call, CUT's or a student's, as ONNX, which runs without torch, such as in a browser: "
        "FILE.onnx.",
    )
    parser.add_argument(
        "folder", metavar="DIR", help="The domain folder, a .ckpt of `fit`, or a generator's."
    )
    parser.add_argument("--to", type=str, required=True, metavar="FILE", help="File to write.")
    parser.add_argument(
        "--direction",
        type=int,
        default=0,
        help="Of a student that goes several ways: which one, from 0.",
    )
    return parser


def export(args: list[str]) -> int:
    """`lightning export`; the exit code."""
    with usage():
        options = _parser().parse_args(args)
        to = Path(options.to)
        if to.suffix not in SUFFIXES:
            raise ValueError(f"--to: the file must end in .pt or .onnx, got {to}")
        if to.exists():
            raise ValueError(f"--to: {to} exists already; name a new file")
        if not to.absolute().parent.is_dir():
            raise ValueError(f"--to: there is no folder {to.parent}")
        return _onnx(options, to) if to.suffix == ".onnx" else _adm(options, to)


def _onnx(options: Namespace, to: Path) -> int:
    translator = load_translator(options.folder, "DIR", direction=options.direction)
    save_onnx(to, translator)
    size, shape = to.stat().st_size / 1e6, " x ".join(map(str, translator.shape))
    print(f"Wrote {to}: {size:.1f} MB, makes {translator.name}.")
    print(f"Input images and output translations: batch x {shape}, float32 in [-1, 1].")
    return 0


def _adm(options: Namespace, to: Path) -> int:
    if options.direction:
        raise ValueError("--direction is for a generator that is written as ONNX")
    denoiser = load_domain(options.folder, device="meta").denoiser
    assert isinstance(denoiser, NetworkDenoiser)
    if not isinstance(denoiser.network, ADMUNet):
        raise ValueError(
            f"{options.folder} holds a {type(denoiser.network).__name__}; only an ADMUNet can "
            "be written as guided-diffusion's, and diffusers reads the folder as it is"
        )
    denoiser = load_domain(options.folder).denoiser
    assert isinstance(denoiser, NetworkDenoiser)
    network = denoiser.network
    assert isinstance(network, ADMUNet)
    scale = network.config.timestep_scale
    if scale != 1 and scale * denoiser.schedule.timesteps != 1000:
        raise ValueError(
            f"{options.folder}: its network counts time in {scale:g} of a timestep, which "
            f"guided-diffusion does only with {1000 / scale:g} timesteps in all"
        )
    save_adm(network, to)
    flags = " ".join(f"--{name} {value}" for name, value in flags_of(network).items())
    schedule = denoiser.schedule
    print(f"Wrote {to}. Its flags:\n{flags}")
    print(f"Schedule: {schedule.kind}, {schedule.timesteps} steps; {denoiser.prediction_type}.")
    return 0
