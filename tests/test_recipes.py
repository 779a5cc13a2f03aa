"""Recipes by name, and classes of one's own beside them."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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
    path = str(ROOT / "configs" / "domains" / "cat32.yaml")
    assert with_recipes(["--config", "cat32", "--x", "cat32"]) == ["--config", path, "--x", "cat32"]
    assert with_recipes(["--config=cat32"]) == [f"--config={path}"]
    assert with_recipes(["--config", "no/such.yaml"]) == ["--config", "no/such.yaml"]
    assert with_recipes(["--config"]) == ["--config"]
    (tmp_path / "cat32").write_text("seed_everything: 1")  # A file of one's own comes first.
    assert with_recipes(["--config", "cat32"]) == ["--config", "cat32"]


def test_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"there is no file and no recipe cat23; did you mean"):
        with_recipes(["--config", "cat23"])
    assert main(["fit", "--config", "zzz"]) == 2
    error = capsys.readouterr().err
    assert "no recipe zzz; recipes are animals64, cat256, " in error and error.count("\n") == 1


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
            "cat32",
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
    assert "class_path: mylab.MyData" in done.stdout and "name: cat" in done.stdout
