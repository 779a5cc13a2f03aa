"""What the README and the shipped recipes say works."""

import re
from pathlib import Path

import pytest
import yaml
from oracles import tiny_autoencoder

import cyclelight
from cyclelight.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs" / "translate").glob("*.yaml"))
AUTOENCODERS = sorted((ROOT / "configs" / "autoencoders").glob("*.yaml"))
DOMAINS = sorted((ROOT / "configs" / "domains").glob("*.yaml"))


def test_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S):
        exec(block.replace("steps=100", "steps=10").replace("steps=50", "steps=5"), names)
    assert names["dogs"].shape == (2, 3, 48, 48)  # type: ignore[attr-defined]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_translation_recipes_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    source = str(ROOT / "docs/demo/cats/sample_[12].png")
    shorter = ["--model.steps", "5", "--trainer.enable_progress_bar", "false"]
    options = ["--config", str(recipe), "--data.source", source, "--output", str(tmp_path)]
    assert main(["predict", *options, *shorter]) == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    assert (tmp_path / "gallery.png").is_file()


def fit(recipe: Path, output: Path, shrunk: dict[str, str]) -> int:
    """Two steps of a recipe on eight pictures; the exit code."""
    short = {
        "--trainer.max_steps": "2",
        "--data.batch_size": "2",
        "--data.num_workers": "0",
        "--trainer.accelerator": "cpu",
        "--trainer.log_every_n_steps": "1",
        "--trainer.enable_model_summary": "false",
        "--trainer.enable_progress_bar": "false",
    }
    options = [word for pair in {**shrunk, **short}.items() for word in pair]
    data = str(ROOT / "docs/demo/cats")
    where = ["--config", str(recipe), "--data.root", data, "--output", str(output)]
    return main(["fit", *where, *options])


@pytest.mark.parametrize("recipe", DOMAINS, ids=lambda p: p.stem)
def test_domain_recipes_fit(recipe: Path, tmp_path: Path) -> None:
    """A few steps of each on eight pictures, the network shrunk by overrides only."""
    settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]
    levels = len(settings["network"]["block_out_channels"])
    shrunk = {
        "--model.network.block_out_channels": str([16] * levels),
        "--model.network.layers_per_block": "1",
        "--model.network.head_channels": "8",
    }
    if "autoencoder" in settings:
        shrunk["--model.autoencoder"] = str(tmp_path / "autoencoder")
        cyclelight.save_autoencoder(tmp_path / "autoencoder", tiny_autoencoder(levels=3))
    assert fit(recipe, tmp_path / "run", shrunk) == 0
    assert (tmp_path / "run" / "domain" / "domain.json").is_file()
    assert (tmp_path / "run" / "domain" / "vae").is_dir() == ("autoencoder" in settings)


@pytest.mark.parametrize("recipe", AUTOENCODERS, ids=lambda p: p.stem)
def test_autoencoder_recipes_fit(recipe: Path, tmp_path: Path) -> None:
    """A few steps of each on eight pictures, the network shrunk by overrides only."""
    settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]["network"]
    shrunk = {
        "--model.network.block_out_channels": str([8] * len(settings["block_out_channels"])),
        "--model.network.layers_per_block": "1",
    }
    assert fit(recipe, tmp_path / "run", shrunk) == 0
    autoencoder = cyclelight.load_autoencoder(tmp_path / "run" / "autoencoder")
    assert autoencoder.latent_channels == settings["latent_channels"]
