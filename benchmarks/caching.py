"""Deep features kept from one step to the next, against simply fewer steps.

    python benchmarks/caching.py SOURCES OUT --steps 50 --every 2

After DeepCache (Ma et al. 2024): the finest level of both UNets runs in every step, all below it
only in every second, third, ..., and what it said is kept meanwhile. Source and target keep theirs
in the same steps, so that equal models still give the image back. Translates SOURCES into OUT with
CycleDiffusion and prints the time; what it is worth, beside fewer steps at equal time, tells

    lightning compare --config configs/compare/search.yaml ... --rows.caching.theirs OUT
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torchvision.utils import save_image

from cyclelight.chains.engine import Engine, best_precision
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.domains.folder import load_domain
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.translate import translate
from datamodules.listing import list_images
from datamodules.square_images import SquareImages


class Cached(nn.Module):
    """A UNet2DModel whose lower levels run in every `every`-th call of a chain alone."""

    def __init__(self, unet: UNet2DModel, every: int) -> None:
        super().__init__()
        self.unet, self.every = unet, every
        self.last, self.calls, self.below = -1, 0, torch.empty(0)
        unet.up_blocks[-2].register_forward_hook(self.keep)

    def keep(self, block: nn.Module, given: object, said: Tensor) -> None:
        """What the lower levels say to the finest one."""
        self.below = said

    def forward(self, sample: Tensor, timesteps: Tensor) -> Tensor:
        """The network's output (B, C, R, R)."""
        t = int(timesteps[0])
        self.calls = 0 if t >= self.last else self.calls + 1  # A chain begins at the noisy end.
        self.last = t
        unet = self.unet
        if self.calls % self.every == 0:
            return unet(sample, timesteps).sample
        emb = unet.time_embedding(unet.time_proj(timesteps).to(sample.dtype))
        first = unet.conv_in(sample)
        _, said = unet.down_blocks[0](hidden_states=first, temb=emb)
        last = unet.up_blocks[-1]
        rows = last(self.below, (first, *said)[: len(last.resnets)], emb)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(rows)))


def main() -> None:
    """Translate a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--source", default="checkpoints/cat")
    parser.add_argument("--target", default="checkpoints/dog")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--batch", type=int, default=20)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    domains = [load_domain(path).to(device) for path in (args.source, args.target)]
    for domain in domains:
        domain.denoiser.network = Cached(domain.denoiser.network, args.every)
    source, target = (
        Engine(graphs=False).speed_up(domain, best_precision(device)) for domain in domains
    )
    images = SquareImages(list_images(args.sources), source.resolution)
    method = CycleDiffusion(steps=args.steps, eta=1.0)
    args.output.mkdir(parents=True)
    spent = 0.0
    for start in range(0, len(images), args.batch):
        places = range(start, min(start + args.batch, len(images)))
        x = to_float(torch.stack([images.pixels(place) for place in places])).to(device)
        keys = [images.keys[place] for place in places]
        began = time.process_time()
        with torch.no_grad():
            y = translate(source, target, x, method=method, keys=keys)
        spent += time.process_time() - began
        for key, pixels in zip(keys, to_uint8(y), strict=True):
            save_image(pixels.permute(2, 0, 1) / 255, args.output / Path(key).with_suffix(".png"))
    print(f"{len(images)} images, {spent / len(images):.3f} s of the processor each")


if __name__ == "__main__":
    main()
