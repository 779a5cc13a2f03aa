"""PIE-Bench's figures: its masks, by hand, by torchmetrics, and over a folder of its form."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from transformers import ViTConfig, ViTModel

from cyclelight.cli import main
from cyclelight.metrics.judge import Judge, PerImage, score
from cyclelight.metrics.protocol import protocol_of
from cyclelight.metrics.structure import Dino
from cyclelight.text.clip import Clip
from datamodules.edit_images import EditImages
from datamodules.regions import Regions, decode_runs

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
R = 32


def test_runs_by_hand() -> None:
    """In the row from its second pixel on, two; and whatever is outermost."""
    expected = torch.tensor(
        [
            [1, 1, 1, 1, 1],
            [1, 1, 1, 0, 1],
            [1, 0, 0, 0, 1],
            [1, 0, 0, 1, 1],
            [1, 1, 1, 1, 1],
        ]
    ).bool()
    assert torch.equal(decode_runs([6, 2, 18, 999], side=5), expected)
    assert not decode_runs([], side=4)[1:3, 1:3].any()


def test_regions_of_other_sizes() -> None:
    """The left half, of 512 pixels; a pixel of 32 is one of 16 x 16."""
    runs = [n for row in range(512) for n in (512 * row, 256)]
    found = Regions({"a": runs}, R)["a"]
    assert found[:, : R // 2].all() and not found[:, R // 2 :].any()
    assert torch.equal(Regions({"a": runs}, 512)["a"], decode_runs(runs))


def images(*seeds: int) -> torch.Tensor:
    return torch.stack(
        [
            torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (R, R, 3), np.uint8))
            for seed in seeds
        ]
    )


def test_figures_of_background_and_region() -> None:
    """Against torchmetrics, as PIE-Bench's program calls it; no background, no such figure."""
    x, y = images(1, 2, 3), images(4, 5, 6)
    inside = torch.zeros(3, R, R, dtype=torch.bool)
    inside[0, 5:20], inside[1, :, 9:] = True, True
    inside[2] = True
    clip = Clip(str(CHECKPOINTS / "emoji_clip"))
    judge = Judge(None, resolution=R, clip=clip, regions=True)
    assert "no background LPIPS: LPIPS needs the weights of squeezenet1_1" in " ".join(judge.notes)
    texts = ["red heart, google"] * 3, ["blue heart, google"] * 3
    found = judge(y, x, texts, None, inside)
    for i in (0, 1):
        pair = [
            ((of[i].float() / 255) * ~inside[i][..., None]).movedim(-1, 0)[None].double()
            for of in (y, x)
        ]
        wanted = {
            "background PSNR": peak_signal_noise_ratio(*pair, data_range=1.0),
            "background SSIM": structural_similarity_index_measure(*pair, data_range=1.0),
            "background MSE": (pair[0] - pair[1]).square().mean(),
        }
        for name, value in wanted.items():
            assert float(found[name][i]) == pytest.approx(float(value), abs=1e-6), name
        part = (y[i] * inside[i][..., None])[None]
        cosine = (clip.see(part) @ clip.read(texts[1][:1]).T).item()
        assert float(found["S_CLIP of the region"][i]) == pytest.approx(cosine, abs=1e-5)
    assert found["background PSNR"][2].isnan() and not found["S_CLIP of the region"].isnan().any()
    columns = judge.look(
        [range(3)], list("abc"), y.__getitem__, x.__getitem__, regions=inside.__getitem__
    )
    scores = {s.figure: s for s in score(columns, columns, protocol_of("default"))}
    mean = found["background PSNR"][:2].mean()
    assert scores["background PSNR"].value == pytest.approx(float(mean))
    assert scores["background PSNR"].n == 2 and scores["PSNR"].n == 3
    assert np.isnan(PerImage(columns)["c"]["background PSNR"])


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer of random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=16,
        patch_size=8,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_structure_distance(vit: Path) -> None:
    """Step by step from the state of the last layer, by NumPy."""
    dino = Dino(str(vit))
    x, y = images(1, 2), images(1, 3)
    model = ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    state = model.state_dict()
    prefix = next(n for n in reversed(list(state)) if "k_proj.weight" in n or "key.weight" in n)
    weight, bias = (state[prefix.replace("weight", n)].double() for n in ("weight", "bias"))
    norm = next(n for n in reversed(list(state)) if "layernorm_before.weight" in n)
    gain, shift = (state[norm.replace("weight", n)].double() for n in ("weight", "bias"))
    similar = []
    for of in (y, x):
        # Halved: each pixel of 16 is between two of 32, without more smoothing.
        small = torch.nn.functional.interpolate(
            of.movedim(-1, 1).double(), size=(16, 16), mode="bilinear", antialias=False
        )
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        pixels = ((small - mean) / std).float()
        with torch.no_grad():
            before = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        z = before.double()
        z = (z - z.mean(2, keepdim=True)) / (z.var(2, keepdim=True, correction=0) + 1e-12).sqrt()
        keys = ((z * gain + shift) @ weight.T + bias).numpy()
        lengths = np.linalg.norm(keys, axis=2, keepdims=True)
        similar.append(keys @ keys.transpose(0, 2, 1) / (lengths * lengths.transpose(0, 2, 1)))
    expected = ((similar[0] - similar[1]) ** 2).mean(axis=(1, 2))
    found = dino(y, x)
    assert_close(found.numpy(), expected, rtol=1e-3, atol=1e-9)
    assert found[0] == 0 and found[1] > 0
    judged = Judge(None, resolution=R, dino=dino)(y, x)
    assert torch.equal(judged["structure distance"], found)


