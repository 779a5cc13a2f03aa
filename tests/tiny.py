"""What a run of `predict` needs at the least: two untrained domains, and images of noise."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.folder import save_domain
from cyclelight.networks.unet import UNetSettings

R = 16
"""Side of the images in pixels."""
TINY = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8)


def make_run(root: Path, images: Mapping[str, Iterable[str]], side: int = R) -> None:
    """The domains `cat` and `dog` in `root`, and in each folder of `images` those of its names."""
    for seed, name in enumerate(("cat", "dog")):
        torch.manual_seed(seed)
        unet = TINY.build(resolution=side, channels=3)
        save_domain(root / name, unet, NoiseSchedule(), card={"name": name})
    generator = np.random.default_rng(0)
    for folder, names in images.items():
        for name in names:
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def predict_words(root: Path, output: Path, *more: object) -> list[str]:
    """The words of a `predict` from `sources`, measured against `real`; `more` comes last."""
    given = {
        "model.source": root / "cat",
        "model.target": root / "dog",
        "model.method.steps": 4,
        "data.source": root / "sources",
        "data.reference": root / "real",
        "data.num_workers": 0,
        "output": output,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    pairs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["predict", *pairs, *map(str, more)]
