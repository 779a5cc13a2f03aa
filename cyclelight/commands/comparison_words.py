"""The command line of each run of a comparison."""

import json
import sys
from typing import Any

from cyclelight.commands.comparison_plan import EDITS, SOURCES, Comparison, device_of
from cyclelight.runs.comparison_cell import Cell


def words_of(comparison: Comparison, cell: Cell) -> list[str]:
    """The words of `predict`, or of `edit`, that run a cell."""
    options, device = comparison.options, device_of(comparison.options)
    given = {
        "model.method": json.dumps(cell.setting.method_words()),
        "model.seed": cell.seed,
        **(_of_edits(comparison, cell) if comparison.edits else _of_domains(comparison)),
        "data.reference": options.data.reference,
        "data.truth": options.data.truth,
        "data.candidates": options.data.candidates,
        "data.batch_size": options.data.batch_size,
        "data.fit_mode": options.data.fit_mode,
        "scores.protocol": options.protocol,
        "scores.network": options.network,
        "scores.weights": options.weights,
        "scores.classes": comparison.classes,
        "scores.dino": options.dino,
        "trainer.accelerator": {"cuda": "gpu"}.get(device, device),
        "trainer.devices": 1,
        "trainer.precision": comparison.precision,
        "trainer.enable_progress_bar": str(sys.stderr.isatty()).lower(),
        "output": cell.root,
    }
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def _of_domains(comparison: Comparison) -> dict[str, Any]:
    options = comparison.options
    return {
        "model.source": options.source,
        "model.target": options.target,
        "data.source": comparison.root / SOURCES,
    }


def _of_edits(comparison: Comparison, cell: Cell) -> dict[str, Any]:
    options, edit = comparison.options, dict(cell.setting.edit)
    if edit.get("control") is not None:
        edit["control"] = json.dumps(edit["control"])
    return {
        "model.model": options.model,
        **{f"model.{name}": value for name, value in edit.items()},
        "data.source": comparison.root / EDITS,
        "scores.clip": options.clip,
        "scores.least_match": options.least_match,
    }