def test_what_is_no_dino_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dino: .* is no ViT's: it has no config.json"):
        Dino(str(tmp_path))


def bench(root: Path) -> Path:
    """A PIE-Bench of two images, one of which is to change everywhere."""
    folder, generator = root / "pie", np.random.default_rng(0)
    entries = {}
    for number, runs in enumerate(([512 * 100, 512 * 200], [0, 512 * 512])):
        path = folder / "annotation_images" / f"{number}_kind" / "1.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        entries[f"{number}"] = {
            "image_path": f"{number}_kind/1.png",
            "original_prompt": "a [red] heart",
            "editing_prompt": "a [blue] heart",
            "editing_type_id": f"{number}",
            "blended_word": "heart heart",
            "mask": runs,
        }
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    return folder


def test_a_pie_bench_is_edited_and_judged(tmp_path: Path, vit: Path) -> None:
    folder, output = bench(tmp_path), tmp_path / "out"
    data = EditImages(str(folder))
    assert {key: edit.groups for key, edit in data.edits.items()} == {
        "0_kind/1.png": ["type 0"],
        "1_kind/1.png": ["type 1"],
    }
    options = {
        "model.model": CHECKPOINTS / "emoji_text",
        "model.method.steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "scores.clip": CHECKPOINTS / "emoji_clip",
        "scores.least_match": -1,
        "scores.dino": vit,
        "output": output,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["edit", str(folder), *words]) == 0
    with (output / "metrics.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert rows["1_kind/1.png"]["background PSNR"] == "nan"
    made = np.array(Image.open(output / "images" / "0_kind" / "1.png")).astype(float)
    data.load(R)
    assert data.sources is not None and data.regions is not None
    source = data.sources.pixels_of("0_kind/1.png").numpy().astype(float)
    outside = ~data.regions["0_kind/1.png"].numpy()
    error = (((made - source) * outside[..., None]) ** 2).mean()
    psnr = 10 * np.log10(255**2 / error)
    assert float(rows["0_kind/1.png"]["background PSNR"]) == pytest.approx(psnr)
    found = json.loads((output / "metrics.json").read_text())["figures"]
    means = {figure["figure"]: figure for figure in found}
    assert means["background PSNR"]["value"] == pytest.approx(psnr)
    assert means["background PSNR"]["n"] == 1 and means["S_CLIP of the region"]["n"] == 2
    assert means["structure distance"]["value"] > 0


def test_bad_masks_are_named(tmp_path: Path) -> None:
    folder = bench(tmp_path)
    entries = json.loads((folder / "mapping_file.json").read_text())
    for wrong in ([1], [1, -2], "x", [0.5, 1]):
        entries["0"]["mask"] = wrong
        (folder / "mapping_file.json").write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=r"row 0: mask must be a list of pairs"):
            EditImages(str(folder))
    del entries["0"]["mask"]
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"has masks, but row 0 has none"):
        EditImages(str(folder))
