"""What a translation costs beside its networks: time, and memory against the number of steps.

    python benchmarks/translation.py time      # share of the time outside the networks
    python benchmarks/translation.py memory    # peak memory of `lightning predict`

Random networks of the shape of configs/domains/animals64.yaml: what they compute does not matter.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from torch import Tensor

import cyclelight
from cyclelight.diffusion.denoiser import Denoiser
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.folder import save_domain
from cyclelight.networks.unet import UNetSettings

ROOT = Path(__file__).parents[1]


def network(resolution: int) -> torch.nn.Module:
    """The UNet of the recipe for animals, with random weights."""
    recipe = yaml.safe_load((ROOT / f"configs/domains/animals{resolution}.yaml").read_text())
    settings = UNetSettings(**recipe["model"]["init_args"]["network"])
    return settings.build(resolution=resolution, channels=3)


class Stopwatch:
    """A denoiser that adds up how long it was at work."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.schedule, self.seconds = denoiser, denoiser.schedule, 0.0

    def __call__(self, x_t: Tensor, t: int | Tensor) -> cyclelight.Prediction:
        begin = time.perf_counter()
        prediction = self.denoiser(x_t, t)
        self.seconds += time.perf_counter() - begin
        return prediction


def measure_time(resolution: int, batch: int, steps: int) -> None:
    """Lockstep translation of random images, as `predict` does it."""
    schedule = NoiseSchedule()
    watches = []
    for _ in range(2):
        net = network(resolution).eval().requires_grad_(False)
        watches.append(Stopwatch(cyclelight.NetworkDenoiser(net, schedule)))
    source, target = (cyclelight.Domain(w, resolution, 3) for w in watches)
    images = torch.rand(batch, 3, resolution, resolution) * 2 - 1
    settings = {"eta": 0.1, "strength": 0.85, "cleanup": 100, "progress": False}
    cyclelight.translate(source, target, images, steps=10, **settings)
    for watch in watches:
        watch.seconds = 0.0
    begin = time.perf_counter()
    cyclelight.translate(source, target, images, steps=steps, **settings)
    total = time.perf_counter() - begin
    inside = sum(watch.seconds for watch in watches)
    print(
        f"{resolution} x {resolution}, batch {batch}, {steps} steps, {torch.get_num_threads()} "
        f"threads: {total:.2f} s, in the networks {inside:.2f} s, outside {1 - inside / total:.1%}"
    )


def measure_memory(steps: list[int]) -> None:
    """`lightning predict` in a process of its own for each number of steps."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("source", "target"):
            card = {"name": name}
            save_domain(Path(folder, name), network(32), NoiseSchedule(), card=card)
        for count in steps:
            command = [
                *(sys.executable, "-m", "cyclelight", "predict"),
                *("--config", str(ROOT / "configs/translate/cat2dog.yaml")),
                *("--model.source", f"{folder}/source", "--model.target", f"{folder}/target"),
                *("--data.source", str(ROOT / "docs/demo/cats"), "--output", f"{folder}/out"),
                *("--model.method.steps", str(count), "--trainer.enable_progress_bar", "false"),
            ]
            child = os.posix_spawn(sys.executable, command, os.environ)
            _, status, usage = os.wait4(child, 0)
            if status:
                sys.exit("predict failed")
            print(f"{count:>5} steps: peak {usage.ru_maxrss / 1024:.0f} MB")


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("--resolution", type=int, default=64, choices=(32, 64))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", help="default: 30; memory: 10 100 1000")
    args = parser.parse_args()
    if args.what == "time":
        for steps in args.steps or [30]:
            measure_time(args.resolution, args.batch, steps)
    else:
        measure_memory(args.steps or [10, 100, 1000])


if __name__ == "__main__":
    main()
