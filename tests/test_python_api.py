"""What the Python functions make of what they are given: the right images, or one clear line."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cyclelight
from cyclelight import Domain, NetworkDenoiser, NoiseSchedule, Prediction
from cyclelight.diffusion.pixels import to_float
from cyclelight.errors import argument_of
from cyclelight.networks.unet import UNetSettings

R = 8
SCHEDULE = NoiseSchedule()


def domain(channels: int = 3) -> Domain:
    torch.manual_seed(0)
    settings = UNetSettings((8,), 1, (), head_channels=8, norm_groups=8)
    network = settings.build(resolution=R, channels=channels)
    return Domain(NetworkDenoiser(network, SCHEDULE), R, channels)


CAT = domain()
IMAGES = torch.rand(2, 3, R, R) * 2 - 1


class Own:
    """A denoiser of one's own, with whatever answer."""

    schedule = SCHEDULE

    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        self.answer = answer

    def __call__(self, x_t: torch.Tensor, t: Any) -> Any:
        return self.answer(x_t)


CALLS: list[Callable[[Any], object]] = [
    lambda x: cyclelight.translate(CAT, CAT, x, steps=2),
    lambda x: cyclelight.translate(None, CAT, x, method=cyclelight.SDEdit(steps=2)),
    lambda x: cyclelight.encode(CAT, x, steps=2),
    lambda x: cyclelight.invert(CAT, x, steps=2),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("images", "says"),
    [
        ((IMAGES + 1) * 127.5, "in [-1, 1], got values from"),
        (IMAGES * 100, "in [-1, 1], got values from"),
        (((IMAGES + 1) * 127.5).byte(), "got torch.uint8: 8-bit levels x become x / 127.5 - 1"),
        (IMAGES * float("nan"), "images must be finite"),
        (IMAGES / 0, "images must be finite"),
        (IMAGES.numpy(), "got a NumPy array; cyclelight.load_images makes one"),
        (Image.new("RGB", (R, R)), "got a Image; cyclelight.load_images makes one"),
        ("cat.png", "got a str; cyclelight.load_images makes one"),
        (None, "got None"),
        (IMAGES[:0], "at least one, got an empty batch"),
        (IMAGES[0], "got (3, 8, 8); of one image, images[None]"),
        (IMAGES[:, :1], "must have shape (B, 3, 8, 8) for domain 'domain', got (2, 1, 8, 8)"),
        (IMAGES[..., :4], "must have shape (B, 3, 8, 8) for domain 'domain', got (2, 3, 8, 4)"),
    ],
)
def test_images_are_images(call: Callable[[Any], object], images: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        call(images)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert argument_of(error.value) == "images"


def test_a_range_from_zero_to_one_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="if they lie in \\[0, 1\\], x must become 2 x - 1"):
        cyclelight.encode(CAT, IMAGES.abs(), steps=2)
    # Bright images on white are in [0, 1], too, and right.
    bright = torch.randint(128, 256, (2, R, R, 3), dtype=torch.uint8)
    cyclelight.encode(CAT, to_float(bright), steps=2)
    with pytest.warns(UserWarning, match="have no value below 0"):
        cyclelight.encode(CAT, bright.permute(0, 3, 1, 2) / 255, steps=2)
    # A model overshoots: what one has made is taken by the next.
    cyclelight.encode(CAT, IMAGES * 1.5, steps=2)
    cyclelight.encode(CAT, torch.zeros_like(IMAGES), steps=2)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: x, "a denoiser must return Prediction(eps), got a tensor; of a network"),
        (lambda x: SimpleNamespace(sample=x), "got a SimpleNamespace; of a network"),
        (lambda x: None, "must return Prediction(eps), got None"),
        (lambda x: Prediction(x[:, :1]), "eps must have the shape of x_t, (2, 3, 8, 8), got (2, 1"),
        (lambda x: Prediction(x[:1]), "got (1, 3, 8, 8)"),
        (lambda x: Prediction(x, x[:, :1]), "v_range must have the shape of x_t"),
        (lambda x: Prediction(x.numpy()), "got a NumPy array"),
    ],
)
def test_a_denoisers_answer_is_of_its_question(answer: Any, says: str) -> None:
    own = Domain(Own(answer), R)
    code = cyclelight.encode(CAT, IMAGES, steps=2)
    for call in (
        lambda: cyclelight.translate(CAT, own, IMAGES, steps=2),
        lambda: cyclelight.encode(own, IMAGES, steps=2),
        lambda: cyclelight.decode(own, code),
        lambda: cyclelight.sample(own, 2, steps=2),
        lambda: cyclelight.invert(own, IMAGES, steps=2),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert says in str(error.value) and "\n" not in str(error.value)


def test_a_networks_answer_too() -> None:
    class Grey(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
            return SimpleNamespace(sample=x.mean(1, keepdim=True) * self.weight)

    own = Domain(NetworkDenoiser(Grey(), SCHEDULE), R)
    with pytest.raises(ValueError, match=r"make as many channels, or twice .* got \(2, 1, 8, 8\)"):
        cyclelight.sample(own, 2, steps=2)


def test_other_arguments() -> None:
    network: Any = torch.nn.Linear(1, 1)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: Domain(network, R), "NetworkDenoiser(network, schedule) is one"),
        (lambda: cyclelight.translate("cat", CAT, IMAGES), "source must be a Domain"),  # type: ignore[arg-type]
        (lambda: cyclelight.sample(CAT.denoiser, 2), "domain must be a Domain"),  # type: ignore[arg-type]
        (lambda: cyclelight.decode(CAT, IMAGES), "code must be a LatentCode"),  # type: ignore[arg-type]
        (lambda: cyclelight.sample(CAT, 0), "count must be at least 1"),
        (lambda: cyclelight.encode(CAT, IMAGES, keys=["a"]), "one per image: got 1 keys, 2 images"),
        (lambda: cyclelight.encode(CAT, IMAGES, keys="ab"), "got the string 'ab'"),
        (lambda: cyclelight.encode(CAT, IMAGES, noise=IMAGES), "noise must be a function"),  # type: ignore[arg-type]
        (lambda: cyclelight.sample(CAT, x_T=IMAGES / 0), "x_T must be finite"),
    ]
    for call, says in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert says in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("b.png", "a.png", "below/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (R, R, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def levels(path: Path, mode: str = "RGB") -> torch.Tensor:
    """What NumPy and Pillow say: (C, R, R), -1 for 0 and 1 for 255."""
    pixels = np.asarray(Image.open(path, formats=["PNG"]).convert(mode), np.float64)
    return torch.from_numpy(pixels.reshape(R, R, -1) / 255 * 2 - 1).permute(2, 0, 1).float()


def test_files_become_a_tensor_and_a_tensor_pictures(folder: Path) -> None:
    images = cyclelight.load_images(folder, CAT)
    assert images.dtype == torch.float32 and images.shape == (3, 3, R, R)
    for image, name in zip(images, ("a.png", "b.png", "below/c.png"), strict=True):
        torch.testing.assert_close(image, levels(folder / name), atol=1e-6, rtol=0)
    picture = Image.open(folder / "b.png", formats=["PNG"])
    several = cyclelight.load_images([picture, folder / "a.png", str(folder / "*.png")], CAT)
    assert torch.equal(several, images[[1, 0, 0, 1]])
    grey = cyclelight.load_images(folder / "a.png", domain(channels=1))
    torch.testing.assert_close(grey[0], levels(folder / "a.png", "L"), atol=1e-6, rtol=0)
    for batch in (images, grey):
        again = cyclelight.to_pil(batch)
        assert [one.mode for one in again] == ["RGB" if batch.shape[1] == 3 else "L"] * len(batch)
        for one, image in zip(again, batch, strict=True):
            exact = np.asarray(one, np.float64).reshape(R, R, -1) / 127.5 - 1
            assert np.allclose(exact, image.permute(1, 2, 0), atol=1e-6)
    assert len(cyclelight.to_pil(images[0])) == 1


def test_what_is_no_image(folder: Path) -> None:
    (folder / "text.png").write_text("text")
    cases: list[tuple[Any, str]] = [
        (folder / "none.png", "no such file"),
        (folder / "text.png", "not in an image format known here"),
        ([], "got none"),
        (7, "must be paths or PIL images, got 7"),
        ([IMAGES], "must be paths or PIL images, got a tensor"),
    ]
    for given, says in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            cyclelight.load_images(given, CAT)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        cyclelight.to_pil(IMAGES[:, :2])
    with pytest.raises(ValueError, match="must be a tensor, got a NumPy array"):
        cyclelight.to_pil(IMAGES.numpy())  # type: ignore[arg-type]
