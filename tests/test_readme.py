"""What the README and the shipped recipes say works."""

import json
import re
import shlex
import shutil
from itertools import product
from pathlib import Path

import pytest
import yaml
from oracles import tiny_autoencoder

import cyclelight
from cyclelight.cli import main

ROOT = Path(__file__).parents[1]
CATS = ROOT / "docs/demo/cats"
RECIPES = sorted((ROOT / "configs" / "translate").glob("*.yaml"))
AUTOENCODERS = sorted((ROOT / "configs" / "autoencoders").glob("*.yaml"))
DOMAINS = sorted((ROOT / "configs" / "domains").glob("*.yaml"))


def test_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S):
        exec(block.replace("steps=100", "steps=10").replace("steps=50", "steps=5"), names)
    assert names["dogs"].shape == (2, 3, 48, 48)  # type: ignore[attr-defined]


def fit(recipe: Path, root: Path, output: Path, network: dict[str, str], *more: str) -> None:
    """Two steps of a recipe on a few pictures, its network shrunk by overrides only."""
    options = {
        **{f"--model.network.{name}": value for name, value in network.items()},
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
    assert main(["fit", "--config", str(recipe), *words, *more]) == 0


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if "256" not in r.stem], ids=lambda p: p.stem
)
def test_translation_recipes_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    source = str(CATS / "sample_[12].png")
    shorter = ["--model.method.steps", "5", "--trainer.enable_progress_bar", "false"]
    options = ["--config", str(recipe), "--data.source", source, "--output", str(tmp_path)]
    assert main(["predict", *options, *shorter]) == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    assert (tmp_path / "gallery.png").is_file()


@pytest.mark.parametrize(
    "recipe", [r for r in DOMAINS if "256" not in r.stem], ids=lambda p: p.stem
)
def test_domain_recipes_fit(recipe: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]
    widths = str([16] * len(settings["network"]["block_out_channels"]))
    small = {"block_out_channels": widths, "layers_per_block": "1", "head_channels": "8"}
    more = []
    if "autoencoder" in settings:
        more = ["--model.autoencoder", str(tmp_path / "autoencoder")]
        cyclelight.save_autoencoder(tmp_path / "autoencoder", tiny_autoencoder(levels=3))
    fit(recipe, CATS, tmp_path / "run", small, *more)
    domain = cyclelight.load_domain(tmp_path / "run" / "domain")
    assert domain.name == settings.get("name", CATS.name)
    assert (tmp_path / "run" / "domain" / "vae").is_dir() == ("autoencoder" in settings)


@pytest.mark.parametrize("recipe", AUTOENCODERS, ids=lambda p: p.stem)
def test_autoencoder_recipes_fit(recipe: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]["network"]
    widths = str([8] * len(settings["block_out_channels"]))
    fit(recipe, CATS, tmp_path / "run", {"block_out_channels": widths, "layers_per_block": "1"})
    autoencoder = cyclelight.load_autoencoder(tmp_path / "run" / "autoencoder")
    assert autoencoder.latent_channels == settings["latent_channels"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* has . images, not")  # it is not all of AFHQ
def test_recipes_of_256_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From AFHQ, as it is unpacked, to the translation of its test images."""
    monkeypatch.chdir(tmp_path)
    for split, animal in product(("train", "test"), ("cat", "dog", "wild")):
        folder = tmp_path / "data" / "afhq_v2" / split / animal
        folder.mkdir(parents=True)
        for number in (1, 2) if split == "train" else (3,):
            shutil.copy(CATS / f"sample_{number}.png", folder)
    small = {"num_channels": "32", "num_res_blocks": "0", "num_head_channels": "16"}
    for animal in ("cat", "dog", "wild"):
        recipe = ROOT / "configs" / "domains" / "afhq256.yaml"
        output = tmp_path / "runs" / f"{animal}256"
        fit(recipe, tmp_path / "data", output, small, "--data.domain", animal)
        assert cyclelight.load_domain(output / "domain").name == animal
    for recipe in (r for r in RECIPES if "256" in r.stem):
        animal = recipe.stem.split("2dog")[0]
        options = {
            "--data.source": f"data/afhq_v2/test/{animal}",
            "--model.method.steps": "3",
            "--data.num_workers": "0",
            "--trainer.accelerator": "cpu",
            "--trainer.enable_progress_bar": "false",
            "--output": f"translated/{recipe.stem}",
        }
        words = [word for pair in options.items() for word in pair]
        assert main(["predict", "--config", str(recipe), *words]) == 0
        assert len(list(Path(f"translated/{recipe.stem}/images").glob("*.png"))) == 1


def test_demo_edit_does_what_its_texts_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the Makefile in fewer steps, by the judgement of the emoji's CLIP."""
    monkeypatch.chdir(ROOT)
    command = re.search(
        r"^demo-edit:.*\n\t@\$\(BIN\)/lightning ((?:.*\\\n)*.*)$",
        (ROOT / "Makefile").read_text(),
        re.M,
    )
    assert command is not None
    words = shlex.split(command[1].replace("\\\n", " "))
    more = ["--output", str(tmp_path), "--model.method.steps", "8"]
    assert main([*words, *more, "--trainer.enable_progress_bar", "false"]) == 0
    told = json.loads((tmp_path / "metrics.json").read_text())["figures"]
    fits, changes = (
        next(each for each in told if each["figure"] == name) for name in ("S_CLIP", "S_D-CLIP")
    )
    assert fits["n"] == 12 and fits["value"] > 0.8 > 0.6 > fits["untranslated"]
    assert changes["value"] > 0.7
    page = (tmp_path / "gallery.html").read_text()
    assert "<p>to: woman farmer, light skin tone, google</p>" in page
    readme = (ROOT / "README.md").read_text()
    assert "make demo-edit" in readme and "docs/img/demo_edit.png" in readme
