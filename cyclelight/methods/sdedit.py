"""SDEdit cleanup: a little noise, then the target's own denoising (Meng et al. 2022)."""

from collections.abc import Iterator

from torch import Tensor

from cyclelight.chains.sample import sample_stream
from cyclelight.diffusion.denoiser import Denoiser
from cyclelight.diffusion.noise import Noise
from cyclelight.diffusion.schedule import NoiseSchedule, TimeGrid
from cyclelight.diffusion.steps import add_noise

TRAINING_STEPS = 1000
"""The length of the training schedule that `cleanup` is counted on."""


def cleanup_grid(schedule: NoiseSchedule, steps: int, cleanup: int) -> TimeGrid | None:
    """The grid points that a cleanup visits: those of the whole grid below `cleanup`; None for 0.

    `cleanup` is counted on a training schedule of 1000 steps: 100 is the cleanest tenth of any
    schedule, and on a grid of 100 steps it visits 10 points.

    Raises:
        ValueError: `cleanup` is not in 0 .. 1000.
    """
    if not 0 <= cleanup <= TRAINING_STEPS:
        raise ValueError(f"cleanup must be in 0..{TRAINING_STEPS}, got {cleanup}")
    if cleanup == 0:
        return None
    top = max(1, round(cleanup * schedule.timesteps / TRAINING_STEPS))
    return TimeGrid.whole(schedule, steps).below(top)


def cleanup_stream(
    target: Denoiser,
    y_0: Tensor,
    *,
    schedule: NoiseSchedule,
    grid: TimeGrid,
    eta: float,
    noise: Noise,
) -> Iterator[Tensor]:
    """The states of a cleanup of the images y_0, each (B, C, H, W); the last is the image.

    Noise is added up to the grid's own top timestep, the level at which the chain starts.
    `noise` is called for ("cleanup start", grid.start) and ("cleanup", t).
    """
    start = noise("cleanup start", grid.start, y_0)
    y_t = add_noise(y_0, start, schedule.alpha_bar(grid.start))
    return sample_stream(
        target, y_t, schedule=schedule, grid=grid, eta=eta, noise=noise, purpose="cleanup"
    )
