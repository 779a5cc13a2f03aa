"""Greyscale domains, from image files of any kind to their figures."""

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image
from trainings import fit

import cyclelight
from cyclelight.cli import main
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.pixels import fit_square, to_float, to_uint8
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.autoencoder_folder import load_autoencoder
from cyclelight.domains.folder import load_domain, save_domain
from cyclelight.guidance.energies import CustomEnergy, DistanceEnergy
from cyclelight.guidance.generators import DomainGenerator
from cyclelight.guidance.guided import ImageEnergy
from cyclelight.guidance.load import load_map
from cyclelight.modules.autoencoder import AutoencoderModule
from cyclelight.modules.classifier import DomainClassifierModule
from cyclelight.networks.autoencoder import AutoencoderSettings
from cyclelight.networks.classifier import ClassifierSettings
from cyclelight.networks.unet import UNetSettings
from datamodules import ShardImages, TranslationImages
from datamodules.reading import read_square

R, STEPS = 8, 3
TINY = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
]


def luma(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """ITU-R 601, before it is rounded."""
    weighted: npt.NDArray[np.float64] = colours.astype(float) @ np.array([0.299, 0.587, 0.114])
    return weighted


def program(command: str, given: dict[str, Any]) -> int:
    common = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
    pairs = {**given, **common, "data.num_workers": 0}
    return main([command, *(f"--{name}={value}" for name, value in pairs.items())])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured images, a domain that `fit` made of them, another one, and a run between the two."""
    root = tmp_path_factory.mktemp("grey")
    (root / "images").mkdir()
    generator = np.random.default_rng(0)
    for index in range(6):
        pixels = generator.integers(0, 256, (R, R, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    torch.manual_seed(1)
    unet = TINY.build(resolution=R, channels=1)
    save_domain(root / "dog", unet, NoiseSchedule(), card={"name": "dog"})
    words = {
        "model.resolution": R,
        "model.channels": 1,
        "model.network": "UNetSettings",
        "model.network.block_out_channels": "[8, 16]",
        "model.network.layers_per_block": 1,
        "model.network.attention_resolutions": "[]",
        "model.network.norm_groups": 8,
        "model.network.head_channels": 8,
        "model.sample_every_n_steps": 1,
        "data.root": root / "images",
        "data.batch_size": 4,
        "trainer.max_steps": 2,
        "output": root / "fit",
    }
    assert program("fit", words) == 0
    run = {
        "model.source": root / "fit" / "domain",
        "model.target": root / "dog",
        "model.method.steps": STEPS,
        "data.source": root / "images",
        "data.reference": root / "images",
        "scores.network": "judges:Rows",
        "output": root / "run",
    }
    assert program("predict", run) == 0
    return root


def figures(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "metrics.json").read_text())["figures"]
    return {figure["figure"]: figure["value"] for figure in found}


def grey_pixels(path: Path) -> npt.NDArray[np.int64]:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image).astype(np.int64)


def test_colours_are_read_as_grey(root: Path) -> None:
    with Image.open(root / "images" / "0.png") as image:
        wanted = luma(np.asarray(image))
        wide = fit_square(image.resize((2 * R, R)), R, "letterbox", 1)
    read = read_square(root / "images" / "0.png", R, "crop", 1)
    assert read.shape == (R, R, 1) and read.dtype == torch.uint8
    assert np.abs(read[..., 0].numpy() - wanted).max() <= 0.51
    assert wide.mode == "L" and (np.asarray(wide)[0] == 255).all()
    (loaded,) = cyclelight.load_images(root / "images" / "0.png", load_domain(root / "dog"))
    torch.testing.assert_close(loaded, to_float(read))
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        read_square(root / "images" / "0.png", R, "crop", 4)


def test_a_fit_makes_a_grey_domain_and_shows_it(root: Path) -> None:
    domain = load_domain(root / "fit" / "domain")
    assert (domain.channels, domain.resolution, domain.shape) == (1, R, (1, R, R))
    with Image.open(root / "fit" / "samples" / "step_000002.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == pixels[..., :1]).all() and len(np.unique(pixels)) > 50


def test_images_are_written_and_judged_in_grey(root: Path) -> None:
    made = {p.stem: grey_pixels(p) for p in (root / "run" / "images").glob("*.png")}
    assert len(made) == 6
    distances, errors = [], []
    for name, pixels in made.items():
        source = read_square(root / "images" / f"{name}.png", R, "crop", 1)[..., 0].numpy()
        gap = (pixels - source.astype(float)) / 255
        distances.append(np.sqrt(3 * np.square(gap).sum()))
        errors.append(-10 * np.log10(np.square(gap).mean()))
    found = figures(root / "run")
    assert found["L2"] == pytest.approx(np.mean(distances), rel=1e-6)
    assert found["PSNR"] == pytest.approx(np.mean(errors), rel=1e-6)
    assert {"FID", "KID"} <= found.keys()
    assert (root / "run" / "gallery.png").is_file()
    assert "data:image/png" in (root / "run" / "gallery.html").read_text()


def test_evaluate_tells_the_same_of_a_run(root: Path, tmp_path: Path) -> None:
    words = ["--source", "images", "--translated", "run/images", "--reference", "images"]
    given = [word if word.startswith("--") else str(root / word) for word in words]
    more = ["--network", "judges:Rows", "--output", str(tmp_path)]
    assert main(["evaluate", *given, *more]) == 0
    assert figures(tmp_path) == pytest.approx(figures(root / "run"), rel=1e-5)


def test_methods_and_grey_files_are_compared(root: Path, tmp_path: Path) -> None:
    """What a run has written, as another program's images, has the figures of its own method."""
    config = {
        "source": str(root / "fit" / "domain"),
        "target": str(root / "dog"),
        "data": {"source": str(root / "images")},
        "device": "cpu",
        "seeds": [0],
        "rows": {
            "ours": {"method": {"class_path": "CycleDiffusion", "init_args": {"steps": STEPS}}},
            "theirs": {"theirs": str(root / "run" / "images")},
        },
    }
    (tmp_path / "grey.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["compare", "--config", str(tmp_path / "grey.yaml"), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    with open(tmp_path / "out" / "table.csv", encoding="utf-8") as file:
        lines = {line["label"]: float(line["L2"]) for line in csv.DictReader(file) if line["L2"]}
    assert lines["ours"] == pytest.approx(lines["theirs"], rel=1e-6)
    assert lines["theirs"] == pytest.approx(figures(root / "run")["L2"], rel=1e-6)


@pytest.mark.filterwarnings("ignore:4 of 6 images were not made")
def test_a_run_goes_on_and_a_domain_translates_into_itself(root: Path, tmp_path: Path) -> None:
    """CycleDiffusion with one and the same model gives the images back, to a level."""
    run = {
        "model.source": root / "dog",
        "model.target": root / "dog",
        "model.method.steps": STEPS,
        "model.method.cleanup": 0,
        "data.source": root / "images",
        "scores.network": "judges:Rows",
        "trainer.precision": "32-true",
        "output": tmp_path,
    }
    for limit in (1, 3):
        more = {"trainer.limit_predict_batches": limit, "data.batch_size": 2}
        assert program("predict", {**run, **more}) == 0
    for path in sorted((root / "images").iterdir()):
        source = read_square(path, R, "crop", 1)[..., 0].numpy()
        assert np.abs(grey_pixels(tmp_path / "images" / path.name) - source).max() <= 1


def test_samples_are_grey(root: Path, tmp_path: Path) -> None:
    given = {
        "model.init_from": root / "dog",
        "model.resolution": R,
        "model.channels": 1,
        "data.root": root / "images",
        "data.val_fraction": 0.9,
        "scores.samples": 3,
        "scores.steps": 2,
        "scores.network": "judges:Rows",
        "output": tmp_path,
    }
    assert program("test", given) == 0
    assert all(grey_pixels(p).shape == (R, R) for p in (tmp_path / "images").glob("*.png"))
    assert {"FID", "KID"} <= figures(tmp_path).keys()


def test_inspect_and_atlas(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(root / "dog"), str(root / "fit" / "domain")]) == 0
    told = capsys.readouterr().out
    assert told.count("8 x 1") == 2 and "translate into each other" in told
    images = [str(root / "images" / f"{name}.png") for name in (0, 1)]
    words = ["--source", str(root / "dog"), "--targets", str(root / "fit" / "domain")]
    more = ["--steps", "2", "--columns", "3", "--scale", "1", "--output", str(tmp_path / "a.png")]
    assert main(["atlas", *images, *words, *more]) == 0
    with Image.open(tmp_path / "a.png") as drawn:
        corner = np.asarray(drawn)[:R, :R].astype(int)
    source = read_square(root / "images" / "0.png", R, "crop", 1).numpy()
    assert np.abs(corner - source).max() <= 1


def test_energies_see_three_equal_channels(root: Path) -> None:
    """redness is green + blue - red: the grey itself."""
    generator = DomainGenerator(load_domain(root / "dog"), steps=2)
    assert generator.channels == 1
    energies = [CustomEnergy("judges:redness"), DistanceEnergy(str(root / "images" / "0.png"))]
    energies[1].load(R)
    images = torch.rand(2, 1, R, R, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = ImageEnergy(generator, energies, KeyedNoise(0, ["a", "b"])).of_images(images, 0)
    with Image.open(root / "images" / "0.png") as image:
        wanted = np.asarray(image).astype(float) / 127.5 - 1
    torch.testing.assert_close(values[0], images.mean(dim=(1, 2, 3)))
    gaps = images.permute(0, 2, 3, 1).double().numpy() - wanted
    np.testing.assert_allclose(values[1].numpy(), np.square(gaps).sum((1, 2, 3)) / 2, rtol=1e-5)


def test_an_autoencoder_of_grey_images(root: Path, tmp_path: Path) -> None:
    module = AutoencoderModule(
        16, 1, AutoencoderSettings((8, 8), 1, 4, norm_groups=8), warmup_steps=0
    )
    fit(module, root / "images", tmp_path, 1)
    made = load_autoencoder(tmp_path / "autoencoder")
    assert (made.channels, made.factor) == (1, 2)


def test_classifiers_frame_grey_images_in_colours() -> None:
    settings = ClassifierSettings(32, (1, 1), 1, (8,), 16)
    module = DomainClassifierModule(["a", "b"], 16, 1, settings)
    assert module.pictures(torch.zeros(2, 1, 16, 16), 0).shape == (2, 3, 16, 16)


def test_shards_and_masked_images_are_read_as_grey(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    paths = sorted((root / "images").iterdir())
    for name, some in (("train", paths[:4]), ("val", paths[4:])):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as shard:
            for path in some:
                shard.add(path, path.name)
    shards = ShardImages(
        str(tmp_path / "train.tar"), str(tmp_path / "val.tar"), batch_size=4, num_workers=0
    )
    masked = TranslationImages(str(root / "images"), masks=str(root / "images"), batch_size=4)
    shards.channels = masked.channels = 1
    shards.load(R)
    masked.load(R)
    batches = [next(iter(shards.train_dataloader())), next(iter(masked.predict_dataloader()))]
    for batch in batches:
        assert batch["image"].shape == (4, R, R, 1)
        for key, image in zip(batch["key"], batch["image"], strict=True):
            assert torch.equal(image, read_square(root / "images" / key, R, "crop", 1))
    assert batches[1]["mask"].shape == (4, R, R)
    assert shards.val_images is not None and shards.val_images.pixels(0).shape == (R, R, 1)


def test_a_grey_generator_is_guided(root: Path, tmp_path: Path) -> None:
    """redness of grey is the grey itself, of which each image begins at its own z."""
    given = {
        "model.generator": root / "dog",
        "model.energies": json.dumps(
            [{"class_path": "CustomEnergy", "init_args": {"function": "judges:redness"}}]
        ),
        "model.sampler": "CrankNicolson",
        "model.sampler.steps": 2,
        "model.steps": 2,
        "model.way": 1,
        "data.count": 2,
        "scores.judge": "judges:Rows",
        "output": tmp_path,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert main(["guide", *words]) == 0
    generator, keys = load_map(str(root / "dog"), steps=2), [f"sample_{i:05d}.png" for i in (0, 1)]
    with torch.no_grad():
        first = generator(generator.sample_latent(KeyedNoise(0, keys), torch.empty(2)))
    found = figures(tmp_path)
    assert found["redness energy before"] == pytest.approx(float(first.mean()), rel=1e-4)
    assert {"diversity before", "diversity after"} <= found.keys()
    for key, start in zip(keys, to_uint8(first)[..., 0].numpy(), strict=True):
        assert np.abs(grey_pixels(tmp_path / "starts" / key) - start).max() <= 1
        assert grey_pixels(tmp_path / "images" / key).shape == (R, R)
        assert grey_pixels(tmp_path / "ways" / key).shape == (R, 3 * R)
