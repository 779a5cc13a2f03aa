"""Timings of a translation: what is measured, and how."""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from cyclelight.chains.decode import decode
from cyclelight.chains.encode import encode
from cyclelight.chains.engine import Engine
from cyclelight.chains.loop import last
from cyclelight.chains.sample import sample
from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.pixels import to_uint8
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.domain import Domain
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.sdedit import renoised_chain
from cyclelight.methods.translate import translate
from cyclelight.networks import NetworkSettings

LONG = 20.0
"""Seconds after which a way is timed no more often."""

Pair = tuple[Domain, Domain]


@dataclass(frozen=True)
class Case:
    """One way to translate, by CycleDiffusion with strength 0.85 and cleanup 100.

    Args:
        name: what it is called.
        steps: timesteps of the whole grid.
        batch: images that are translated together.
        eta: as in `Step`.
        stored: encode first, keep the code, then decode, as the authors' program does.
        once: time it once.
        engine: run the networks by an `Engine`, with the options that follow.
        precision: of the networks, in Lightning's words.
        graphs, compiled: see `Engine`.
        parallel: see `CycleDiffusion`.
    """

    name: str
    steps: int = 50
    batch: int = 1
    eta: float | tuple[float, float] = 1.0
    stored: bool = False
    once: bool = False
    engine: bool = False
    precision: str = "32-true"
    graphs: bool = False
    compiled: bool = False
    parallel: int = 0

    @property
    def method(self) -> CycleDiffusion:
        """Its settings."""
        return CycleDiffusion(steps=self.steps, eta=self.eta, parallel=self.parallel)

    def translate(self, pair: Pair, images: Tensor) -> Tensor:
        """The translated images."""
        if not self.stored:
            return translate(*pair, images, method=self.method)
        source, target = pair
        assert isinstance(self.eta, float), "a code that is stored has one eta"
        y = decode(target, encode(source, images, steps=self.steps, eta=self.eta))
        grid = TimeGrid.whole(target.schedule, self.steps).below(self.method.cleanup)
        noise = KeyedNoise(0, range(len(images)))
        chain = renoised_chain(
            target.denoiser, y, grid=grid, eta=1.0, noise=noise, purpose="cleanup"
        )
        with torch.no_grad():
            return last(chain, len(grid), "cleanup", progress=False)


@dataclass(frozen=True)
class Timing:
    """What was measured of a case.

    Args:
        calls: calls of a network for each image.
        seconds: medians over repeats for a whole batch.
        spread: (longest - shortest) / median over the repeats.
        floor: share of that time that the bare calls take alone, median over the repeats.
        chip: arithmetic per second as a share of the device's; None if unknown.
        megabytes: peak memory of the device, or of the process on a CPU; None if unknown.
        levels, off: of the first image: the largest difference from the result of the first case
            with its steps and eta, of 255, and the share of values that differ by more than one
            level; None for that case, and where the weights are random.
    """

    case: Case
    calls: float
    seconds: float
    spread: float
    repeats: int
    floor: float
    chip: float | None
    megabytes: float | None
    levels: int | None = None
    off: float | None = None

    @property
    def images_per_second(self) -> float:
        """Of the whole translation."""
        return self.case.batch / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "images_per_second": self.images_per_second}


