"""Nothing changes outside of a mask, bit for bit, by any method that takes one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Gaussian, domain, tiny_autoencoder
from PIL import Image
from tiny import R, make_run, predict_words
from torch import Tensor

import cyclelight
from cyclelight import (
    DDCM,
    DDIB,
    ILVR,
    CycleDiffusion,
    Domain,
    EditFriendly,
    FlowEdit,
    Method,
    SDEdit,
)
from cyclelight.cli import main
from cyclelight.runs.folder import RunFolder
from datamodules.masks import read_mask

SOURCE, TARGET = domain(Gaussian(-0.3, 0.2), 8, "source"), domain(Gaussian(0.4, 0.35), 8, "target")
METHODS = [
    CycleDiffusion(steps=10, cleanup=300),
    CycleDiffusion(steps=10, eta=0.1, cleanup=0, last_residual="drop"),
    SDEdit(steps=10),
    SDEdit(steps=10, eta=0.0),
    EditFriendly(steps=10),
    DDCM(steps=10),
    FlowEdit(steps=10, n_avg=2, n_min=2),
]


def images(side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (-0.3 + 0.2 * torch.randn(2, 3, side, side, generator=generator)).clamp(-1, 1)


def some(side: int = 8) -> Tensor:
    """Another region of each of two images."""
    mask = torch.zeros(2, side, side, dtype=torch.bool)
    mask[0, : side // 2, 1:-1] = True
    mask[1, 3:, 3:] = True
    return mask


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_outside_nothing_changes(method: Method) -> None:
    x, mask = images(), some()
    y = cyclelight.translate(SOURCE, TARGET, x, method=method, mask=mask)
    inside = mask[:, None].expand_as(x)
    assert torch.equal(y[~inside], x[~inside])
    assert ((y - x)[inside].abs() > 1e-3).float().mean() > 0.95
    # Where everything may change, a mask says nothing.
    plain = cyclelight.translate(SOURCE, TARGET, x, method=method)
    everything = torch.ones(8, 8, dtype=torch.bool)
    assert torch.equal(
        cyclelight.translate(SOURCE, TARGET, x, method=method, mask=everything), plain
    )
    nothing = cyclelight.translate(SOURCE, TARGET, x, method=method, mask=~everything)
    assert torch.equal(nothing, x)


def test_one_mask_for_all_images() -> None:
    x, mask = images(), some()[0]
    method = EditFriendly(steps=5)
    y = cyclelight.translate(SOURCE, TARGET, x, method=method, mask=mask)
    each = cyclelight.translate(SOURCE, TARGET, x, method=method, mask=mask.expand(2, 8, 8))
    assert torch.equal(y, each)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_in_a_latent_space(method: Method) -> None:
    """The autoencoder changes all pixels; those outside are put back."""
    autoencoder = tiny_autoencoder()
    pair = [
        Domain(Gaussian(mean, 0.5), 16, 3, "latent", autoencoder=autoencoder) for mean in (0, 1)
    ]
    x, mask = images(16), some(16)
    y = cyclelight.translate(*pair, x, method=method, mask=mask)
    inside = mask[:, None].expand_as(x)
    assert torch.equal(y[~inside], x[~inside])
    assert not torch.equal(y[inside], x[inside])


@pytest.mark.parametrize(
    ("method", "mask", "says"),
    [
        (ILVR(30), torch.ones(8, 8, dtype=torch.bool), "mask: ILVR takes no masks; CycleDiffusion"),
        (DDIB(5), torch.ones(8, 8, dtype=torch.bool), "mask: DDIB takes no masks"),
        (DDCM(5), torch.ones(8, 8), r"mask must be bool, \(8, 8\) or \(2, 8, 8\) .* torch.float32"),
        (DDCM(5), torch.ones(2, 1, 8, 8, dtype=torch.bool), r"got torch.bool, \(2, 1, 8, 8\)"),
        (DDCM(5), torch.ones(4, 8, dtype=torch.bool), r"got torch.bool, \(4, 8\)"),
    ],
)
def test_masks_that_are_refused(method: Method, mask: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cyclelight.translate(SOURCE, TARGET, images(), method=method, mask=mask)


def save_mask(path: Path, mask: Tensor, light: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((mask * light).to(torch.uint8).numpy()).save(path)


def test_masks_are_fitted_as_images_are(tmp_path: Path) -> None:
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[2:6, 6:12] = True
    save_mask(tmp_path / "m.png", mask)
    assert torch.equal(read_mask(tmp_path / "m.png", 8, "crop"), mask[:, 4:12])
    letterbox = read_mask(tmp_path / "m.png", 16, "letterbox")
    assert torch.equal(letterbox[4:12], mask)
    assert not letterbox[:4].any() and not letterbox[12:].any()
    for light, counts in ((127, False), (128, True)):
        save_mask(tmp_path / "m.png", mask, light)
        assert torch.equal(read_mask(tmp_path / "m.png", 8, "crop"), mask[:, 4:12] & counts)


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path, formats=("PNG",)).convert("RGB")))


def test_predict_with_masks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ("in/a.png", "in/b.png", "c.png")
    make_run(tmp_path, {"sources": names, "real": ["r.png", "s.png"]})
    masks = dict(zip(names, (some(R)[0], some(R)[1], torch.zeros(R, R).bool()), strict=True))
    for name, mask in masks.items():
        save_mask(tmp_path / "masks" / Path(name).with_suffix(".bmp"), mask)
    out = tmp_path / "out"

    def predict(*more: Any) -> int:
        return main(predict_words(tmp_path, out, "--data.batch_size", 2, *more))

    given = ("--data.masks", tmp_path / "masks")
    assert predict(*given) == 0, capfd.readouterr()

    def check() -> None:
        for name, mask in masks.items():
            source, made = pixels(tmp_path / "sources" / name), pixels(out / "images" / name)
            assert torch.equal(made[~mask], source[~mask]), name
            assert torch.equal(made, source) == (not mask.any()), name

    check()
    manifest: Any = RunFolder(out).manifest()
    assert len({entry["mask_digest"] for entry in manifest.values()}) == 3
    assert not any("mask" in entry for entry in manifest.values())
    # Another mask makes another image, of that one alone.
    masks["in/b.png"] = ~masks["in/b.png"]
    save_mask(tmp_path / "masks" / "in" / "b.bmp", masks["in/b.png"])
    before = (out / "images" / "in" / "a.png").stat().st_mtime_ns
    with pytest.warns(UserWarning, match=r"1 images, such as in/b\.png, are other ones"):
        assert predict(*given) == 0
    check()
    assert (out / "images" / "in" / "a.png").stat().st_mtime_ns == before
    # Without masks it is another run.
    capfd.readouterr()
    assert predict() == 2
    assert "--data.masks was" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--data.masks", "nowhere"), "--data.masks: no such folder nowhere"),
        (("--data.masks", "masks"), "--data.masks: masks has none for b.png"),
        (("--data.masks", "twice"), "are of the same image"),
        (("--data.masks", "broken"), "masks: cannot read image broken/a.png"),
        (
            ("--data.masks", "sources", "--model.method", "DDIB"),
            "data.masks: DDIB takes no masks; CycleDiffusion, SDEdit, EditFriendly, DDCM and "
            "FlowEdit do",
        ),
    ],
)
def test_what_predict_refuses(
    more: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, {"sources": ["a.png", "b.png"], "real": ["r.png", "s.png"]})
    save_mask(tmp_path / "masks" / "a.png", some(R)[0])
    for folder in ("twice", "broken"):
        for name in ("a.png", "b.png"):
            save_mask(tmp_path / folder / name, some(R)[0])
    save_mask(tmp_path / "twice" / "a.bmp", some(R)[0])
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    assert main(predict_words(tmp_path, tmp_path / "out", *more)) != 0
    assert says in capfd.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))
