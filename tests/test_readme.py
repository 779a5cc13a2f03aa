"""What the README and the shipped recipes say works."""

import re
import shutil
from itertools import product
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


# The network shrunk by overrides only.
SMALL = {
    "UNetSettings": {"layers_per_block": "1", "head_channels": "8"},
    "ADMSettings": {"num_channels": "32", "num_res_blocks": "0", "num_head_channels": "16"},
}


def fit(recipe: Path, root: Path, output: Path) -> None:
    """Two steps of a recipe on a few pictures."""
    network = yaml.safe_load(recipe.read_text())["model"]["init_args"]["network"]
    shrunk = SMALL["UNetSettings" if "block_out_channels" in network else "ADMSettings"]
    if "block_out_channels" in network:
        shrunk = {**shrunk, "block_out_channels": str([16] * len(network["block_out_channels"]))}
    options = {
        **{f"--model.network.{name}": value for name, value in shrunk.items()},
        "--trainer.max_steps": "2",
        "--data.root": str(root),
        "--data.batch_size": "2",
        "--data.num_workers": "0",
        "--trainer.accelerator": "cpu",
        "--trainer.log_every_n_steps": "1",
        "--trainer.enable_model_summary": "false",
        "--trainer.enable_progress_bar": "false",
        "--output": str(output),
    }
    words = [word for pair in options.items() for word in pair]
    assert main(["fit", "--config", str(recipe), *words]) == 0
    assert (output / "domain" / "domain.json").is_file()


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if "256" not in r.stem], ids=lambda p: p.stem
)
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


@pytest.mark.parametrize(
    "recipe", [r for r in DOMAINS if "256" not in r.stem], ids=lambda p: p.stem
)
def test_domain_recipes_fit(recipe: Path, tmp_path: Path) -> None:
    fit(recipe, ROOT / "docs/demo/cats", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* has . images, not")  # it is not all of AFHQ
def test_recipes_of_256_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From AFHQ, as it is unpacked, to the translation of its test images."""
    monkeypatch.chdir(tmp_path)
    for split, animal in product(("train", "test"), ("cat", "dog", "wild")):
        folder = tmp_path / "data" / "afhq_v2" / split / animal
        folder.mkdir(parents=True)
        for number in (1, 2) if split == "train" else (3,):
            shutil.copy(ROOT / f"docs/demo/cats/sample_{number}.png", folder)
    for animal in ("cat", "dog", "wild"):
        recipe = ROOT / "configs" / "domains" / f"{animal}256.yaml"
        fit(recipe, tmp_path / "data", tmp_path / "runs" / f"{animal}256")
    for recipe in (r for r in RECIPES if "256" in r.stem):
        animal = recipe.stem.split("2dog")[0]
        options = {
            "--data.source": f"data/afhq_v2/test/{animal}",
            "--model.steps": "3",
            "--data.num_workers": "0",
            "--trainer.accelerator": "cpu",
            "--trainer.enable_progress_bar": "false",
            "--output": f"translated/{recipe.stem}",
        }
        words = [word for pair in options.items() for word in pair]
        assert main(["predict", "--config", str(recipe), *words]) == 0
        assert len(list(Path(f"translated/{recipe.stem}/images").glob("*.png"))) == 1
