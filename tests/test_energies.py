"""Energies of guidance, each against a plain computation; what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.guidance.augment import augment
from cyclelight.guidance.classifiers import ClassEnergy, FeatureEnergy, load_classifier
from cyclelight.guidance.clip import ClipEnergy
from cyclelight.guidance.energies import CustomEnergy, DistanceEnergy
from cyclelight.guidance.energy import Energy, total

CLIP = Path(__file__).parents[1] / "checkpoints" / "emoji_clip"
NOISE = KeyedNoise(0, range(2))


def images(side: int = 32, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return F.interpolate(small, (side, side), mode="bicubic").clamp(-1, 1)


def write(path: Path, image: Tensor) -> str:
    pixels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return str(path)


def gradient(energy: Energy, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(energy(x, NOISE, 0).sum(), x)
    return found


def test_distance(tmp_path: Path) -> None:
    x = images()
    energy = DistanceEnergy(write(tmp_path / "x.png", x[0]))
    energy.load(32)
    values = energy(x, NOISE, 0)
    # Half a rounding step, 1 / 255, at most in each of 3072 values.
    assert float(values[0]) < 0.5 * 3072 / 255**2
    assert float(values[1]) == pytest.approx(float((x[1] - x[0]).square().sum() / 2), rel=0.01)
    torch.testing.assert_close(gradient(energy, x)[1], x[1] - x[0], atol=1 / 254, rtol=0)


def test_classes_are_those_of_the_network() -> None:
    """-log of the summed probabilities, as the metrics' own network gives them."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from cyclelight.metrics.features import feature_network

    # Pixels that are 8-bit ones, for the metrics' network takes no others.
    pixels = ((images(64) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    logits = feature_network("efficientnet-lite0")(pixels).logits
    assert logits is not None
    energy = ClassEnergy([281, 282])
    energy.load(64)
    x = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    wanted = -logits.softmax(dim=1)[:, [281, 282]].sum(dim=1).log()
    torch.testing.assert_close(energy(x, NOISE, 0), wanted, rtol=1e-3, atol=1e-3)
    assert gradient(energy, x).abs().max() > 0
    with pytest.raises(ValueError, match="classes must be below 1000 for efficientnet-lite0"):
        ClassEnergy([1000])


def test_a_classifier_of_ones_own() -> None:
    """Normalised as torchvision's networks expect it."""
    energy = ClassEnergy([0], network="judges:Colour")
    energy.load(32)
    x = torch.zeros(1, 3, 32, 32)
    x[:, 0] = 0.5
    colour = (torch.tensor([0.75, 0.5, 0.5]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    wanted = -(4 * colour).log_softmax(dim=0)[0]
    torch.testing.assert_close(energy(x, NOISE, 0)[0], wanted, rtol=1e-4, atol=1e-5)
    far = ClassEnergy([3], network="judges:Colour")
    far.load(32)
    with pytest.raises(ValueError, match="classes must be below 3 for judges:Colour, got"):
        far(x, NOISE, 0)


def test_features(tmp_path: Path) -> None:
    x = images()
    energy = FeatureEnergy(write(tmp_path / "x.png", x[0]), network="judges:Colour")
    energy.load(32)
    values = energy(x, NOISE, 0)
    assert float(values[0]) == pytest.approx(0, abs=1e-3)
    assert float(values[1]) > 0.01
    assert gradient(energy, x)[1].abs().max() > 0


def test_a_function_of_ones_own() -> None:
    energy = CustomEnergy("judges:redness", weight=2.0)
    x = images()
    means = x.mean(dim=(2, 3))
    torch.testing.assert_close(energy(x, NOISE, 0), means[:, 1] + means[:, 2] - means[:, 0])
    torch.testing.assert_close(
        total([energy, energy], torch.stack([energy(x, NOISE, 0)] * 2)), 4 * energy(x, NOISE, 0)
    )
    assert energy.name == "redness"
    with pytest.raises(ValueError, match=r"must give a tensor \(2,\) for 2 images, got \(\)"):
        CustomEnergy("judges:wrong_shape")(x, NOISE, 0)


def test_clip_is_that_of_transformers() -> None:
    """Without copies, 1 - the cosine that CLIPModel itself gives of image and text."""
    from transformers import CLIPModel, CLIPTokenizer

    energy = ClipEnergy(str(CLIP), "a red apple", copies=0)
    energy.load(32)
    model: Any = CLIPModel.from_pretrained(CLIP).float()
    side = model.config.vision_config.image_size
    x = images(side)
    tokenizer = CLIPTokenizer.from_pretrained(CLIP)
    ids = tokenizer(["a red apple"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=x)  # Its processor's mean and std are 1 / 2.
        wanted = 1 - out.image_embeds @ out.text_embeds.T
        torch.testing.assert_close(energy(x, NOISE, 0), wanted[:, 0], rtol=1e-4, atol=1e-5)
    many = ClipEnergy(str(CLIP), "a red apple", copies=3)
    many.load(32)
    with torch.no_grad():
        copies = augment(x, 3, NOISE, 5)
        each = energy(copies, NOISE, 0).view(2, 3).mean(dim=1)
        torch.testing.assert_close(many(x, NOISE, 5), each, rtol=1e-4, atol=1e-5)
    assert gradient(many, x).abs().max() > 0
    assert set(many.made_by()) == {"clip"}


def test_augmentations_are_of_the_image_and_the_step() -> None:
    x = images()
    first = augment(x, 3, NOISE, 1)
    assert first.shape == (6, 3, 32, 32)
    torch.testing.assert_close(augment(x, 3, NOISE, 1), first, rtol=0, atol=0)
    alone = augment(x[1:], 3, KeyedNoise(0, [1]), 1)
    torch.testing.assert_close(alone, first[3:], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(augment(x, 3, NOISE, 2), first)
    assert not torch.allclose(first[0], first[1])
    # A hole, and nowhere numbers that do not exist.
    holes = (first == 0).all(dim=1).float().mean(dim=(1, 2))
    assert (holes > 0.05).all() and (holes < 0.4).all()
    torch.testing.assert_close(
        augment(x, 200, NOISE, 3).view(2, 200, -1).mean(dim=1).mean(dim=1),
        x.flatten(1).mean(dim=1),
        atol=0.15,
        rtol=0,
    )


def test_augmentations_are_differentiable() -> None:
    x = images(16).double().requires_grad_(True)
    noise = KeyedNoise(0, range(2))
    assert torch.autograd.gradcheck(lambda x: augment(x, 2, noise, 0).sum(dim=(1, 2, 3)), x)


def test_refusals(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for made, told in (
        (lambda: ClassEnergy([]), r"classes must be one or more numbers from 0, got \[\]"),
        (lambda: ClassEnergy([3], weight=-1), "weight must be at least 0"),
        (lambda: ClassEnergy([3], network="vgg").load(32), "network must be one of"),
        (lambda: load_classifier("judges:nothing"), "network: judges:nothing cannot be found"),
        (lambda: FeatureEnergy(str(tmp_path / "no.png")), "image: there is no file"),
        (lambda: DistanceEnergy(str(broken)).load(32), "image: .* cannot be read"),
        (lambda: ClipEnergy(str(tmp_path), "x"), "it has no config.json"),
        (lambda: ClipEnergy(str(CLIP), " "), "prompt: the text is empty"),
        (lambda: ClipEnergy(str(CLIP), "apple " * 99).load(32), "prompt: .* takes"),
        (lambda: CustomEnergy("judges.redness"), "as package.module:name"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            made()
