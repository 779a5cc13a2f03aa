"""The denoiser of a diffusion autoencoder's codes (Preechakul et al. 2022, sec. 4)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclelight.networks.adm_parts import timestep_embedding


class LatentPrior(nn.Module):
    """The noise in a normalised code at a timestep: (z_t, t) => (B, code_size)."""

    def __init__(self, code_size: int, width: int, layers: int, time: int) -> None:
        super().__init__()
        self.time = time
        self.time_embed = nn.Sequential(
            nn.Linear(time, code_size), nn.SiLU(), nn.Linear(code_size, code_size)
        )
        first = PriorLayer(code_size, width, code_size)
        middle = (PriorLayer(width + code_size, width, code_size) for _ in range(layers - 2))
        last = nn.ModuleDict({"linear": nn.Linear(width + code_size, code_size)})
        self.layers = nn.ModuleList([first, *middle, last])

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        emb = self.time_embed(timestep_embedding(t, self.time, z_t.dtype))
        *layers, last = self.layers
        h = z_t
        for i, layer in enumerate(layers):
            h = layer(torch.cat([h, z_t], dim=1) if i else h, emb)
        eps: Tensor = last["linear"](torch.cat([h, z_t], dim=1))  # type: ignore[index]
        return eps


class PriorLayer(nn.Module):
    """A linear layer that the timestep scales, norm and SiLU."""

    def __init__(self, c_in: int, c_out: int, emb: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)
        told = nn.Linear(emb, c_out)
        self.cond_layers = nn.Sequential(nn.SiLU(), told)
        self.norm = nn.LayerNorm(c_out)
        for layer in (self.linear, told):  # As the program of DiffAE begins.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(x) * (1 + self.cond_layers(emb))))
