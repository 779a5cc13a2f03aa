"""The names in `import cyclelight`, which are imported when they are first used."""

import subprocess
import sys
from pathlib import Path

import pytest

import cyclelight


def python(code: str) -> str:
    """What `code` prints in a process that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_all_are_there() -> None:
    for name in cyclelight.__all__:
        assert getattr(cyclelight, name).__module__.startswith(("cyclelight.", "datamodules.")), (
            name
        )
    assert set(cyclelight.__all__) <= set(dir(cyclelight))
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        cyclelight.nonesuch  # noqa: B018


def test_no_file_hides_a_public_name() -> None:
    """The import of a file puts it into its package under its name."""
    there = {path.stem for path in Path(cyclelight.__file__).parent.iterdir()}
    assert not there & set(cyclelight.__all__)


def test_the_program_begins_without_torch() -> None:
    code = "import sys; from cyclelight.cli import main; main(['--help'])"
    assert python(f"{code}; print('torch' in sys.modules)").endswith("False")
