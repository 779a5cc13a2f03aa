"""What the README and the shipped recipes say works."""

import re
from pathlib import Path

import pytest
import yaml

from cyclelight.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs" / "translate").glob("*.yaml"))
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


@pytest.mark.parametrize("recipe", DOMAINS, ids=lambda p: p.stem)
def test_domain_recipes_fit(recipe: Path, tmp_path: Path) -> None:
    """A few steps of each on eight pictures, the network shrunk by overrides only."""
    levels = len(
        yaml.safe_load(recipe.read_text())["model"]["init_args"]["network"]["block_out_channels"]
    )
    shrunk = {
        "--model.network.block_out_channels": str([16] * levels),
        "--model.network.layers_per_block": "1",
        "--model.network.head_channels": "8",
        "--trainer.max_steps": "2",
        "--data.batch_size": "2",
        "--data.num_workers": "0",
        "--trainer.accelerator": "cpu",
        "--trainer.log_every_n_steps": "1",
        "--trainer.enable_model_summary": "false",
        "--trainer.enable_progress_bar": "false",
    }
    options = [word for pair in shrunk.items() for word in pair]
    output = tmp_path / "run"
    data = str(ROOT / "docs/demo/cats")
    where = ["--config", str(recipe), "--data.root", data, "--output", str(output)]
    assert main(["fit", *where, *options]) == 0
    assert (output / "domain" / "domain.json").is_file()
