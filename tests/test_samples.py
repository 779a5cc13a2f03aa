"""The pictures that a fit draws: where, when, of what, and for how much of the time."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from tiny import TINY
from torch import Tensor

from cyclelight.callbacks.samples import CAPTION, SMALLEST, SampleGrid, side_by_side
from cyclelight.modules.autoencoder import AutoencoderModule
from cyclelight.modules.domain import DomainModule
from cyclelight.networks.autoencoder import AutoencoderSettings
from datamodules import DomainImages

CATS = str(Path(__file__).parents[1] / "docs" / "demo" / "cats")


def fit(root: Path, module: Any, steps: int = 6, **settings: Any) -> list[str]:
    """The names of the pictures of a fit without a logger."""
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=root,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DomainImages(CATS, batch_size=2, num_workers=0))
    return sorted(path.name for path in (root / "samples").glob("*"))


class White(DomainModule):
    """Shows white, after a while, and counts for how many images it was asked."""

    def __init__(self, seconds: float = 0.0, **settings: Any) -> None:
        super().__init__(resolution=16, network=TINY, warmup_steps=0, **settings)
        self.seconds, self.asked = seconds, list[tuple[int, int]]()

    def pictures(self, real: Tensor, first: int) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.asked.append((first, len(real)))
        time.sleep(self.seconds * len(real))
        return torch.ones_like(real)


def test_pictures_are_counted_in_steps_and_the_last_is_drawn(tmp_path: Path) -> None:
    module = White(sample_every_n_steps=4)
    assert fit(tmp_path, module) == ["step_000004.png", "step_000006.png"]
    assert module.training
    # 6 images, of the first batches, 4 to a row, each enlarged to 64 pixels, with borders of 8.
    picture = np.array(Image.open(tmp_path / "samples" / "step_000006.png"))
    assert picture.shape[0] == CAPTION + 2 * (SMALLEST + 8) + 8
    half = picture.shape[1] // 2
    images = picture[CAPTION + 8 : -8]
    assert (images[:, half + 12 :] == 255).all(), "what was made stands on the right"
    assert images[:, :half].std() > 20, "real images stand on the left"


def test_never(tmp_path: Path) -> None:
    assert fit(tmp_path, White(sample_every_n_steps=0)) == []


def test_pictures_take_a_twentieth_of_the_time(tmp_path: Path) -> None:
    """The first is drawn small, and no other where each takes longer than all the steps."""
    module = White(seconds=0.5, sample_every_n_steps=1)
    assert fit(tmp_path, module, steps=5) == ["step_000001.png", "step_000005.png"]
    assert module.asked == [(0, 2), (0, 4)]


def test_the_averaged_weights_are_shown_and_the_fit_is_none_the_wiser(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watched(White):
        def pictures(self, real: Tensor, first: int) -> Tensor:
            seen.append(next(self.denoiser.network.parameters()).detach().clone())
            return super().pictures(real, first)

    ends = []
    for every in (0, 1):
        torch.manual_seed(0)
        module = Watched(sample_every_n_steps=every, ema_decay=0.9, learning_rate=0.01)
        fit(tmp_path / str(every), module)
        ends.append(module.denoiser.network.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    # The fit ends with the averaged weights, which the last picture has shown.
    assert torch.equal(seen[-1], next(iter(ends[1].values())))
    assert not torch.equal(seen[0], seen[-1])


def test_a_failing_picture_does_not_end_the_fit(tmp_path: Path) -> None:
    class Broken(White):
        def pictures(self, real: Tensor, first: int) -> Tensor:
            return super().pictures(real, first) * float("nan")

    with pytest.warns(UserWarning, match="no picture of step 6 could be made: to_uint8 takes fin"):
        assert fit(tmp_path, Broken()) == []
    assert (tmp_path / "domain").is_dir()


def test_reconstructions_stand_beside_their_images(tmp_path: Path) -> None:
    small = AutoencoderSettings(block_out_channels=(8, 8), norm_groups=8, latent_channels=4)
    fit(tmp_path, AutoencoderModule(resolution=16, network=small))
    with Image.open(tmp_path / "samples" / "step_000006.png") as picture:
        assert picture.mode == "RGB" and picture.width > 8 * SMALLEST


def test_greyscale_images_and_unequal_grids(tmp_path: Path) -> None:
    one = torch.zeros(1, 100, 100, 1, dtype=torch.uint8)
    picture = np.array(side_by_side({"a": one, "b": torch.full((9, 8, 8, 1), 7, dtype=one.dtype)}))
    assert (picture == 0).any() and (picture == 7).sum() == 9 * 64 * 64 * 3


def test_steps_are_counted_where_a_batch_is_two(tmp_path: Path) -> None:
    """As with two optimizers; Lightning's count goes 2, 4, 6."""
    drawn = []

    class Grid(SampleGrid):
        def _draw(self, trainer: Any, module: Any) -> None:
            drawn.append(trainer.global_step)

    class Strategy:
        broadcast = staticmethod(lambda value: value)

    class Fake:
        global_step = 0
        strategy = Strategy

    trainer: Any = Fake()
    grid = Grid(5)
    grid.on_train_start(trainer, None)  # type: ignore[arg-type]
    for step in range(2, 18, 2):
        trainer.global_step = step
        grid.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert drawn == [6, 10, 16]