class Machine:
    """A device, what it does in a second, and how its time and memory are taken."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.facts = {"matrix_product_flops": self._matrix_rate()}

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """How long `work` takes."""
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begin

    def forget_peak(self) -> None:
        """Begin to take the peak memory anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float | None:
        """Peak memory since then in megabytes; None if the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        status = Path("/proc/self/status")
        if not status.exists():
            return None
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6

    def _matrix_rate(self) -> float:
        """Operations per second of a large product of matrices, in the faster dtype."""
        side = 8192 if self.device.type == "cuda" else 2048
        rates = []
        for dtype in (torch.float32, torch.bfloat16):
            a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            self.seconds(lambda: a @ b)  # noqa: B023 (called at once)
            rates.append(2 * side**3 / median(self.seconds(lambda: a @ b) for _ in range(7)))  # noqa: B023
        return max(rates)


def time_cases(
    pair: Pair, cases: Sequence[Case], machine: Machine, *, repeats: int, judge: bool
) -> Iterator[Timing]:
    """Each case timed on copies of the pair, with images that the source has sampled.

    Args:
        judge: compare the results, which says nothing where weights are random.
    """
    flops = [_flops(domain) for domain in pair]
    source = replace(pair[0], denoiser=deepcopy(pair[0].denoiser)).to(machine.device)
    images = sample(source, max(case.batch for case in cases), steps=10).clamp(-1, 1)
    plain: dict[tuple[int, object], Tensor] = {}
    for case in tqdm(cases, "benchmark", unit="way"):
        copies = _copies(pair, case, machine)
        timing, made = _time(case, copies, images[: case.batch], machine, repeats, flops)
        first = to_uint8(made)[0].int()
        reference = plain.setdefault((case.steps, case.eta), first)
        if judge and reference is not first:
            off = (first - reference).abs()
            levels, share = int(off.max()), float((off > 1).float().mean())
            timing = replace(timing, levels=levels, off=share)
        yield timing


def _copies(pair: Pair, case: Case, machine: Machine) -> Pair:
    def copy(domain: Domain) -> Domain:
        own = replace(domain, denoiser=deepcopy(domain.denoiser)).to(machine.device)
        engine = Engine(compile=case.compiled, graphs=case.graphs)
        return engine.speed_up(own, case.precision) if case.engine else own

    return copy(pair[0]), copy(pair[1])


def _time(
    case: Case, pair: Pair, images: Tensor, machine: Machine, repeats: int, flops: Sequence[int]
) -> tuple[Timing, Tensor]:
    floor, states = _floor(case, pair, images, machine)
    arithmetic = sum(count * one for count, one in zip(states, flops, strict=True))
    if case.compiled or case.graphs:
        case.translate(pair, images)  # What is compiled or recorded at first use.
    made: list[Tensor] = []
    times: list[float] = []
    shares: list[float] = []
    while len(times) < (1 if case.once else repeats) and sum(times) < LONG:
        made.clear()
        bare = floor()  # In turns, as the machine may be faster now than then.
        machine.forget_peak()
        times.append(machine.seconds(lambda: made.append(case.translate(pair, images))))
        peak = machine.peak()
        shares.append((bare + floor()) / 2 / times[-1])
    seconds = median(times)
    return Timing(
        case=case,
        calls=sum(states) / len(images),
        seconds=seconds,
        spread=(max(times) - min(times)) / seconds,
        repeats=len(times),
        floor=median(shares),
        chip=arithmetic / seconds / machine.facts["matrix_product_flops"],
        megabytes=peak,
    ), made[0]


@torch.no_grad()
def _floor(
    case: Case, pair: Pair, images: Tensor, machine: Machine
) -> tuple[Callable[[], float], list[int]]:
    """(what times the bare calls of a batch, how many states source and target get for it)."""
    source, target = pair
    length = len(TimeGrid.truncated(source.schedule, case.steps, 0.85))
    cleanup = case.method.length(target.schedule) - length
    states = source.to_states(images)
    together = min(length, max(1, case.parallel // len(states)))
    chunks = [together] * (length // together) + [length % together] * (length % together > 0)
    calls: list[tuple[Callable[[int], None], int]] = []
    for domain, sizes in ((source, chunks), (target, [1] * (length + cleanup))):
        assert isinstance(domain.denoiser, NetworkDenoiser)
        for size in sorted(set(sizes)):
            x = states.repeat(size, 1, 1, 1)
            t = torch.zeros(len(x), dtype=torch.long, device=x.device)
            call = partial(_calls, domain.denoiser, x, t)
            call(2)
            calls.append((call, sizes.count(size)))

    def seconds() -> float:
        return sum(machine.seconds(partial(call, 5)) / 5 * count for call, count in calls)

    return seconds, [length * len(states), (length + cleanup) * len(states)]


@torch.no_grad()
def _calls(denoiser: NetworkDenoiser, x: Tensor, t: Tensor, count: int) -> None:
    for _ in range(count):
        denoiser.output(x, t)


@torch.no_grad()
def _flops(domain: Domain) -> int:
    """Operations of the network for one state."""
    assert isinstance(domain.denoiser, NetworkDenoiser)
    x = torch.zeros((1, *domain.shape))
    with FlopCounterMode(display=False) as counter:
        domain.denoiser.output(x, torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops()


def random_domain(settings: NetworkSettings, resolution: int, seed: int) -> Domain:
    """A domain of a freshly initialised network."""
    torch.manual_seed(seed)
    network = settings.build(resolution=resolution, channels=3).eval().requires_grad_(False)
    return Domain(NetworkDenoiser(network, NoiseSchedule()), resolution)


def device_name(device: torch.device) -> str:
    """What the device is called, and with how many threads a CPU works."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    return f"{name}, {torch.get_num_threads()} threads"
