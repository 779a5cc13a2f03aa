"""What `fit` adds to a step: its images per second against a plain loop of the same network.

    python benchmarks/training.py --config configs/domains/animals64.yaml --data.root IMAGES

takes the options of `lightning fit`, and --warm, --timed (steps) and --rounds; the plain loop has
the network, the precision, the optimizer and the batch size of that fit, no moving average, and
images that are on the device already.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from cyclelight.commands.fit import Fit
from cyclelight.commands.lightning_cli import build
from cyclelight.diffusion.pixels import to_float

WARM, TIMED, ROUNDS = 20, 20, 5


class Turns(Callback):
    """Seconds of a step, of the fit and of the plain loop in turns of `timed` steps.

    So that other work on the machine slows both. The device is waited for at the turns' ends only.
    """

    def __init__(self, warm: int, timed: int) -> None:
        self.warm, self.timed = warm, timed
        self.fit: list[float] = []
        self.plain: list[float] = []
        self.images = 0
        self._begin = 0.0
        self._step: Callable[[], None] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a turn, one of the plain loop."""
        past = trainer.global_step - self.warm
        if past < 0 or past % self.timed:
            return
        if past:
            self.fit.append(ended(pl_module.device, self._begin) / self.timed)
        if self._step is None:
            self.images = len(batch["image"])
            self._step = plain_step(pl_module, batch["image"], str(trainer.precision))
            repeat(self._step, self.warm)
        begin = ended(pl_module.device)
        repeat(self._step, self.timed)
        self.plain.append(ended(pl_module.device, begin) / self.timed)
        self._begin = ended(pl_module.device)


def ended(device: torch.device, begin: float = 0.0) -> float:
    """Seconds since `begin`, when the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def repeat(step: Callable[[], None], count: int) -> None:
    """Take some steps."""
    for _ in range(count):
        step()


def plain_step(module: Any, images: Tensor, precision: str) -> Callable[[], None]:
    """A step of the plain loop, of a copy of the module."""
    trainer, module._trainer = module._trainer, None
    twin = deepcopy(module)
    module._trainer = trainer
    images, schedule = images.to(module.device), twin.denoiser.schedule
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-5)

    def step() -> None:
        x_0 = to_float(images)
        t = torch.randint(schedule.timesteps, (len(x_0),), device=x_0.device)
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = twin.loss(x_0, t, torch.randn_like(x_0)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Fit, and the plain loop between its steps."""
    parser = argparse.ArgumentParser(add_help=False)
    for name, count in (("warm", WARM), ("timed", TIMED), ("rounds", ROUNDS)):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"steps, or turns, {name}")
    args, of_fit = parser.parse_known_args()
    steps = args.warm + args.timed * args.rounds
    given = ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
    cli = build(Fit, [*of_fit, *given])
    turns = Turns(args.warm, args.timed)
    cli.trainer.callbacks.append(turns)
    cli.trainer.fit(cli.model, cli.datamodule)
    ratios = [plain / fit for plain, fit in zip(turns.plain, turns.fit, strict=False)]
    print(
        f"{cli.trainer.strategy.root_device}, batch {turns.images}: fit "
        f"{turns.images / median(turns.fit):.1f} images/s, plain loop "
        f"{turns.images / median(turns.plain):.1f}, ratio {median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
