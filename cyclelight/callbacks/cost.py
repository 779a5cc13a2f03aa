"""What a run of `predict` costs: seconds and network calls, in `cost.json`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cyclelight.runs.cost import Cost


class CostMeter(Callback):
    """Adds up what each batch costs, also over several sittings.

    A call of a network is counted for each state that it gets, in the module's `networks`: the
    denoisers of domains or of a text model, and what networks a method has beside them. For one
    process.
    """

    def __init__(self) -> None:
        self.cost = Cost()
        """Of this run folder, all sittings together."""
        self._calls = 0
        self._begin = 0.0
        self._hooks: list[Any] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with what earlier sittings cost."""
        self.cost = Cost.read(Path(trainer.default_root_dir))
        networks = getattr(pl_module, "networks", None)
        assert isinstance(networks, nn.ModuleDict), "the module lists its networks"
        for name, network in networks.items():
            domain = name in ("source", "target", "model")
            self._hooks.append(_entry(network, domain=domain).register_forward_pre_hook(self._see))

    def _see(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        self._calls += len(args[0])

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The clock starts."""
        self._calls, self._begin = 0, time.perf_counter()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The clock stops, when the device has finished."""
        if not batch["key"]:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        seconds = time.perf_counter() - self._begin
        self.cost += Cost(len(batch["key"]), self._calls, seconds)
        self.cost.write(Path(trainer.default_root_dir))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Networks may be used again by another run."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _entry(network: nn.Module, *, domain: bool) -> nn.Module:
    """What is called once whenever a network is: a domain's denoiser itself.

    Of others it is the first convolution, since a classifier's features are asked for by a method
    of its own.
    """
    if domain:
        return network
    return next((m for m in network.modules() if isinstance(m, nn.Conv2d)), network)
