"""Decoding all timesteps of one image at once: how many sweeps it takes, and whether it pays.

    python benchmarks/parallel_in_time.py cats/ --images 8

In lockstep d = y - x obeys d_s = a d_t + b (eps_target(x_t + d_t) - eps_source(x_t)), with a and b
the step's. Picard iteration (Shih et al. 2023, ParaDiGMS) takes all eps_target of one guess of d in
one batch and follows the recursion anew, from d = 0: the source chain itself is the first guess.
"""

import argparse
import time
from math import sqrt
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from cyclelight.chains.engine import Engine, best_precision
from cyclelight.chains.lockstep import lockstep
from cyclelight.chains.source import EncodedStep, source_chain
from cyclelight.diffusion.denoiser import Denoiser
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.diffusion.steps import Step
from cyclelight.domains.folder import load_domain
from datamodules.listing import list_images
from datamodules.square_images import SquareImages


def factors(step: Step) -> tuple[float, float]:
    """(a, b): mu(x, eps) = a x + b eps."""
    a_t, a_s = step.alpha_bar_t, step.alpha_bar_s
    scale = sqrt(a_s / a_t)
    direction = sqrt(max(0.0, 1 - a_s - step.sigma**2))
    return scale, direction - scale * sqrt(1 - a_t)


def sweeps(target: Denoiser, chain: list[EncodedStep], count: int) -> list[Tensor]:
    """What the decoded image is after each of `count` sweeps, (1, C, H, W)."""
    x = torch.cat([step.x_t for step in chain])
    t = torch.tensor([step.t for step in chain], device=x.device)
    steps = [Step.between(target.schedule, step.t, step.s, step.eta) for step in chain]
    # mu_source - a x = b eps_source: what the source's network has said already.
    ab = [factors(step) for step in steps]
    said = [c.mean - a * c.x_t for c, (a, _) in zip(chain, ab, strict=True)]
    d = torch.zeros_like(x)
    found = []
    for _ in range(count):
        eps = target(x + d, t).eps
        states = [torch.zeros_like(x[:1])]
        for k, (a, b) in enumerate(ab):
            states.append(a * states[-1] + b * eps[k : k + 1] - said[k])
        d = torch.cat(states[:-1])
        found.append(chain[-1].x_s + states[-1])
    return found


def main() -> None:
    """Translate some images both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--sweeps", type=int, default=42)
    parser.add_argument("--source", default="checkpoints/cat")
    parser.add_argument("--target", default="checkpoints/dog")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pair = [load_domain(path).to(device) for path in (args.source, args.target)]
    source, target = (Engine().speed_up(d, best_precision(device)) for d in pair)
    grid = TimeGrid.truncated(source.schedule, args.steps, 0.85)
    images = SquareImages(list_images(args.images)[: args.count], source.resolution)
    errors: list[list[int]] = []
    with torch.no_grad():
        for index, key in enumerate(images.keys):
            x_0 = to_float(images.pixels(index)[None]).to(device)
            chain = list(
                source_chain(
                    source.denoiser,
                    x_0,
                    grid=grid,
                    eta=args.eta,
                    noise=KeyedNoise(0, [key]),
                    parallel=len(grid),
                )
            )
            y = torch.stack(list(lockstep(target.denoiser, chain)))[-1]
            found = sweeps(target.denoiser, chain, min(args.sweeps, len(grid)))
            off = [(to_uint8(z).int() - to_uint8(y).int()).abs() for z in found]
            errors.append([int(o.max()) for o in off])
        for at in sorted({1, 2, 4, 6, 8, 12, 16, 24, 32, len(errors[0])}):
            if at <= len(errors[0]):
                print(f"{at:>3} sweeps: largest difference {mean(e[at - 1] for e in errors):.1f}")

        def seconds(work: object, repeats: int = 5) -> float:
            times = []
            for _ in range(repeats):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                begin = time.perf_counter()
                work()  # type: ignore[operator]
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
            return median(times)

        one = seconds(lambda: sweeps(target.denoiser, chain, 1))
        alone = seconds(lambda: list(lockstep(target.denoiser, chain)))
        needed = [next((i + 1 for i, e in enumerate(es) if e <= 1), len(es)) for es in errors]
        print(
            f"within one level after {mean(needed):.1f} of {len(grid)} sweeps; a sweep takes "
            f"{one * 1e3:.1f} ms, the steps one after another {alone * 1e3:.1f} ms, so "
            f"{alone / (one * mean(needed)):.2f} times as fast on {device}"
        )


if __name__ == "__main__":
    main()
