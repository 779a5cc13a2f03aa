"""Memory of the first process of `lightning predict` against the number of images N.

    python benchmarks/memory.py figures     # rows of features, gathering, FID, KID, metrics.csv
    python benchmarks/memory.py manifest    # manifest.jsonl

Each N in a process of its own, with made-up features of EfficientNet-Lite0's size (1280), also of
the sources, and 500 reference images. The other processes are played: what they would send is made
when it is asked for, packed and padded as torch.distributed does. No images and no networks.
"""

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed

from cyclelight.metrics import gather as gather_file
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.gather import gather
from cyclelight.metrics.protocol import protocol_of
from cyclelight.runs.folder import Entry, RunFolder
from cyclelight.runs.report import Report

DIM, BATCH, REFERENCE = 1280, 32, 500
FIGURES = ("PSNR", "L2", "SSIM", "LPIPS")
MB = 1e6


def memory(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / MB


def look(first: int, count: int, sources: bool = True) -> tuple[list[str], dict[str, torch.Tensor]]:
    """What would be kept of some images."""
    generator = torch.Generator().manual_seed(first)
    columns = {}
    for of in ("", "source ")[: 1 + sources]:
        columns[f"{of}row"] = torch.randn(count, DIM, generator=generator)
        columns[f"{of}label"] = torch.randint(0, 1000, (count,), generator=generator)
    if sources:
        columns |= {n: torch.rand(count, generator=generator).double() for n in FIGURES}
    return [f"class_{i % 10}/image_{i:09d}.png" for i in range(first, first + count)], columns


class Played:
    """torch.distributed for the first of many processes, each of which has some images."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts
        self.pieces: list[Iterator[Any]] = []

    def all_gather_object(self, counts: list[int], count: int) -> None:
        assert count == self.counts[0]
        counts[:] = self.counts
        starts = np.cumsum([0, *self.counts])

        def shard(rank: int) -> Iterator[Any]:
            size = max(1, gather_file.PIECE // len(self.counts))
            for start in range(0, self.counts[rank], size):
                yield look(int(starts[rank]) + start, min(size, self.counts[rank] - start))

        self.pieces = [shard(rank) for rank in range(1, len(self.counts))]

    def gather_object(self, own: Any, parts: list[Any]) -> None:
        packed = [pickle.dumps(own), *(pickle.dumps(next(p, None)) for p in self.pieces)]
        sizes = [len(data) for data in packed]
        received = torch.empty(len(parts), max(sizes), dtype=torch.uint8)
        for row, data in zip(received, packed, strict=True):
            row[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        del packed  # It would be with the others.
        for rank, size in enumerate(sizes):
            parts[rank] = pickle.load(io.BytesIO(received[rank].numpy().tobytes()[:size]))

    def install(self) -> None:
        answers = {"is_initialized": True, "get_rank": 0, "get_world_size": len(self.counts)}
        for name, answer in answers.items():
            setattr(torch.distributed, name, lambda answer=answer: answer)
        torch.distributed.all_gather_object = self.all_gather_object
        torch.distributed.gather_object = self.gather_object


def measure_figures(images: int, processes: int) -> dict[str, float]:
    """All that the first process does with figures."""
    # One by one: a process has a range of the images, which are not in the order of their keys.
    counts = [images * (r + 1) // processes - images * r // processes for r in range(processes)]
    look(0, BATCH)
    begin = memory("VmRSS")
    own, reference = Columns(), Columns()
    for start in range(0, counts[0], BATCH):
        own.add(*look(start, min(BATCH, counts[0] - start)))
    reference.add(*look(0, REFERENCE, sources=False))
    if processes > 1:
        Played(counts).install()
    seconds = [time.perf_counter()]
    everything = gather(own)
    assert len(everything) == images
    kept = memory("VmRSS") - begin
    gathered = memory("VmHWM") - begin
    seconds.append(time.perf_counter())
    report = Report.of(everything, reference, _Judge(), protocol_of("default"), "dog")  # type: ignore[arg-type]
    seconds.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        report.write(Path(folder))
    seconds.append(time.perf_counter())
    return {
        "rows": images * 2 * DIM * 4 / MB,
        "kept": kept,
        "gathered": gathered,
        "peak": memory("VmHWM") - begin,
        **dict(zip(("t_gather", "t_score", "t_write"), np.diff(seconds).tolist(), strict=True)),
    }


class _Judge:
    network, notes = object(), ()


def measure_manifest(images: int, processes: int) -> dict[str, float]:
    """The manifest of a run that has finished all its images, opened, read and closed."""
    keys = [f"class_{i % 10}/image_{i:09d}.jpg" for i in range(images)]
    begin = memory("VmRSS")
    with tempfile.TemporaryDirectory() as root:
        folder = RunFolder(root, keys)
        names = memory("VmRSS") - begin
        with folder.manifest_path.open("w") as file:
            for key in keys:
                output = f"images/{key.removesuffix('.jpg')}.png"
                source, digest = f"/data/afhq/val/{key}", f"{hash(key) % 2**64:016x}"
                entry = Entry(key=key, source=source, digest=digest, output=output, seed=0)
                file.write(json.dumps(entry) + "\n")
        size = folder.manifest_path.stat().st_size / MB
        folder.image_path = lambda key: Path(root)  # type: ignore[method-assign]
        exists, Path.is_file = Path.is_file, lambda path: True  # type: ignore[method-assign]
        seconds = [time.perf_counter()]
        folder.open_manifest()
        opened = memory("VmHWM") - begin
        seconds.append(time.perf_counter())
        done = {entry["key"]: entry["digest"] for entry in folder.entries()}
        seconds.append(time.perf_counter())
        kept = memory("VmRSS") - begin
        folder.close_manifest()
        seconds.append(time.perf_counter())
        Path.is_file = exists  # type: ignore[method-assign]
        assert len(done) == images
    return {
        "file": size,
        "names": names,
        "kept": kept,
        "opened": opened,
        "peak": memory("VmHWM") - begin,
        **dict(zip(("t_open", "t_done", "t_close"), np.diff(seconds).tolist(), strict=True)),
    }


MEASURES = {"figures": measure_figures, "manifest": measure_manifest}


def main() -> None:
    """A table, and the line through it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000, 30000, 100000])
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(MEASURES[options.what](options.images[0], options.processes)))
        return
    rows = []
    for count in options.images:
        command = [sys.executable, __file__, options.what, f"--images={count}", "--child"]
        command.append(f"--processes={options.processes}")
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout
        rows.append(json.loads(output))
        if len(rows) == 1:
            print("N".rjust(9), *(name.rjust(10) for name in rows[0]), " (MB above the start, s)")
        print(f"{count:9d}", *(f"{value:10.1f}" for value in rows[-1].values()), flush=True)
    if len(rows) > 1:
        # Of the two largest: what is needed once, such as blocks of KID's kernel, is there in both.
        fewer, more = options.images[-2:]
        for name in (name for name in rows[0] if not name.startswith("t_")):
            slope = (rows[-1][name] - rows[-2][name]) * MB / (more - fewer)
            million = rows[-1][name] / 1e3 + slope * (1e6 - more) / 1e9
            print(f"{name}: {slope:.0f} bytes an image, {million:.2f} GB a million")


if __name__ == "__main__":
    main()
