"""Break translations and fits in every way that happens, and tell how each one ended.

    .venv/bin/python benchmarks/faults.py

One row for each fault: the exit code, the seconds from the fault to the end of the last process,
how many of the finished images are whole, and the line on stderr. Networks are tiny. Where it may
(root on Linux), a small file system of its own is mounted, to be full or read-only.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from tabulate import tabulate

from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.folder import save_domain
from cyclelight.networks.unet import UNetSettings
from cyclelight.runs.checkpoints import damage
from cyclelight.runs.folder import RunFolder

CATS = Path(__file__).parents[1] / "docs" / "demo" / "cats"
TINY = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8)
TWO = {"trainer.devices": 2, "trainer.strategy": "ddp"}
LIMIT = 180
"""Seconds after which a run counts as hanging."""
HINT = " (CYCLELIGHT_DEBUG=1 shows the traceback)"


class Break(Callback):
    """Does `what` after batch `batch` of process `rank`, and notes the time.

    Args:
        what: kill (this process), worker (one that decodes images), or delete (a source).
        clock: the file whose time of change is the moment.
        batch: counted from 0.
        rank: of the process.
        path: what is deleted.
    """

    def __init__(
        self, what: str, clock: str, batch: int = 1, rank: int = 0, path: str = ""
    ) -> None:
        self.what, self.clock, self.batch, self.rank = what, Path(clock), batch, rank
        self.path = Path(path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What is deleted before the first batch has been listed and seen to be whole."""
        if self.batch < 0:
            self._break()

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """See above."""
        self._maybe(trainer, trainer.predict_loop.batch_progress.current.ready)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """See above."""
        self._maybe(trainer, trainer.global_step)

    def _maybe(self, trainer: Trainer, done: int) -> None:
        if done == self.batch + 1 and trainer.global_rank == self.rank:
            self._break()

    def _break(self) -> None:
        self.clock.touch()
        if self.what == "delete":
            self.path.unlink()
            return
        victim = os.getpid()
        if self.what == "worker":
            (victim, *_) = Path(f"/proc/{victim}/task/{victim}/children").read_text().split()
        os.kill(int(victim), signal.SIGKILL)


