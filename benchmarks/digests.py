"""SHA-256 of all that the program makes of fixed inputs: proof that a change moved code only.

    .venv/bin/python benchmarks/digests.py before.json
    (change the code)
    .venv/bin/python benchmarks/digests.py after.json --against before.json

Runs the program of this checkout on the demo's cats: `predict` by one and by two
processes and after a kill, `evaluate`, `test`, and a `fit` of 60 steps, undisturbed and after a
SIGTERM. Of checkpoints the tensors count, of everything else the bytes. The settings that a run
keeps (config.yaml) are left out: they name classes, which may have moved. About five minutes on two
cores; with the same number of threads the digests of one machine repeat.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
CATS = Path("docs/demo/cats")  # A manifest tells the path as it was given.
NETWORK = (
    "{block_out_channels: [8, 16], layers_per_block: 1, attention_resolutions: [], "
    "head_channels: 8, norm_groups: 8, dropout: 0.1}"
)
FIT = {
    "model.network": NETWORK,
    "model.resolution": 16,
    "model.sample_every_n_steps": 0,
    "model.warmup_steps": 10,
    "data.root": CATS,
    "data.batch_size": 2,
    "data.num_workers": 1,
    "trainer.max_steps": 60,
    "trainer.max_epochs": -1,
}


def command(name: str, output: Path, options: dict[str, Any], *words: str) -> list[str]:
    """The words of a call of the program."""
    given = [f"--{option}={value}" for option, value in options.items()]
    return [sys.executable, "-m", "cyclelight", name, *words, *given, f"--output={output}"]


def run(words: list[str], kill: int = 0, due: Callable[[], bool] = lambda: False) -> None:
    """Run to the end, or send the signal `kill` as soon as that is `due`."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
        while kill and process.poll() is None:
            if due():
                process.send_signal(kill)
                break
            time.sleep(0.02)
        code = process.wait()
        if kill and code == 0:
            raise SystemExit(f"{' '.join(words)}\nended before it was killed")
        if code != 0 and not kill:
            log.seek(0)
            raise SystemExit(f"{' '.join(words)}\nended with {code}:\n{log.read().decode()}")


def digests(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, SHA-256) of each file, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        kept = path.is_file() and not name.startswith((".", "logs/", "config"))
        if kept and path.suffix == ".ckpt":
            yield name, tensors(torch.load(path, map_location="cpu", weights_only=True))
        elif kept and name != "domain/domain.json":  # It names versions.
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(checkpoint: Any) -> str:
    """One digest of all tensors in a checkpoint, with their names."""
    total = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            numbers = value.detach().contiguous()
            total.update(f"{name} {tuple(numbers.shape)} {numbers.dtype}".encode())
            total.update(numbers.view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                add(f"{name}.{key}", value[key])
        elif isinstance(value, (list, tuple)):
            for index, one in enumerate(value):
                add(f"{name}.{index}", one)

    add("", checkpoint)
    return total.hexdigest()


def measure(reference: Path, work: Path) -> dict[str, dict[str, str]]:
    """Run everything; the digests of each run's files."""
    config = "--config=configs/translate/cat2dog.yaml"
    domains = {f"model.{role}": Path("checkpoints") / kind for role, kind in
               (("source", "cat"), ("target", "dog"))}  # fmt: skip
    translation = {**domains, "data.source": CATS, "data.reference": reference,
                   "data.batch_size": 2, "trainer.enable_progress_bar": "false"}  # fmt: skip
    two = {"trainer.strategy": "ddp", "trainer.devices": 2, "trainer.accelerator": "cpu"}
    run(command("predict", work / "predict", translation, config))
    run(command("predict", work / "predict, two processes", {**translation, **two}, config))
    killed = command("predict", work / "predict, killed", translation, config)
    manifest = work / "predict, killed" / "manifest.jsonl"
    run(killed, signal.SIGKILL, lambda: manifest.is_file() and len(manifest.read_bytes()) > 300)
    run(killed)
    evaluated = {"source": CATS, "translated": work / "predict" / "images",
                 "reference": reference, "classes": "dog"}  # fmt: skip
    run(command("evaluate", work / "evaluate", evaluated))
    test = {"model.init_from": domains["model.source"], "model.resolution": 48,
            "scores.samples": 8, "scores.steps": 10, "data.root": CATS,
            "trainer.enable_progress_bar": "false"}  # fmt: skip
    run(command("test", work / "test", test))
    run(command("fit", work / "fit", FIT))
    killed = command("fit", work / "fit, killed", FIT)
    saved = work / "fit, killed" / "checkpoints"
    run(killed, signal.SIGTERM, lambda: any(saved.glob("*step=21*")))
    run([*killed, "--ckpt_path=last"])
    return {folder.name: dict(digests(folder)) for folder in sorted(work.iterdir())}


def main() -> None:
    """Measure, write, and compare with an earlier measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, help="JSON file to write.")
    parser.add_argument("--against", type=Path, help="JSON file of an earlier call.")
    parser.add_argument(
        "--reference", type=Path, default=ROOT / CATS, help="Real images of the target."
    )
    options = parser.parse_args()
    output, against = options.output.absolute(), options.against and options.against.absolute()
    reference = options.reference.absolute()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as work:
        found = measure(reference, Path(work))
    output.write_text(json.dumps(found, indent=1) + "\n")
    known = json.loads(against.read_text()) if against else found
    for name, files in found.items():
        other = known.get(name, {})
        changed = [file for file in {**files, **other} if files.get(file) != other.get(file)]
        total = hashlib.sha256("".join(f"{k} {v}\n" for k, v in files.items()).encode())
        told = f"differ: {', '.join(sorted(changed))}" if changed else "all equal"
        print(f"{name:<24}{len(files):>4} files  {total.hexdigest()[:16]}  {told}")


if __name__ == "__main__":
    main()
