"""Engine: how networks are run. Speed is added from outside; denoisers stay plain."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue

DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""The dtype of the networks, by Lightning's word for a precision; states are always float32."""
_OLD_WORDS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def best_precision(device: str | torch.device) -> str:
    """The precision, in Lightning's words, in which a device runs networks fastest.

    `bf16-mixed` where the hardware multiplies matrices of bfloat16 (CPUs with AMX or AVX-512 BF16,
    GPUs since Ampere), else `32-true`. By what the hardware says rather than by a timing, so that a
    run that goes on where another was stopped finds the same.
    """
    if torch.device(device).type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return "bf16-mixed" if fast else "32-true"


@dataclass(frozen=True)
class Engine:
    """How the networks of a run are called.

    Args:
        compile: compile the networks (torch.compile, one shape): a minute or more at the start.
        graphs: replay each network as a CUDA graph, so that a small batch does not wait for Python;
            of no effect on other devices, where there are none.
    """

    compile: bool = False
    graphs: bool = True

    def speed_up(self, domain: Domain, precision: str = "32-true") -> Domain:
        """Let a domain's network run this way, in place; what is no network stays as it is.

        Args:
            domain: its denoiser's `network` is called by a `Runner` from now on.
            precision: one of `DTYPES`.

        Raises:
            ValueError: states would not stay in float32 under this precision.
        """
        self.speed_up_network(domain.denoiser, precision)
        return domain

    def speed_up_network(self, owner: Any, precision: str = "32-true") -> None:
        """Let the `network` of a denoiser, or of whatever has one, run this way, in place."""
        if isinstance(getattr(owner, "network", None), nn.Module):
            owner.network = Runner(owner.network, dtype_of(precision), self)


def dtype_of(precision: str | int) -> torch.dtype:
    """The dtype of the networks under a precision.

    Raises:
        ValueError: it is not one of `DTYPES`.
    """
    word = _OLD_WORDS.get(str(precision), str(precision))
    if word not in DTYPES:
        why = "puts the states in half precision too (up to 35 of 255 levels off)"
        reason = why if word in ("bf16-true", "16-true") else "is not supported here"
        raise BadValue(
            "precision", f"precision: {precision} {reason}; take one of {', '.join(DTYPES)}"
        )
    return DTYPES[word]


class Runner(nn.Module):
    """A network in a dtype and a memory layout of its own, compiled or replayed where asked for.

    On CPUs channels come last, and on GPUs where it is compiled: torch's own group norm of a GPU
    would bring them to the front and back again (88 ms in place of 151 for 32 images of 256 pixels
    on an H200).

    Args:
        network: called as network(x_t, timesteps, ...); it is changed in place.
        dtype: what it runs in; inputs are cast to it, and the output is in it.
        engine: how it is called.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, engine: Engine) -> None:
        super().__init__()
        # diffusers' own `to` warns about layers to be kept in float32, even where there are none.
        self.network = nn.Module.to(network, dtype)
        self.engine = engine
        self._layout: torch.memory_format | None = None
        self._replays: dict[tuple[torch.Size, ...], Replay] = {}
        self._batches: set[int] = set()
        if engine.compile:
            self.network.compile(dynamic=False)

    def forward(self, x_t: Tensor, timesteps: Tensor, *told: Tensor) -> Tensor:
        """The network's output (B, C or 2 C, H, W) for x_t (B, C, H, W), timesteps (B,).

        `told`, (B, ...) each, is what else the network is told.
        """
        batch = len(x_t)
        # Each further shape would be compiled anew; a few images more cost less.
        whole = min((b for b in self._batches if b >= batch), default=batch)
        if whole > batch and self.engine.compile:
            x_t, timesteps, *told = (  # type: ignore[assignment]
                torch.cat([each, each[:1].expand(whole - batch, *each.shape[1:])])
                for each in (x_t, timesteps, *told)
            )
        self._batches.add(len(x_t))
        x_t = x_t.contiguous(memory_format=self._arrange(x_t.device))
        if self.engine.graphs and x_t.is_cuda and not torch.is_grad_enabled():
            shapes = tuple(each.shape for each in (x_t, *told))
            if shapes not in self._replays:
                self._replays[shapes] = Replay(self._call, x_t, timesteps, *told)
            out = self._replays[shapes](x_t, timesteps, *told)
        else:
            out = self._call(x_t, timesteps, *told)
        return out[:batch]

    def _apply(self, fn: Any, recurse: bool = True) -> "Runner":
        """Move it: what was recorded of the weights where they were is of no use any more."""
        self._replays.clear()
        self._layout = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _arrange(self, device: torch.device) -> torch.memory_format:
        """The layout of the weights and the states, known when the network is on its device."""
        if self._layout is None:
            last = device.type == "cpu" or self.engine.compile
            self._layout = torch.channels_last if last else torch.contiguous_format
            self.network.to(memory_format=self._layout)
        return self._layout

    def _call(self, x_t: Tensor, timesteps: Tensor, *told: Tensor) -> Tensor:
        # The weights have their dtype; autocast would cast them again.
        with torch.autocast(x_t.device.type, enabled=False):
            out = self.network(x_t, timesteps, *told)
        return out if isinstance(out, Tensor) else out.sample


class Replay:
    """A function of tensors recorded once as a CUDA graph and replayed from then on."""

    def __init__(self, function: Any, *inputs: Tensor) -> None:
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = [each.clone() for each in inputs]
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # Where libraries choose their kernels and workspaces.
                for _ in range(2):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._out = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._out.clone()
