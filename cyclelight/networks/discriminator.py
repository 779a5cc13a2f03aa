"""The discriminator of a denoising diffusion GAN (Xiao, Kreis and Vahdat 2022, appendix C)."""

from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.errors import at_least
from cyclelight.networks.ddgan import sine_embedding
from cyclelight.networks.fir import halved
from cyclelight.networks.scaled import conv, dense

EMBEDDED = 128
"""Width of the timestep's embedding."""


class Discriminator(nn.Module):
    """How real x_t is, given x_{t+1} and the timestep: (B,), without a range.

    Four residual blocks of which three halve the resolution, the spread of the batch, a sum over
    positions.

    Args:
        channels: channels of the images.
        width: channels at the finest resolution; four times as many at the coarsest.
    """

    def __init__(self, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        at_least(1, width=width)
        self.embedding = nn.Sequential(
            dense(EMBEDDED, EMBEDDED, "out"),
            nn.LeakyReLU(0.2),
            dense(EMBEDDED, EMBEDDED, "out"),
            nn.LeakyReLU(0.2),
        )
        self.stem = conv(2 * channels, width, 1, fan="out")
        widths = [width, width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.ModuleList(
            Block(a, b, halve=level > 0) for level, (a, b) in enumerate(pairwise(widths))
        )
        self.mixed = conv(widths[-1] + 1, widths[-1], fan="out", scale=0)
        self.last = dense(widths[-1], 1, "out")

    def forward(self, x_t: Tensor, t: Tensor, x_next: Tensor) -> Tensor:
        """Logits (B,).

        Args:
            x_t: the image to judge, (B, C, H, W).
            t: (B,) integers.
            x_next: the noisier image x_{t+1} that it comes from, (B, C, H, W).
        """
        emb = self.embedding(sine_embedding(t, EMBEDDED).to(x_t.dtype))
        h = self.stem(torch.cat([x_t, x_next], dim=1))
        for block in self.blocks:
            h = block(h, emb)
        # Of the whole batch, so that images that are all alike are told from real ones.
        spread = (h.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        h = torch.cat([h, spread.expand(len(h), 1, *h.shape[2:])], dim=1)
        h = F.leaky_relu(self.mixed(h), 0.2).sum(dim=(2, 3))
        logits: Tensor = self.last(h)[:, 0]
        return logits


class Block(nn.Module):
    """Two convolutions, the timestep added after the first, beside a 1 x 1 convolution."""

    def __init__(self, c_in: int, c_out: int, *, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.first = conv(c_in, c_out, fan="out")
        self.dense = dense(EMBEDDED, c_out, "out")
        self.second = conv(c_out, c_out, fan="out", scale=0)
        self.skip = conv(c_in, c_out, 1, bias=False, fan="out")

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.first(F.leaky_relu(x, 0.2)) + self.dense(emb)[:, :, None, None]
        h = F.leaky_relu(h, 0.2)
        if self.halve:
            h, x = halved(h), halved(x)
        y: Tensor = (self.second(h) + self.skip(x)) / sqrt(2)
        return y
