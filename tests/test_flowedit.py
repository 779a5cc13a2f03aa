"""FlowEdit: the published update, and what it becomes of the pieces that stand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import Gaussian, domain
from PIL import Image
from text_folders import pipeline
from torch import Tensor, nn
from torch.testing import assert_close

import cyclelight
from cyclelight import CycleDiffusion, Domain, FlowEdit, KeyedNoise
from cyclelight.cli import main
from cyclelight.diffusion.flow import FlowDenoiser, flow_schedule
from cyclelight.diffusion.schedule import CLEAN

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

ROOT = Path(__file__).parents[1]
SHIFT = 3.0


class Velocity(nn.Module):
    """v of some flow, which is not linear in its state, in float64."""

    def __init__(self, phase: float) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.tensor(phase, dtype=torch.float64), requires_grad=False)

    def forward(self, state: Tensor, timesteps: Tensor) -> Tensor:
        return torch.sin(2 * state + self.phase) + timesteps.view(-1, 1, 1, 1) / 1000 * state


SOURCE, TARGET = Velocity(0.3), Velocity(1.7)


def flow(network: nn.Module) -> Domain:
    return Domain(FlowDenoiser(network, flow_schedule(SHIFT)), 8)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)


def published(x: Tensor, timesteps: list[int], n_avg: int, n_min: int, seed: int) -> Tensor:
    """Algorithm 1 of Kulikov et al. 2025, step by step in the flow's own states and levels."""
    noise, left = KeyedNoise(seed, range(len(x))), len(timesteps)
    levels = [(t + 1) / 1000 for t in timesteps]
    levels = [SHIFT * u / (1 + (SHIFT - 1) * u) for u in levels] + [0.0]
    edited, state = x, x

    def velocity(network: nn.Module, z: Tensor, u: float) -> Tensor:
        return network(z, torch.full((len(z),), 1000 * u, dtype=z.dtype))

    for t, u, lower in zip(timesteps, levels, levels[1:], strict=False):
        if left > n_min:
            difference = torch.zeros_like(x)
            for k in range(n_avg):
                n = noise("independent" if k == 0 else f"independent {k}", t, x)
                z = (1 - u) * x + u * n
                v = velocity(TARGET, edited + z - x, u) - velocity(SOURCE, z, u)
                difference += v / n_avg
            edited = edited + (lower - u) * difference
        else:
            if left == n_min:
                n = noise("independent", t, x)
                state = edited + ((1 - u) * x + u * n) - x
            state = state + (lower - u) * velocity(TARGET, state, u)
        left -= 1
    return state if n_min else edited


@pytest.mark.parametrize(("n_avg", "n_min"), [(1, 0), (3, 0), (1, 4), (2, 1)])
def test_it_is_the_published_update(n_avg: int, n_min: int) -> None:
    x, method = images(), FlowEdit(steps=20, strength=0.6, n_avg=n_avg, n_min=n_min)
    ours = cyclelight.translate(flow(SOURCE), flow(TARGET), x, method=method, seed=5)
    timesteps = list(method.grid(flow_schedule(SHIFT)).timesteps)
    assert len(timesteps) == 12
    assert_close(ours, published(x, timesteps, n_avg, n_min, 5), rtol=0, atol=1e-11)
    assert (ours - x).abs().mean() > 0.1


def test_the_levels_are_those_of_the_scheduler() -> None:
    """And u = 1 alone, where nothing of the image is left, is out of reach."""
    for shift in (1.0, SHIFT):
        schedule = flow_schedule(shift)
        a = schedule.alphas_cumprod
        u = (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())
        scheduler = type(pipeline("flow").scheduler)(shift=shift)
        assert_close(u.float(), scheduler.sigmas.flip(0)[:-1], rtol=1e-5, atol=1e-7)
        assert schedule.alpha_bar(CLEAN) == 1 and schedule.timesteps == 999
    for given in ({"shift": 0.0}, {"levels": 1}, {"shift": float("nan")}):
        with pytest.raises(ValueError, match="shift must be"):
            flow_schedule(**given)  # type: ignore[arg-type]


def test_it_is_a_setting_of_cyclediffusion() -> None:
    """Between any two domains, flows or not; with one noise a step, to the last bit."""
    source, target = domain(Gaussian(-0.3, 0.2), 8), domain(Gaussian(0.4, 0.35), 8)
    x = images().float()
    y = cyclelight.translate(source, target, x, method=FlowEdit(20, 0.6))
    same = CycleDiffusion(20, eta=0.0, strength=0.6, cleanup=0, draw="independent")
    assert torch.equal(cyclelight.translate(source, target, x, method=same), y)
    ahead = FlowEdit(20, 0.6, n_avg=2, parallel=16)
    apart = FlowEdit(20, 0.6, n_avg=2)
    flows = flow(SOURCE), flow(TARGET)
    one, other = (cyclelight.translate(*flows, images(), method=m) for m in (ahead, apart))
    assert_close(one, other, rtol=0, atol=1e-12)
    assert (one - cyclelight.translate(*flows, images(), method=FlowEdit(20, 0.6))).std() > 1e-3


@pytest.mark.parametrize("n_avg", [1, 3])
def test_equal_domains_give_the_image_back(n_avg: int) -> None:
    x, method = images(), FlowEdit(10, n_avg=n_avg)
    assert torch.equal(cyclelight.translate(flow(SOURCE), flow(SOURCE), x, method=method), x)


def test_what_does_not_fit_is_told() -> None:
    for given, message in [
        ({"n_avg": 0}, "n_avg must be at least 1, got 0"),
        ({"n_min": -1}, "n_min must be at least 0, got -1"),
        ({"n_min": 33}, "n_min must be below the 33 steps that are run, got 33"),
        ({"strength": 0}, r"strength must be in \(0, 1\], got 0"),
        ({"steps": 1000}, r"steps must be in 1..999 \(the schedule's timesteps\), got 1000"),
    ]:
        with pytest.raises(ValueError, match=message):
            cyclelight.translate(flow(SOURCE), flow(TARGET), images(), method=FlowEdit(**given))  # type: ignore[arg-type]


def test_the_recipe(tmp_path: Path) -> None:
    """With a tiny model in the place of the published one."""
    pipeline("flow").save_pretrained(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    words = [str(tmp_path / "a.png"), "a b", "c d", "--output", str(tmp_path / "out")]
    recipe = ["--config", str(ROOT / "configs" / "methods" / "flowedit.yaml")]
    tiny = ["--model.model", str(tmp_path / "model"), "--model.method.steps", "6"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["edit", *words, *recipe, *tiny, *quiet]) == 0
    made = np.array(Image.open(tmp_path / "out" / "images" / "a.png", formats=["PNG"]))
    assert made.shape == pixels.shape and made.std() > 1
    kept = (tmp_path / "out" / "config.yaml").read_text()
    assert "FlowEdit" in kept and "source_scale: 3.5" in kept and "scale: 13.5" in kept
