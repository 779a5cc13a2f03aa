"""Signals whose exception Python swallows."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from test_preemption import arguments
from tiny import make_run, predict_words

from cyclelight.cli import main
from cyclelight.commands.guard import guarded
from cyclelight.runs.folder import RunFolder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    # What is swallowed in a destructor is told.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Lost:
    """Its destructor gets SIGTERM: whatever the handler raises is lost."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Loses(Callback):
    """Loses a signal in the first batch."""

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        Lost()


LOSES = ("--trainer.callbacks", "[{class_path: test_signals.Loses}]")


def test_a_lost_signal_counts_after_the_run() -> None:
    def run() -> int:
        Lost()
        return 0

    assert guarded(run) == 143
    assert guarded(lambda: 0) == 0, "the next command was not asked to end"


def test_a_lost_signal_ends_predict_at_its_next_batch(tmp_path: Path) -> None:
    make_run(tmp_path, {"sources": [f"{i}.png" for i in range(5)], "real": ["a.png"]})
    words = predict_words(tmp_path, tmp_path / "out", "--data.batch_size", 1)
    without = [word for i, word in enumerate(words) if "reference" not in f"{words[i - 1]}{word}"]
    assert main([*without, *LOSES]) == 143
    assert list(RunFolder(tmp_path / "out").manifest()) == ["0.png"]


def test_a_lost_signal_ends_a_fit_before_it_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it comes before the fit watches signals itself; afterwards there's nothing to be lost."""
    from cyclelight.commands import fit

    built = fit.build

    def lose(*args: Any) -> Any:
        Lost()
        return built(*args)

    monkeypatch.setattr(fit, "build", lose)
    assert main(arguments(tmp_path)) == 143
    assert capfd.readouterr().err.splitlines()[-1] == "terminated; what was finished is kept"
    assert not (tmp_path / "domain").exists()
