"""Sharding: weights, gradients, optimizer state and moving average spread over the processes.

torch's `fully_shard` (FSDP2) does it, within Lightning's ModelParallelStrategy. While a sharded
module runs, forward or backward, all processes must run it alike, since each lends the others its
part of the weights; so must they in `assemble` and `scatter`, `whole` and `load_whole`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    OptimStateKeyType,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from cyclelight.runs.checkpoints import read_checkpoint

FSDP2 = "fsdp2"
"""The name of `Sharded` for `--trainer.strategy`."""

PRECISIONS = (None, 32, "32", "32-true", "bf16", "bf16-mixed")
"""The values of `--trainer.precision` that were tried with it."""

WHOLE = StateDictOptions(full_state_dict=True)


class Sharded(ModelParallelStrategy):
    """Each process has its own images, as in DDP, and keeps only its part of each weight.

    Checkpoints are single files like any other's: a fit may go on under another strategy.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shard over all processes; Lightning's default is to shard over machines only."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Go on from what the module sharded in `configure_model`.

        Raises:
            ValueError: the module leaves trainable weights unsharded; no process would ever hear
                of the others' gradients.
        """
        assert self.model is not None
        for name, weight in self.model.named_parameters():
            if weight.requires_grad and not isinstance(weight, DTensor):
                kind = type(trainer.lightning_module).__name__
                raise ValueError(f"strategy {FSDP2}: {kind} does not shard its {name}; take ddp")
        # What validation assembles is trained on afterwards, which inference mode forbids.
        trainer.fit_loop.epoch_loop.val_loop.inference_mode = False
        super().setup(trainer)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load weights and optimizer state, each process its part, from a checkpoint of any fit.

        Lightning's sends tensors to the other processes byte by byte: those that DDP has saved
        with their channels last would arrive in another order.
        """
        path = self.broadcast(checkpoint_path)
        checkpoint = read_checkpoint(path, mmap=True)
        assert self.model is not None
        load_whole(self.model, checkpoint["state_dict"])
        states = checkpoint.get("optimizer_states", ())
        for optimizer, by_number in zip(self.optimizers, states, strict=False):
            by_name = FullyShardedDataParallel.rekey_optim_state_dict(
                by_number, OptimStateKeyType.PARAM_NAME, self.model
            )
            set_optimizer_state_dict(self.model, optimizer, by_name, options=WHOLE)
        return checkpoint


StrategyRegistry.register(FSDP2, Sharded, description="FSDP2 over all processes")


def shard(parts: Iterable[nn.Module], mesh: DeviceMesh | None) -> None:
    """Shard modules in place, if the strategy made a mesh of processes for that.

    Args:
        parts: run by being called; the weights of each come together while it runs. One within
            another comes before that.
        mesh: `device_mesh` of the LightningModule.
    """
    if mesh is None:
        return
    parts = list(parts)
    for part in parts:
        # The only layout that can be sharded.
        part.to(memory_format=torch.contiguous_format)
    for part in parts:
        fully_shard(part, mesh=mesh["data_parallel"], reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether `module` or something within it is sharded."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def assemble(module: nn.Module) -> None:
    """Give each process all weights until `scatter`, so that it may run the module by itself."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def scatter(module: nn.Module) -> None:
    """Leave each process its part of the weights only."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """A `state_dict` with its shards put together, on the CPU of the first process.

    The others get what is not sharded; so does everyone if nothing is.
    """
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    made: dict[str, Any] = {}
    for name, value in state.items():
        # One after the other, so that no more than one lies beside the shards on a GPU.
        full: Tensor | Any = value.full_tensor() if isinstance(value, DTensor) else value
        if full is value:
            made[name] = value
        elif first:
            made[name] = full.cpu()
    return made


def load_whole(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a `state_dict` of whole weights, which all processes have, into a sharded module."""
    set_model_state_dict(module, dict(state), options=WHOLE)