class Faults:
    """The runs, in a folder of their own."""

    def __init__(self, root: Path) -> None:
        self.root, self.rows = root, list[tuple[str, ...]]()
        for seed, name in enumerate(("cat", "dog", "nan")):
            torch.manual_seed(seed)
            unet = TINY.build(resolution=16, channels=3)
            if name == "nan":
                torch.nn.init.constant_(unet.conv_out.weight, torch.nan)
            save_domain(root / name, unet, NoiseSchedule(), card={"name": name})

    def sources(self) -> Path:
        """Eight cats of a run's own, to be deleted."""
        return Path(shutil.copytree(CATS, tempfile.mkdtemp(dir=self.root) + "/cats"))

    def predict(self, fault: str, output: Path | None = None, **settings: Any) -> None:
        """Translate in batches of one; settings of Lightning's command line, with _ for dots."""
        output = output or self.root / fault.replace(" ", "_")
        own = {"model.source": self.root / "cat", "model.target": self.root / "dog"}
        own |= {"model.method.steps": 20, "data.source": CATS, "data.batch_size": 1}
        self._run("predict", fault, output, own | settings)
        keys = list(RunFolder(output).manifest())
        whole = 0
        for path in (RunFolder(output, keys).image_path(key) for key in keys):
            with suppress(OSError), Image.open(path, formats=("PNG",)) as image:
                image.load()
                whole += 1
        self.rows[-1] = (*self.rows[-1][:4], f"{whole} of {len(keys)} images", self.rows[-1][4])

    def fit(self, fault: str, output: Path | None = None, **settings: Any) -> None:
        """Train for 20 steps, saving every 5."""
        output = output or self.root / fault.replace(" ", "_")
        network = "{block_out_channels: [8, 16], layers_per_block: 1, attention_resolutions: [], "
        own: dict[str, Any] = {
            "model.network": network + "head_channels: 8, norm_groups: 8}",
            "model.resolution": 16,
            "model.sample_every_n_steps": 0,
            "data.root": CATS,
            "data.batch_size": 1,
            "checkpoint.every_n_train_steps": 5,
            "trainer.max_steps": 20,
            "trainer.max_epochs": -1,
            "trainer.logger": "false",
            "trainer.enable_model_summary": "false",
        }
        self._run("fit", fault, output, own | settings)
        steps = [
            torch.load(path, weights_only=True)["global_step"]
            for path in (output / "checkpoints").glob("*.ckpt")
            if damage(path) is None
        ]
        kept = f"checkpoint of step {max(steps)}" if steps else "no checkpoint yet"
        self.rows[-1] = (*self.rows[-1][:4], kept, self.rows[-1][4])

    def _run(self, command: str, fault: str, output: Path, settings: dict[str, Any]) -> None:
        clock = self.root / "clock"
        clock.unlink(missing_ok=True)
        callback = settings.pop("breaks", None)
        settings |= {"output": output, "trainer.accelerator": "cpu"}
        settings["trainer.enable_progress_bar"] = "false"
        words = [f"--{name}={value}" for name, value in settings.items()]
        if callback is not None:
            init = ", ".join(f"{k}: {v}" for k, v in {**callback, "clock": clock}.items())
            words.append(
                f"--trainer.callbacks=[{{class_path: faults.Break, init_args: {{{init}}}}}]"
            )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        begun = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "cyclelight", command, *words],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            # Until the last process has closed its end, not only the first one.
            _, stderr = process.communicate(timeout=LIMIT)
            code = str(process.returncode)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, stderr = process.communicate()
            code = "hangs"
        moment = clock.stat().st_mtime if clock.exists() else begun
        since = "the fault" if clock.exists() else "the start"
        lines = [line for line in stderr.splitlines() if line.startswith("error:")]
        line = (lines or stderr.splitlines() or [""])[-1]
        line = line.replace(str(self.root), "...").replace(HINT, "")
        taken = f"{time.time() - moment:.1f} s from {since}"
        self.rows.append((command, fault, code, taken, line))
        print(f"{command}, {fault}: {code} {line}", file=sys.stderr)


@contextmanager
def file_system(root: Path, size: str) -> Iterator[Path | None]:
    """A small file system of its own; None where that is not allowed."""
    folder = Path(tempfile.mkdtemp(dir=root))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        allowed = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    try:
        yield folder if allowed else None
    finally:
        if allowed:
            subprocess.run(["umount", str(folder)], check=True)


def main() -> None:
    """All faults, and the table."""
    with tempfile.TemporaryDirectory() as temporary:
        faults = Faults(Path(temporary))
        predict, fit, root = faults.predict, faults.fit, faults.root
        for rank in range(2):
            dies = {"breaks": {"what": "kill", "rank": rank}}
            predict(f"process {rank} of 2 dies", **TWO, **dies)
            fit(f"process {rank} of 2 dies", **TWO, breaks={**dies["breaks"], "batch": 5})
        predict("more processes than batches", **TWO, **{"data.batch_size": 8})
        for when, batch in (("before the first batch", -1), ("while running", 1)):
            folder = faults.sources()
            gone = sorted(folder.iterdir())[-1]
            breaks = {"what": "delete", "path": gone, "batch": batch}
            predict(f"image deleted {when}", **{"data.source": folder}, breaks=breaks)
        workers = {"data.num_workers": 1, "breaks": {"what": "worker"}}
        predict("data worker dies", **workers)
        predict("NaN in a network", **{"model.target": root / "nan"})
        fit("NaN in a network", **{"model.init_from": root / "nan"})
        fit("loss diverges", **{"model.learning_rate": 1e30})
        with file_system(root, "24k") as folder:
            if folder is not None:
                predict("disk full", folder / "out")
        with file_system(root, "1200k") as folder:
            if folder is not None:
                fit("disk full", folder / "out")
        with file_system(root, "1m") as folder:
            if folder is not None:
                subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
                predict("read-only output", folder / "out")
                fit("read-only output", folder / "out")
            else:
                print("no file system could be mounted: disk full and read-only not tried")
    head = ("command", "fault", "exit", "ended", "finished work", "what it says")
    print(tabulate(faults.rows, head, tablefmt="github"))


if __name__ == "__main__":
    main()
