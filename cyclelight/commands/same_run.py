"""Whether `predict` may write to a folder, and what it keeps there to know that the next time."""

import os
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from cyclelight.commands.lightning_cli import SaveConfig
from cyclelight.files import write_json
from cyclelight.runs.folder import IMAGES, MADE_BY, RunFolder
from cyclelight.runs.task import Task, task_of
from datamodules.predict_data import PredictData

INDIFFERENT = (
    *("data.batch_size", "data.num_workers", "data.on_error"),
    *("data.reference", "data.truth", "data.candidates"),
)
"""Settings that may change between two runs of `predict` into one folder."""
CONFIG = "config.yaml"
PATHS = ("source", "masks")
"""Of the data's settings, those that are kept by their full paths."""
OF_PARTS = (("model", "target"), ("data", "reference"))
"""Settings that are lists where a task has several parts: a value for each."""
START_OVER = "take another --output, or start over with --overwrite"


class SaveRun(SaveConfig):
    """Keep the settings and the weights' SHA-256 when all is loaded and images will be made.

    Until then they belong to those of an earlier run.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On the first process."""
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "predict")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The sources by their full paths, since the next run may be started elsewhere."""
        given = self.config
        for part, task in task_of(pl_module).parts.items():
            self.config = alone(given, task_of(pl_module), part).clone()
            settings = self.config.data.get("init_args", {})
            for name in PATHS:
                if settings.get(name):
                    settings[name] = os.path.realpath(settings[name])
            super().save_config(trainer, pl_module, stage)
            write_json(Path(self.config.output) / MADE_BY, task.made_by())


def alone(config: Namespace, task: Task, part: str) -> Namespace:
    """The settings of a run that makes one part alone, into the folder of that part."""
    if not part:
        return config
    config, number = config.clone(), list(task.parts).index(part)
    config.output = str(Path(config.output) / part)
    for group, name in OF_PARTS:
        settings = config[group].get("init_args", {})
        given = settings.get(name)
        if isinstance(given, list) and len(given) == len(task.parts):  # Else the data refuse it.
            settings[name] = given[number]
    return config


def check_apart(data: Any, folder: RunFolder) -> None:
    """ValueError if the run would write among its sources, or into the folder of a fit."""
    if not isinstance(data, PredictData):
        return  # Refused when the run begins.
    root, searched = folder.root.resolve(), data.searched
    if searched is not None and root.is_relative_to(searched.resolve()):
        raise ValueError(
            f"the output folder {folder.root} lies in {searched}, below which sources are looked "
            f"for, so that its images would be sources, too: take an --output elsewhere"
        )
    for parent in data.source_folders:
        if parent.resolve() == root or parent.resolve().is_relative_to(root / IMAGES):
            raise ValueError(
                f"the sources in {parent} lie where this run would write: take another --output"
            )
    if (root / "checkpoints").is_dir():
        raise ValueError(f"the output folder {folder.root} is that of a fit: take another --output")


def check_same_run(
    parser: LightningArgumentParser, config: Namespace, task: Task, folder: RunFolder
) -> None:
    """ValueError if the images in the folder were made by other settings or other weights."""
    if not folder.manifest():
        return
    made_by, present = _kept(folder, MADE_BY), task.made_by()
    # Where weights lie may change: it is known which they are.
    indifferent = {*INDIFFERENT, *(f"model.{name}" for name in {*made_by, *present})}
    there = _decisive(_kept(folder, CONFIG))
    now = _decisive(yaml.safe_load(parser.dump(config, skip_unset=False)))
    names = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
    if names := [name for name in names if name not in indifferent]:
        told = "; ".join(f"--{name} was {there.get(name)}, now {now.get(name)}" for name in names)
        raise ValueError(f"the images in {folder.root} were made otherwise: {told}; {START_OVER}")
    changed = [name for name in present if made_by.get(name) != present[name]]
    if changed:
        told = " and ".join(f"--model.{name} {now.get(f'model.{name}')}" for name in changed)
        raise ValueError(
            f"the images in {folder.root} were made by other weights than those of {told}; "
            f"{START_OVER}"
        )


def kept_precision(folder: Path) -> str | None:
    """The precision of the run that made images in a folder; None if there was none."""
    if not folder.is_dir() or not RunFolder(folder).manifest():
        return None
    try:
        return str(_decisive(_kept(RunFolder(folder), CONFIG))["trainer.precision"])
    except ValueError:
        return None  # Told, with what else is damaged, when the settings are compared.


def _kept(folder: RunFolder, name: str) -> dict[str, Any]:
    """What an earlier run wrote, as YAML or JSON, of how it made its images."""
    path = folder.root / name
    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        kept = None
    if not isinstance(kept, dict) or (name != MADE_BY and not _whole(kept)):
        raise ValueError(
            f"how the images in {folder.root} were made is not known, as {path} is missing or "
            f"damaged; {START_OVER}"
        )
    return kept


def _whole(config: dict[str, Any]) -> bool:
    """Whether it has all that `_decisive` looks at."""
    groups = [config.get(group) for group in ("model", "data")]
    settings = [group.get("init_args") for group in groups if isinstance(group, dict)]
    dicts = [config.get("trainer"), *groups, *settings]
    return len(dicts) == 5 and all(isinstance(part, dict) for part in dicts)


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that may decide what the images are, by the names of their options."""
    precision = str(config["trainer"].get("precision") or 32)
    found = {"trainer.precision": {"32": "32-true", "64": "64-true"}.get(precision, precision)}
    for group in ("model", "data"):
        found |= _options(group, config[group])
    for name in (f"data.{name}" for name in PATHS):
        if found.get(name):
            found[name] = os.path.realpath(found[name])
    return found


def _options(name: str, value: Any) -> dict[str, Any]:
    """The options below `name` of a value, which may be a class with settings of its own."""
    if not isinstance(value, dict) or "class_path" not in value:
        return {name: value}
    found = {name: value["class_path"]}
    for setting, inner in (value.get("init_args") or {}).items():
        found |= _options(f"{name}.{setting}", inner)
    return found
