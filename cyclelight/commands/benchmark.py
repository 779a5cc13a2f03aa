"""`lightning benchmark`: how fast images are translated on this machine, against two yardsticks."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from tabulate import tabulate

from cyclelight.chains.engine import best_precision
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.domains.domain import Domain, check_pair
from cyclelight.domains.folder import check_domain_path, load_domain
from cyclelight.errors import at_least, first_line
from cyclelight.files import write_text
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.networks.adm import ADMSettings
from cyclelight.runs.timing import Case, Machine, Timing, device_name, random_domain, time_cases

DESCRIPTION = "Time the translation on this machine, each way to speed it up beside the plain one."
EPILOG = """\
`plain` is the published procedure: one image after another, float32, the code stored. `published`
is the same at the paper's own 1,000 steps. `x plain` compares images per second at equal settings,
`x published` with that procedure, or, if it is not run, with as many of the plain one's calls.
`floor` is the share of the time that the bare network calls take, at that batch and precision,
timed in turns with the whole; `chip` the arithmetic done per second, as a share of a large matrix
product's on the same device, in float32 or bfloat16, whichever is faster. `spread` is between the
repeats. `levels` is the largest difference from the plain result, of 255, and `off` the share of
values that differ by more than one level. `fast recipe` is `CycleDiffusion.fast`."""

TOGETHER = 64
"""States that a call of the source's network gets where timesteps go together."""

HEAD = (
    *("way", "batch", "calls", "images/s", "s/image", "spread", "x plain", "x published", "floor"),
    *("chip", "MB", "levels", "off"),
)


def _parser() -> ArgumentParser:
    parser = make_parser("benchmark", "[--OPTION VALUE ...]", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("--source", type=str, default="checkpoints/cat", help="A domain.")
    add("--target", type=str, default="checkpoints/dog", help="A domain it can be paired with.")
    add(
        "--random",
        action="store_true",
        help="In place of both: the 93.6 M network of AFHQ at 256 pixels, with random weights.",
    )
    add("--device", type=str, default="auto", help="cpu or cuda; auto takes a GPU if there is one.")
    add("--batch_size", type=int, default=8, help="Images that are translated together.")
    add("--steps", type=int, default=50, help="Steps of all ways but the last and published ones.")
    add("--repeats", type=int, default=3, help="Timings of each, at most; the median is told.")
    add("--compile", action="store_true", help="Compiled networks too: minutes on a CPU.")
    add("--published", type=bool, default=True, help="Run the paper's 1,000 steps, once.")
    add("--output", type=str | None, help="Folder for benchmark.json and benchmark.md.")
    return parser


def benchmark(args: list[str]) -> int:
    """`lightning benchmark`; the exit code."""
    with usage():
        options = _parser().parse_args(args)
        at_least(1, batch_size=options.batch_size, repeats=options.repeats)
        at_least(2, steps=options.steps)
        device = _device(options.device)
        pair = _pair(options.source, options.target, random=options.random)
    machine = Machine(device)
    fast = best_precision(device)
    cases = cases_of(options, fast, graphs=device.type == "cuda")
    timings: list[Timing] = []
    for timing in time_cases(
        pair, cases, machine, repeats=options.repeats, judge=not options.random
    ):
        timings.append(timing)
        if options.output is not None:  # Each at once, as some take minutes.
            write(Path(options.output), machine, timings)
    print(f"{device_name(device)}, {pair[0].resolution} x {pair[0].resolution} pixels")
    print(tabulate(rows(timings), HEAD, disable_numparse=True))
    return 0


def write(folder: Path, machine: Machine, timings: list[Timing]) -> None:
    """`benchmark.json` and `benchmark.md` of what is timed so far."""
    folder.mkdir(parents=True, exist_ok=True)
    name = device_name(machine.device)
    kept = {"device": name, "torch": torch.__version__, **machine.facts}
    kept["timings"] = [timing.as_dict() for timing in timings]
    write_text(folder / "benchmark.json", json.dumps(kept, indent=2) + "\n")
    text = tabulate(rows(timings), HEAD, tablefmt="github", disable_numparse=True)
    write_text(folder / "benchmark.md", f"{name}\n\n{text}\n")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {first_line(error)}") from error
    return torch.device(name)


def _pair(source: str, target: str, *, random: bool) -> tuple[Domain, Domain]:
    if random:
        return random_domain(ADMSettings(), 256, 0), random_domain(ADMSettings(), 256, 1)
    paths = [
        check_domain_path(path, name) for name, path in (("source", source), ("target", target))
    ]
    check_pair(*(load_domain(path, device="meta") for path in paths))
    pair = load_domain(paths[0]), load_domain(paths[1])
    return pair


def cases_of(options: Namespace, fast: str, *, graphs: bool) -> list[Case]:
    """The ways, from the plain one to all that helps together."""
    steps, batch = options.steps, options.batch_size
    cases = [
        *([Case("published", 1000, eta=0.1, stored=True, once=True)] * options.published),
        Case("plain", steps, stored=True),
        Case("lockstep", steps),
        Case("batched", steps, batch),
    ]
    quick = Case("+ channels last", steps, batch, engine=True)
    cases += [quick] * (not graphs)  # On GPUs only where networks are compiled.
    if fast != quick.precision:
        quick = replace(quick, name=f"+ {fast}", precision=fast)
        cases.append(quick)
    one = replace(quick, name="one image", batch=1)
    cases += [one, replace(one, name="+ timesteps together", parallel=TOGETHER)]
    if graphs:
        quick = replace(quick, name="+ graphs", graphs=True)
        one = replace(quick, name="one image, graphs", batch=1)
        cases += [quick, one, replace(one, name="+ timesteps together", parallel=TOGETHER)]
    if options.compile:
        quick = replace(quick, name="+ compiled", compiled=True)
        one = replace(quick, name="one image, compiled", batch=1)
        cases += [quick, replace(one, name="+ timesteps together", parallel=TOGETHER)]
    recipe = CycleDiffusion.fast()
    return [*cases, replace(quick, name="fast recipe", steps=recipe.steps, eta=recipe.eta)]


def rows(timings: list[Timing]) -> list[list[str]]:
    """The table's cells."""
    plain = next((t for t in timings if t.case.name == "plain"), timings[0])
    rate = {t.case.name: t.images_per_second for t in timings}
    calls = 2 * 850 + 100
    published = rate.get("published", plain.images_per_second * plain.calls / calls)
    table = []
    for t in timings:
        equal = (t.case.steps, t.case.eta) == (plain.case.steps, plain.case.eta)
        table.append(
            [
                t.case.name,
                str(t.case.batch),
                f"{t.calls:.0f}",
                f"{t.images_per_second:.3g}",
                f"{1 / t.images_per_second:.3g}",
                f"{t.spread:.1%}" if t.repeats > 1 else "",
                f"{t.images_per_second / plain.images_per_second:.2f}" if equal else "",
                f"{t.images_per_second / published:.1f}",
                f"{t.floor:.1%}",
                "" if t.chip is None else f"{t.chip:.1%}",
                "" if t.megabytes is None else f"{t.megabytes:.0f}",
                "" if t.levels is None else str(t.levels),
                "" if t.off is None else f"{t.off:.2%}",
            ]
        )
    return table
