"""Whether `predict` may write to a folder, and what it keeps there to know that the next time."""

import os
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from cyclelight.commands.lightning_cli import SaveConfig, Stage
from cyclelight.domains.folder import check_domain_path, fingerprint
from cyclelight.files import write_json
from cyclelight.runs.folder import DOMAINS, IMAGES, RunFolder
from datamodules.translation_images import TranslationImages

INDIFFERENT = (
    *("data.batch_size", "data.num_workers", "data.on_error", "data.reference"),
    *("model.source", "model.target"),  # Paths: `domains.json` knows the weights.
)
"""Settings that may change between two runs of `predict` into one folder."""
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
        """The source by its full path, since the next run may be started elsewhere."""
        self.config = self.config.clone()
        settings = self.config.data.get("init_args", {})
        if settings.get("source"):
            settings["source"] = os.path.realpath(settings["source"])
        super().save_config(trainer, pl_module, stage)
        write_json(Path(self.config.output) / DOMAINS, weights(self.config))


def check_apart(data: Any, folder: RunFolder) -> None:
    """ValueError if the run would write among its sources, or into the folder of a fit."""
    if not isinstance(data, TranslationImages):
        return  # Refused when the run begins.
    root, searched = folder.root.resolve(), Path(data.source.partition("**")[0])
    if searched.is_dir() and root.is_relative_to(searched.resolve()):
        raise ValueError(
            f"the output folder {folder.root} lies in --data.source {data.source}, so that its "
            f"images would be sources, too: take an --output elsewhere"
        )
    for parent in {path.parent for _, path in data.files}:
        if parent.resolve() == root or parent.resolve().is_relative_to(root / IMAGES):
            raise ValueError(
                f"the sources in {parent} lie where this run would write: take another --output"
            )
    if (root / "checkpoints").is_dir():
        raise ValueError(f"the output folder {folder.root} is that of a fit: take another --output")


def check_same_run(cli: Stage, folder: RunFolder) -> None:
    """ValueError if the images in the folder were made by other settings or other weights."""
    if not folder.manifest():
        return
    there = _decisive(_kept(folder, cli.config_name))
    now = _decisive(yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False)))
    names = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
    if names:
        told = "; ".join(f"--{name} was {there.get(name)}, now {now.get(name)}" for name in names)
        raise ValueError(f"the images in {folder.root} were made otherwise: {told}; {START_OVER}")
    made_by, present = _kept(folder, DOMAINS), weights(cli.config)
    changed = [name for name in present if made_by.get(name) != present[name]]
    if changed:
        settings = cli.config.model.init_args
        told = " and ".join(f"--model.{name} {settings[name]}" for name in changed)
        raise ValueError(
            f"the images in {folder.root} were made by other weights than those of {told}; "
            f"{START_OVER}"
        )


def weights(config: Any) -> dict[str, str]:
    """The SHA-256 of the source's and the target's weights, by those names."""
    settings = config.model.get("init_args", {})
    names = [name for name in ("source", "target") if settings.get(name)]
    return {name: fingerprint(check_domain_path(settings[name], name)) for name in names}


def _kept(folder: RunFolder, name: str) -> dict[str, Any]:
    """What an earlier run wrote, as YAML or JSON, of how it made its images."""
    path = folder.root / name
    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        kept = None
    if not isinstance(kept, dict) or (name != DOMAINS and not _whole(kept)):
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
    """The settings that decide what the images are, by the names of their options."""
    precision = str(config["trainer"].get("precision") or 32)
    found = {"trainer.precision": {"32": "32-true", "64": "64-true"}.get(precision, precision)}
    for group in ("model", "data"):
        found[group] = config[group].get("class_path")
        settings = config[group].get("init_args", {})
        found |= {f"{group}.{name}": value for name, value in settings.items()}
    if found.get("data.source"):
        found["data.source"] = os.path.realpath(found["data.source"])
    return {name: value for name, value in found.items() if name not in INDIFFERENT}
