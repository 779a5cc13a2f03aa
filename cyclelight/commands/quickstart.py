"""`lightning quickstart`: from two folders of images to a pair of domains and translations."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from jsonargparse import ArgumentParser, Namespace

from cyclelight.chains.engine import best_precision
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.commands.quickstart_page import write_page
from cyclelight.commands.quickstart_survey import Survey, survey, table
from cyclelight.domains.folder import check_domain_path, load_domain
from cyclelight.errors import BadValue, at_least
from cyclelight.networks import arrange
from cyclelight.networks.unet import UNetSettings

DESCRIPTION = "Train a domain on each of two folders, and translate between them as they learn."
EPILOG = """\
Looks at both folders, chooses size and number of steps for this machine, trains both domains in
turns, and after each turn translates images that were held out: OUTPUT/index.html fills while it
runs. Stopped, the same command goes on. --dry-run prints the commands that it would run."""
BATCH = 16
DEMO = Path(__file__).parents[2] / "checkpoints" / "dog"
"""What starts best, where the program runs from a clone."""
EPOCHS = 300
"""More would only learn the images by heart."""


@dataclass(frozen=True)
class Plan:
    """What is going to be run.

    Args:
        resolution: side of the images in pixels.
        steps: of each domain, in all.
        seconds: that one of them takes.
        precision: of the trainer.
        ancestor: the domain that both start from; None for a network of their own.
    """

    resolution: int
    steps: int
    seconds: float
    precision: str
    ancestor: str | None


def _parser() -> ArgumentParser:
    parser = make_parser("quickstart", "FOLDER FOLDER [--OPTION VALUE ...]", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("folders", nargs=2, metavar="FOLDER", help="A folder of images of one kind, each.")
    add("--output", type=str, default="quickstart", help="Folder for all that is made.")
    add("--minutes", type=float, default=60.0, help="How long the training may take in all.")
    add("--turns", type=int, default=4, help="How often the images held out are translated.")
    add(
        "--init_from",
        type=str | None,
        help="A domain that both start from, which small sets need; by default the demo's "
        "checkpoints/dog, where the program runs from a clone. `none` to start from scratch.",
    )
    add("--dry-run", action="store_true", help="Print the commands instead of running them.")
    return parser


def quickstart(args: list[str]) -> int:
    """`lightning quickstart`; the exit code."""
    with usage():
        options = _parser().parse_args(args)
        at_least(1, turns=options.turns)
        if not options.minutes > 0:
            raise BadValue("minutes", f"minutes must be above 0, got {options.minutes}")
        folders = [Path(folder) for folder in options.folders]
        if folders[0].resolve().name == folders[1].resolve().name:
            raise ValueError(f"both folders are called {folders[0].resolve().name}: rename one")
        surveys = [survey(folder) for folder in folders]
        print(table(surveys))
        plan = choose(surveys, options)
    names = [one.name for one in surveys]
    print(describe(plan, options.minutes))
    output = Path(options.output)
    if not options.dry_run:
        for one in surveys:
            one.link(output / "data" / one.name)
    if options.dry_run:
        for turn in range(1, options.turns + 1):
            for command in commands(names, plan, output, turn, options.turns):
                print("lightning " + shlex.join(command))
        return 0
    for turn in range(1, options.turns + 1):
        state = f"turn {turn} of {options.turns}"
        write_page(output, names, table(surveys), state, running=True)
        if all((output / f"{a}_to_{b}_{turn}.png").is_file() for a, b in pairs(names)):
            continue
        for command in commands(names, plan, output, turn, options.turns):
            code = subprocess.call([sys.executable, "-m", "cyclelight", *command])
            if code:
                write_page(output, names, table(surveys), f"{state} stopped", running=False)
                return code
        for a, b in pairs(names):
            made = output / "translated" / f"{a}_to_{b}" / "gallery.png"
            shutil.copy(made, output / f"{a}_to_{b}_{turn}.png")
    write_page(output, names, table(surveys), "done", running=False)
    print(f"The translations after each turn: {output / 'index.html'}")
    return 0


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """Both directions."""
    return [(names[0], names[1]), (names[1], names[0])]


def choose(surveys: list[Survey], options: Namespace) -> Plan:
    """Size, steps and precision for this machine.

    Raises:
        ValueError: there is no such ancestor, or the images are too small for it.
    """
    ancestor = options.init_from
    if ancestor is None and DEMO.is_dir():
        ancestor = os.path.relpath(DEMO)
    ancestor = None if ancestor in (None, "none") else ancestor
    device = "cuda" if torch.cuda.is_available() else "cpu"
    resolution = 64 if device == "cuda" else 48
    if ancestor is not None:
        known = load_domain(check_domain_path(ancestor, "init_from"), device="meta")
        resolution = max(resolution, known.resolution) if device == "cuda" else known.resolution
    smallest = min(s.side for s in surveys)
    if smallest < 32:
        raise ValueError(f"the images are too small: of {smallest} pixels, where 32 are needed")
    precision = best_precision(device)
    seconds = seconds_of_a_step(ancestor, resolution, device, precision)
    fits = int(options.minutes * 60 / 2 / seconds)
    most = EPOCHS * max(len(s.files) for s in surveys) // BATCH
    return Plan(resolution, max(options.turns, min(fits, most)), seconds, precision, ancestor)


def seconds_of_a_step(ancestor: str | None, resolution: int, device: str, precision: str) -> float:
    """How long a step of training takes here: the median of three, forward and back."""
    if ancestor is None:
        network = scratch(resolution).build(resolution=resolution, channels=3)
    else:
        denoiser = load_domain(ancestor).denoiser
        network = denoiser.network.requires_grad_(True).train()  # type: ignore[attr-defined]
    arrange(network.to(device))
    x = torch.zeros(BATCH, 3, resolution, resolution, device=device)
    t = torch.zeros(BATCH, dtype=torch.long, device=device)
    half = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        with half:
            loss = network(x, t).sample.square().mean()
        loss.backward()
        loss.item()  # A device is waited for.
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def scratch(resolution: int) -> UNetSettings:
    """The network without an ancestor: with attention where the image is a quarter as large."""
    return UNetSettings((32, 96, 160), 1, (resolution // 4,))


def describe(plan: Plan, minutes: float) -> str:
    """The plan in a line or two."""
    start = f"from {plan.ancestor}" if plan.ancestor else "from scratch"
    expected = 2 * plan.steps * plan.seconds / 60
    lines = [
        f"{plan.resolution} x {plan.resolution} pixels, {plan.steps} steps of {BATCH} images for "
        f"each domain, {start}, {plan.precision}: about {expected:.0f} of {minutes:.0f} minutes, "
        f"translations beside"
    ]
    if plan.ancestor and Path(plan.ancestor).resolve().parent.name == "checkpoints":
        lines.append("The demo's domains, and what starts from them, are for research only.")
    return "\n".join(lines)


def commands(
    names: list[str], plan: Plan, output: Path, turn: int, turns: int
) -> Iterator[list[str]]:
    """The words of each command of a turn: two fits, two translations."""
    steps = plan.steps * turn // turns
    every = max(1, plan.steps // turns)
    for name in names:
        where = output / name
        given: dict[str, object] = {
            "model.name": name,
            "model.resolution": plan.resolution,
            "model.weighting": "min_snr",
            "model.learning_rate": 2e-4 if plan.ancestor else 3e-4,
            "model.warmup_steps": min(200, max(1, plan.steps // 10)),
            "model.ema_decay": 0.999,
            "data.root": output / "data" / name,
            "data.train": "train",
            "data.val": "val",
            "data.batch_size": BATCH,
            "trainer.max_steps": steps,
            "trainer.max_epochs": -1,
            "trainer.precision": plan.precision,
            "trainer.gradient_clip_val": 1.0,
            "trainer.val_check_interval": every,
            "trainer.check_val_every_n_epoch": "null",
            "output": where,
        }
        if plan.ancestor:
            given["model.init_from"] = plan.ancestor
        else:
            given["model.prediction_type"] = "v_prediction"
            network = scratch(plan.resolution)
            given["model.network.block_out_channels"] = list(network.block_out_channels)
            given["model.network.layers_per_block"] = network.layers_per_block
            given["model.network.attention_resolutions"] = list(network.attention_resolutions)
        if turn > 1 or (where / "checkpoints" / "last.ckpt").is_file():
            given["ckpt_path"] = "last"
        yield ["fit", *words(given)]
    for a, b in pairs(names):
        yield [
            "predict",
            *words(
                {
                    "model.source": output / a / "domain",
                    "model.target": output / b / "domain",
                    "data.source": output / "data" / a / "val",
                    "data.num_workers": 0,
                    "output": output / "translated" / f"{a}_to_{b}",
                }
            ),
            "--overwrite",
        ]


def words(given: dict[str, object]) -> list[str]:
    """The options as words of a command line."""
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]
