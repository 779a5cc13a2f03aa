"""Short fits of the modules that train generators, on images of noise."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules import DomainImages


def make_images(folder: Path, count: int = 12, side: int = 16) -> Path:
    """A folder of blurred noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
        image.save(folder / f"{index:02d}.png")
    return folder


def fit(module: LightningModule, images: Path, output: Path, steps: int, **trainer: Any) -> Trainer:
    """`steps` optimizer steps on batches of four."""
    given: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": steps,
        "max_epochs": -1,
        "default_root_dir": output,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        **trainer,
    }
    made = Trainer(**given)
    made.fit(module, DomainImages(str(images), batch_size=4, num_workers=0))
    return made
