"""`lightning compare`: methods, settings and seeds under one protocol, in one table."""

import os
from contextlib import ExitStack
from typing import Any

from jsonargparse import ArgumentParser

from cyclelight.commands.comparison_files import write_edits
from cyclelight.commands.comparison_guidance import plan_guidance
from cyclelight.commands.comparison_plan import EDITS, SOURCES, Comparison, plan
from cyclelight.commands.comparison_runs import Runs
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.commands.recipes import with_recipes
from cyclelight.diffusion.pixels import FitMode
from cyclelight.errors import printable
from cyclelight.files import locked, write_text
from datamodules.listing import list_images

DESCRIPTION = (
    "Compare methods of translation, of editing by texts, or ways to guide generators: settings "
    "and seeds under one protocol, in one table."
)
EPILOG = """\
Each setting with each seed is a run of `predict`, `edit` or `guide` in OUTPUT/cells; killed, the
same command goes on. OUTPUT/table.md, .csv and .tex grow meanwhile, and from time to time
OUTPUT/report.html and curves.svg, or, of guidance, ways.png. Rows are described in
configs/compare."""


def _parser() -> ArgumentParser:
    parser = make_parser(
        "compare", "--config FILE --output DIR [--OPTION VALUE ...]", DESCRIPTION, EPILOG
    )
    add = parser.add_argument
    add("--config", action="config", metavar="FILE", help="A recipe, or a file with the options.")
    add("--output", type=str, required=True, help="Folder for all that is made.")
    add(
        "--data.source",
        type=str | None,
        help="The sources: a folder or a pattern; with a model, a table of edits.",
    )
    add("--data.root", type=str | None, help="Folder of the images of a table; by default its own.")
    add("--data.reference", type=str | None, help="Folder of real images of the target.")
    add("--data.truth", type=str | None, help="Folder of the right results, named as the sources.")
    add("--data.candidates", type=str | None, help="Folder among whose images these are.")
    add("--data.n", type=int | None, help="How many sources, in a seeded order of their names.")
    add("--data.skip", type=int, default=0, help="How many of that order come before.")
    add("--data.order_seed", type=int, default=0, help="Of that order.")
    add("--data.batch_size", type=int, default=8, help="Images that are translated together.")
    add("--data.fit_mode", type=FitMode, default="crop", help="How sources are made square.")
    add("--model", type=str | None, help="The text model of edits, in place of domains.")
    add("--clip", type=str | None, help="A CLIP that judges edits by their texts.")
    add("--dino", type=str | None, help="A DINO that judges the layout, as --scores.dino.")
    add("--least_match", type=float, default=0.2, help="As --scores.least_match of `edit`.")
    add("--source", type=str | None, help="The domain of the sources.")
    add("--target", type=str | None, help="The domain to translate into.")
    add("--classifier", type=str | None, help="Folder of the classifier for EGSDE's rows.")
    add("--protocol", type=str, default="default", help="default, cyclediffusion or egsde.")
    add("--network", type=str | None, help="Feature network in place of the protocol's.")
    add("--weights", type=str | None, help="File of that network's weights.")
    add("--classes", type=str | None, help="Whose share is told; by default the target's.")
    add("--seeds", type=list[int], default=[0, 1], help="Seeds of the noise, such as [0,1].")
    add("--baseline", type=str | None, help="The line that the others are compared with.")
    add(
        "--best_by",
        type=str | None,
        help="A figure of single images, such as S_D-CLIP: of each row also the best of all its "
        "runs, image by image, goes to the table and to OUTPUT/best.",
    )
    add("--rank_by", type=str | None, help="A figure that orders the lines, the best first.")
    add("--rows", type=dict[str, Any] | None, help="Methods and settings, by name.")
    add(
        "--guide",
        type=dict[str, Any] | None,
        help="Instead of rows and sources: `generators`, `samplers` and `targets` of guidance, "
        "each settings of `lightning guide` by name; all combinations are compared.",
    )
    add("--precision", type=str | None, help="Of the networks; by default the fastest here.")
    add("--device", type=str, default="auto", help="cpu or cuda; auto takes a GPU if there is one.")
    return parser


def compare(args: list[str]) -> int:
    """`lightning compare`; the exit code."""
    parser = _parser()
    with ExitStack() as stack:
        with usage():
            options = parser.parse_args(with_recipes(args))
            compared = plan(options) if options.guide is None else plan_guidance(options)
            runs = Runs(compared) if isinstance(compared, Comparison) else compared
            stack.enter_context(locked(compared.root))
            if isinstance(compared, Comparison):
                _place_sources(compared)
        kept = options.clone()
        del kept["config"]
        write_text(compared.root / "config.yaml", parser.dump(kept))
        for note in compared.notes:
            print(printable(note))
        runs.run()
    return 0


def _place_sources(comparison: Comparison) -> None:
    """Put the table of edits into the output, or links to the sources."""
    if comparison.edits:
        write_edits(comparison.root / EDITS, comparison.edits)
    else:
        _link(comparison)


def _link(comparison: Comparison) -> None:
    """Put links to the chosen sources into a folder of their own.

    Raises:
        ValueError: other images are there.
    """
    folder, wanted = comparison.root / SOURCES, dict(comparison.files)
    folder.mkdir(exist_ok=True)
    for path in [path for path in folder.rglob("*") if path.is_symlink()]:
        target = wanted.get(path.relative_to(folder).as_posix())
        if target is None or os.readlink(path) != os.path.realpath(target):
            path.unlink()
    for key, target in wanted.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(os.path.realpath(target))
    strange = [key for key, _ in list_images(folder) if key not in wanted]
    if strange:
        raise ValueError(f"output: {folder / strange[0]} is none of the chosen sources: remove it")
