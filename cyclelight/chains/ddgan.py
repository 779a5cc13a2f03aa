"""The way from noise to image of a denoising diffusion GAN (Xiao, Kreis and Vahdat 2022)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cyclelight.diffusion.ddgan import DDGANSchedule

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, t, latent) -> x_0: what `DDGANGenerator` is."""


def generate(
    network: Step, schedule: DDGANSchedule, x_T: Tensor, latents: Tensor, noise: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x_0 as the network says, the next state), for t = T - 1 .. 0; the last state is the image.

    Args:
        network: says x_0; the number that it gets is t, 0-based.
        schedule: that of the network.
        x_T: N(0, I), (B, C, H, W).
        latents: N(0, I), (T, B, latent_size), in the order in which they are used.
        noise: N(0, I), (T - 1, B, C, H, W), in that order; the last step has none.
    """
    x = x_T
    for i, t in enumerate(reversed(range(schedule.timesteps))):
        step = torch.full((len(x),), t, device=x.device)
        # States stay as exact as they came, whatever the network computes in.
        x_0 = network(x, step, latents[i]).to(x.dtype)
        # At t = 0 the posterior is x_0 itself.
        x = schedule.posterior(x_0, x, step, noise[i]) if t else x_0
        yield x_0, x
