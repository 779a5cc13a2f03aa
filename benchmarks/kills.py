"""Kill fits and translations at random moments, run them again, and compare with undisturbed ones.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/kills.py --kills 20

Each kill is one run that ends by a signal, followed by one that goes on. Equal means to the last
bit: of a fit, its domain, all tensors of the checkpoints that it keeps (raw and averaged weights,
optimizer) and the curve of its validations; of a translation, all files (images, manifest, metrics,
gallery). A fit gets SIGKILL and SIGTERM in turn; it validates and saves every
6 steps, and a process of its own decodes its images. A translation gets SIGKILL. Networks are tiny,
on one thread; runs are forked from this process, so that modules are loaded once.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tabulate import tabulate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclelight.cli import main
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.folder import save_domain
from cyclelight.networks.unet import UNetSettings
from cyclelight.runs.checkpoints import newest_checkpoint
from cyclelight.runs.folder import RunFolder
from datamodules import square_images

CATS = Path(__file__).parents[1] / "docs" / "demo" / "cats"
TINY = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8, dropout=0.1)
STEPS = 40


def fit(output: Path) -> list[str]:
    """A fit of 40 steps in epochs of 3, a few seconds."""
    network = "{block_out_channels: [8, 16], layers_per_block: 1, attention_resolutions: [], "
    return words(
        "fit",
        output,
        {
            "model.network": network + "head_channels: 8, norm_groups: 8, dropout: 0.1}",
            "model.resolution": 16,
            "model.sample_every_n_steps": 0,
            "model.lr_schedule": "cosine",
            "model.warmup_steps": 10,
            "data.root": CATS,
            "data.batch_size": 2,
            "data.num_workers": 1,
            "checkpoint.monitor": "val/loss",
            "checkpoint.save_top_k": -1,
            "trainer.check_val_every_n_epoch": 2,
            "trainer.max_steps": STEPS,
            "trainer.max_epochs": -1,
            "trainer.enable_model_summary": "false",
            "ckpt_path": "last",
        },
    )


def predict(output: Path) -> list[str]:
    """A translation of 8 images in batches of 2, with KID; a few seconds."""
    root = output.parent
    settings = {"model.source": root / "cat", "model.target": root / "dog"}
    settings |= {"model.method.steps": 50}
    data = {"data.source": CATS, "data.reference": CATS, "data.batch_size": 2}
    return words("predict", output, settings | data)


def words(command: str, output: Path, settings: dict[str, Any]) -> list[str]:
    """The words of a command line."""
    settings |= {"output": output, "trainer.accelerator": "cpu"}
    settings["trainer.enable_progress_bar"] = "false"
    return [command, *(f"--{name}={value}" for name, value in settings.items())]


def start(args: list[str]) -> int:
    """`main(args)` in a child; its process id."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(main(args))
    return pid


def wait(pid: int) -> int:
    """The exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fitted(folder: Path) -> Any:
    """All that a fit computes, as nested values."""
    parts = ("global_step", "state_dict", "current_model_state", "averaging_state")
    kept = {}
    for path in (folder / "checkpoints").glob("epoch*.ckpt"):
        state = torch.load(path, weights_only=True)
        kept[path.name] = {p: flat(state[p]) for p in (*parts, "optimizer_states", "lr_schedulers")}
    assert len(kept) == STEPS // 6
    logs = EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0})
    logs.Reload()
    curve = {event.step: event.value for event in logs.Scalars("val/loss")}
    domain = {p.name: p.read_bytes() for p in (folder / "domain").rglob("*") if p.is_file()}
    return kept, curve, domain


def flat(value: Any) -> Any:
    """Nested values that can be compared, tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(inner) for key, inner in value.items()}
    return [flat(inner) for inner in value] if isinstance(value, list | tuple) else value


def translated(folder: Path) -> dict[str, bytes]:
    """All files but the lock and the configuration, which names the folder."""
    kept = (p for p in folder.rglob("*") if p.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in kept
        if path.name not in (".lock", "config.yaml")
    }


def step_of(folder: Path) -> str:
    """How far a fit is that goes on from here."""
    newest = newest_checkpoint(folder / "checkpoints")
    step = torch.load(newest, weights_only=True)["global_step"] if newest else 0
    return f"step {step} of {STEPS}"


def images_of(folder: Path) -> str:
    """How far a translation is that goes on from here; every image must be whole."""
    done = RunFolder(folder).manifest()
    written = list((folder / "images").rglob("*.png"))
    for path in written:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
    return f"{len(done)} images listed, {len(written)} written, all whole"


def table(
    command: Callable[[Path], list[str]],
    result: Callable[[Path], Any],
    place: Callable[[Path], str],
    signals: list[signal.Signals],
    root: Path,
    kills: int,
) -> int:
    """Kill and go on, print what happened; how many ended otherwise than the undisturbed run."""
    name = command.__name__
    begun = time.monotonic()
    assert wait(start(command(root / name))) == 0
    length, rows = time.monotonic() - begun, []
    expected = result(root / name)

    def same(folder: Path) -> bool:
        try:
            return bool(result(folder) == expected)
        except (OSError, AssertionError):
            return False

    while len(rows) < kills:
        folder, kind = Path(tempfile.mkdtemp(dir=root)), signals[len(rows) % len(signals)]
        moment = random.uniform(0, length)
        pid = start(command(folder))
        time.sleep(moment)
        os.kill(pid, kind)
        ended, left = wait(pid), place(folder)
        if ended == 0 and same(folder):
            continue  # It was faster.
        again = wait(start(command(folder)))
        equal = ended != 0 and again == 0 and same(folder)
        rows.append((len(rows) + 1, f"{moment:.2f} s", kind.name, ended, left, again, equal))
    head = ("kill", "after", "signal", "ended with", "left behind", "then", "equal")
    print(f"\n{name}, {length:.1f} s undisturbed\n{tabulate(rows, head)}", flush=True)
    return sum(not row[-1] for row in rows)


def run() -> int:
    """Both tables; 1 if any run was not recovered."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    random.seed(options.seed)
    square_images.MEMORY_LIMIT = 0  # Few images would else be decoded once, by the fit itself.
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for seed, name in enumerate(("cat", "dog")):
            torch.manual_seed(seed)
            unet = TINY.build(resolution=16, channels=3)
            save_domain(root / name, unet, NoiseSchedule(), card={"name": name})
        both = [signal.SIGKILL, signal.SIGTERM]
        wrong = table(fit, fitted, step_of, both, root, options.kills)
        wrong += table(predict, translated, images_of, [signal.SIGKILL], root, options.kills)
    print(f"\n{2 * options.kills} kills, {wrong} not recovered")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(run())
