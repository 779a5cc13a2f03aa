"""What `fit` adds to a step: its images per second against a plain loop of the same network.

    python benchmarks/training.py --config configs/domains/animals64.yaml --data.root IMAGES

takes the options of `lightning fit`; the plain loop has the network, the precision, the optimizer
and the batch size of that fit, and images that are on the device already.
"""

import sys
import time
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback

from cyclelight.commands.fit import Fit
from cyclelight.commands.lightning_cli import build
from cyclelight.diffusion.pixels import to_float

WARM, TIMED, ROUNDS = 20, 20, 5


class Clock(Callback):
    """The seconds of each step, the device waited for every `TIMED` steps only."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        """Note the time."""
        if trainer.global_step >= WARM and (trainer.global_step - WARM) % TIMED == 0:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())


def plain(module: Any, batch: dict[str, Any], precision: str) -> float:
    """Seconds of a step of the plain loop."""
    device = module.device
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    images, schedule = batch["image"].to(device), module.denoiser.schedule

    def step() -> None:
        x_0 = to_float(images)
        t = torch.randint(schedule.timesteps, (len(x_0),), device=device)
        with half:
            loss = module.loss(x_0, t, torch.randn_like(x_0)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def run(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count

    run(WARM)
    return median(run(TIMED) for _ in range(ROUNDS))


def main() -> None:
    """Fit, then the plain loop, on the same device."""
    steps = WARM + TIMED * ROUNDS
    given = ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
    cli = build(Fit, [*sys.argv[1:], *given])
    clock = Clock()
    cli.trainer.callbacks.append(clock)
    cli.trainer.fit(cli.model, cli.datamodule)
    gaps = [(b - a) / TIMED for a, b in zip(clock.marks, clock.marks[1:], strict=False)]
    batch = next(iter(cli.datamodule.train_dataloader()))
    device = cli.trainer.strategy.root_device
    alone = plain(cli.model.to(device).train(), batch, str(cli.trainer.precision))
    size = len(batch["image"])
    print(
        f"{device}, batch {size}: fit {size / median(gaps):.0f} images/s, "
        f"plain loop {size / alone:.0f}, ratio {alone / median(gaps):.3f}"
    )


if __name__ == "__main__":
    main()
