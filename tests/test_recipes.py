"""Recipes by name, and classes of one's own beside them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from cyclelight.cli import main
from cyclelight.commands.guard import UsageError
from cyclelight.commands.recipes import recipes, with_recipes

ROOT = Path(__file__).parents[1]


def test_every_recipe_has_a_name_of_its_own() -> None:
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert sorted(recipes().values()) == files


def test_every_recipe_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = [
        f for patterns in settings["data-files"].values() for p in patterns for f in ROOT.glob(p)
    ]
    assert sorted(shipped) == sorted((ROOT / "configs").rglob("*.yaml"))


def test_a_name_stands_for_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(ROOT / "configs" / "domains" / "animals32.yaml")
    assert with_recipes(["--config", "animals32", "--x", "animals32"]) == [
        "--config",
        path,
        "--x",
        "animals32",
    ]
    assert with_recipes(["--config=animals32"]) == [f"--config={path}"]
    assert with_recipes(["--config", "no/such.yaml"]) == ["--config", "no/such.yaml"]
    assert with_recipes(["--config"]) == ["--config"]
    (tmp_path / "animals32").write_text("seed_everything: 1")  # A file of one's own comes first.
    assert with_recipes(["--config", "animals32"]) == ["--config", "animals32"]


def test_no_recipe_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "https://example.org/a.yaml"]) == 2
    error = capsys.readouterr().err
    assert "recipes are not fetched" in error and error.count("\n") == 1


def test_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"there is no file and no recipe cat23; did you mean"):
        with_recipes(["--config", "cat23"])
    assert main(["fit", "--config", "zzz"]) == 2
    error = capsys.readouterr().err
    assert "no recipe zzz; recipes are autoencoder64, " in error and error.count("\n") == 1


RECIPE = """
output: here
model:
  class_path: DomainModule
  init_args:
    name: ${oc.env:KIND}
    resolution: 32
    network:
      block_out_channels: [32, 64]
      attention_resolutions: [16]
data:
  class_path: DomainImages
  init_args: {root: "${output}/${model.init_args.name}", batch_size: 8}
"""


@pytest.mark.parametrize(
    ("words", "root"),
    [((), "here/lynx"), (("--output", "there"), "there/lynx"), (("--output=x",), "x/lynx")],
)
def test_values_refer_to_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    root: str,
) -> None:
    """To the environment, and to an `output` that is named later."""
    monkeypatch.setenv("KIND", "lynx")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    assert main(["fit", "--config", str(tmp_path / "mine.yaml"), *words, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["name"] == "lynx"
    assert config["data"]["init_args"]["root"] == root
    assert config["output"] == Path(root).parts[0]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("a: ${oc.env:NO_SUCH_VARIABLE_HERE}", "Environment variable 'NO_SUCH_VARIABLE_HERE'"),
        ("a: ${b}", "Interpolation key 'b' not found"),
        ("a: ${b", "mismatched|missing|no viable"),
        ("a: [${b}", "while parsing"),
    ],
)
def test_references_that_lead_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(recipe)
    assert main(["fit", "--config", str(tmp_path / "mine.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --config: {tmp_path / 'mine.yaml'}: ")
    assert re.search(message, error) and error.count("\n") == 1


@pytest.mark.parametrize("command", ["lightning", "-m cyclelight"])
def test_a_class_in_the_working_directory(tmp_path: Path, command: str) -> None:
    (tmp_path / "mylab.py").write_text(
        'from datamodules import DomainImages\n\n\nclass MyData(DomainImages):\n    """Mine."""\n'
    )
    program = [str(Path(sys.executable).with_name("lightning"))]
    if command != "lightning":
        program = [sys.executable, *command.split()]
    done = subprocess.run(
        [
            *program,
            "fit",
            "--config",
            "animals32",
            "--data",
            "mylab.MyData",
            "--data.root",
            "cats",
            "--print_config",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""} if command == "lightning" else None,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "class_path: mylab.MyData" in done.stdout and "resolution: 32" in done.stdout
