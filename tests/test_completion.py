"""What the Tab key offers, asked of bash itself."""

import shutil
import subprocess

import pytest

from cyclelight.cli import main
from cyclelight.commands import COMMANDS
from cyclelight.commands.completion import script
from cyclelight.commands.recipes import recipes

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.fixture(scope="module")
def bash() -> str:
    return script("bash")


def offered(bash: str, *words: str) -> list[str]:
    """What bash would offer for the last of the words of a command line."""
    line = " ".join(f"'{word}'" for word in ("lightning", *words))
    asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _cyclelight; "
    shown = asked + 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{bash}\n{shown}"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@needs_bash
def test_commands_options_and_recipes(bash: str) -> None:
    assert offered(bash, "") == list(COMMANDS)
    assert offered(bash, "pre") == ["predict"]
    assert "--data.source" in offered(bash, "predict", "--data.so")
    assert "--model.network.block_out_channels" not in offered(bash, "predict", "--")
    assert {"--revision", "--dry-run"} <= set(offered(bash, "push", "dir", "--"))
    assert set(offered(bash, "fit", "--config", "")) == set(recipes())
    assert offered(bash, "fit", "--config", "animals3") == ["animals32"]
    assert offered(bash, "evaluate", "photo") == []  # Files are the shell's own affair.


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert capsys.readouterr().err == "error: SHELL: it must be bash or zsh, got 'fish'\n"
    assert main(["completion"]) == 2
