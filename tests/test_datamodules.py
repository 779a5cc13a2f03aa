from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclelight.errors import argument_of
from datamodules import DomainImages, TranslationImages, square_images
from datamodules.domain_images import domain_name, split_by_key

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes n grey 8 x 8 images, of the levels 0, 1, ..., to a folder."""

    def write(folder: str, count: int) -> Path:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for level in range(count):
            Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / folder / f"{level:03}.png")
        return tmp_path / folder

    return write


def test_a_batch_is_the_files_in_the_range_of_the_model(make: Make, tmp_path: Path) -> None:
    make("train/cat", 5)
    make("val/cat", 3)
    data = DomainImages(str(tmp_path), "train/cat", "val/cat", batch_size=2)
    data.load(8)
    (first, second) = data.val_dataloader()
    assert first["key"] == ["000.png", "001.png"] and second["key"] == ["002.png"]
    levels = torch.tensor([0, 1], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 8, 8, 3)
    assert torch.equal(first["image"], levels) and first["image"].dtype == torch.uint8
    assert first["digest"][1] == blake2b(bytes([1] * 192), digest_size=8).hexdigest()
    assert [batch["key"] for batch in data.test_dataloader()] == [first["key"], second["key"]]
    seen = [key for batch in data.train_dataloader() for key in batch["key"]]
    assert len(seen) == 4 == len(set(seen))  # The fifth alone would make a smaller batch.
    assert data.summary() == {"root": tmp_path.name, "train_images": 5, "val_images": 3}


def test_training_images_are_shuffled_and_a_small_set_is_not_dropped(make: Make) -> None:
    data = DomainImages(str(make("cats", 40)), val_fraction=0.1, batch_size=64)
    data.load(4)
    torch.manual_seed(0)
    (batch,) = data.train_dataloader()
    assert len(batch["key"]) == data.summary()["train_images"]
    assert batch["key"] != sorted(batch["key"])


def test_the_split_depends_on_each_key_alone() -> None:
    files = [(f"{n}.png", Path(f"{n}.png")) for n in range(2000)]
    train, val = split_by_key(files, 0.1)
    assert sorted(train + val) == sorted(files) and 150 < len(val) < 250
    assert split_by_key(files[::-1], 0.1)[1] == val[::-1]
    assert set(split_by_key(files[:1000], 0.1)[1]) <= set(val)
    # Recorded, so that no later version moves an image from val to train.
    assert [key for key, _ in val[:4]] == ["25.png", "40.png", "41.png", "60.png"]
    assert len(split_by_key(files[:2], 1e-9)[1]) == 1


@pytest.mark.parametrize(
    ("folder", "called"),
    [
        ("afhq/train/cat", "cat"),
        ("cats", "cats"),
        ("cats/train", "cats"),
        ("cats/images/train", "cats"),
        ("/train", "domain"),
    ],
)
def test_a_domain_is_called_as_the_folder_of_its_images(folder: str, called: str) -> None:
    assert domain_name(Path(folder)) == called


@pytest.mark.filterwarnings("ignore:.*use of fork")  # Python 3.12: torch has threads.
@pytest.mark.parametrize("limit", [0, square_images.MEMORY_LIMIT])
def test_workers_run_only_when_files_are_read(
    make: Make, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(square_images, "MEMORY_LIMIT", limit)
    root = make("cats", 3)
    of_domain = DomainImages(str(root), val=None, num_workers=1)
    of_domain.load(8)
    assert of_domain.train_dataloader().num_workers == (0 if limit else 1)
    data = TranslationImages(str(root), num_workers=1, batch_size=3)
    data.load(8)
    assert not data.loaded.in_memory
    (batch,) = data.predict_dataloader()
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "dogs"}, "train: no such folder .*dogs"),
        ({"root": "absent"}, "root: no such folder absent"),
        ({"train": "cats", "val": "dogs"}, "val: no such folder .*dogs"),
        ({"train": "empty"}, "train: at least 2 images are needed, got 0"),
        ({"train": "one"}, "at least 2 images are needed, got 1"),
        ({"train": "cats", "val": "empty"}, "val: no images in .*empty"),
        ({"train": "cats", "val": "cats"}, "must not lie in one another"),
        ({"train": "cats", "val": "cats/sub"}, "must not lie in one another"),
        ({"val": "cats"}, "needs train"),
        ({"val_fraction": 0.0}, "val_fraction.*0.0"),
        ({"val_fraction": 1.0}, "val_fraction.*1.0"),
        ({"train": "cats", "val_fraction": 0.999999}, "leaves no training images"),
        ({"batch_size": 0}, "batch_size.*0"),
        ({"num_workers": -1}, "num_workers.*-1"),
        ({"memory": -1}, "memory must be at least 0, got -1"),
        ({"fit_mode": "stretch"}, "fit_mode.*'stretch'"),
        ({"on_error": "ignore"}, "on_error.*'ignore'"),
    ],
)
def test_bad_arguments_are_told_at_once(
    make: Make, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    make("cats", 3), make("cats/sub", 1), make("empty", 0), make("one", 1)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        DomainImages(**{"root": str(tmp_path), **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and argument_of(caught.value) in options


@pytest.mark.filterwarnings("ignore:.*use of fork", "ignore:skipped 1 of")
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_from_memory_are_those_of_files(make: Make, channels: int) -> None:
    """To the last bit, in the same order, whatever is left out."""
    root = make("cats", 12)
    (root / "004.png").write_bytes(b"broken")
    found = []
    for memory, workers in ((None, 0), (0, 0), (0, 2), (1e-7 * channels, 0)):
        data = DomainImages(
            str(root), memory=memory, num_workers=workers, batch_size=2, on_error="skip"
        )
        data.channels = channels
        data.load(5)
        assert data.train_images.in_memory == (memory is None)
        found.append([(b["key"], b["image"]) for _ in range(2) for b in data.train_dataloader()])
    for (keys, images), *others in zip(*found, strict=True):
        assert images.shape == (2, 5, 5, channels)
        for name, image in zip(keys, images, strict=True):
            assert (image == int(name[:3])).all()
        assert all(k == keys and torch.equal(i, images) for k, i in others)


def test_unreadable_images_stop_or_are_skipped(make: Make) -> None:
    folder = make("cats", 3)
    (folder / "001.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"001\.png"):
        TranslationImages(str(folder)).load(8)
    data = TranslationImages(str(folder), batch_size=1, on_error="skip")
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 .*001\.png"):
        data.load(8)
    assert [batch["key"] for batch in data.predict_dataloader()] == [["000.png"], ["002.png"]]
    assert data.keys == ["000.png", "001.png", "002.png"]
    ((path, reason),) = data.sources.skipped
    assert path == str(folder / "001.png") and "not in an image format" in reason


@pytest.mark.filterwarnings("ignore:skipped . of . images")
def test_nothing_readable_is_an_error_even_when_skipping(make: Make) -> None:
    folder = make("cats", 2)
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of the 2 images"):
        TranslationImages(str(folder), on_error="skip").load(8)
    with pytest.raises(ValueError, match="none of the 1 images"):
        DomainImages(str(folder), val_fraction=0.001, on_error="skip").load(8)


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("pets", ["000.png", "001.png", "cats/000.png", "cats/big/000.png"]),
        ("pets/001.png", ["001.png"]),
        ("pets/*.png", ["000.png", "001.png"]),
        ("pets/00[1-9].png", ["001.png"]),
        ("pets/**/*.png", ["000.png", "001.png", "cats/000.png", "cats/big/000.png"]),
        ("*/cats/*.png", ["pets/cats/000.png"]),
        ("*", []),
        ("pets/none/*.png", []),
    ],
)
def test_sources(
    make: Make, tmp_path: Path, source: str, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("pets", 2), make("pets/cats", 1), make("pets/cats/big", 1)
    (tmp_path / "pets" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    for given in (source, f"{tmp_path}/{source}", f"./{source}"):
        if not keys:
            with pytest.raises(ValueError, match="source: no images found"):
                TranslationImages(given)
            continue
        data = TranslationImages(given)
        assert data.keys == keys
        assert all(path.is_file() for _, path in data.files)


def test_a_name_with_brackets_is_a_file(make: Make) -> None:
    folder = make("cats[1]", 1)
    assert TranslationImages(str(folder)).keys == ["000.png"]
    assert TranslationImages(str(folder / "000.png")).keys == ["000.png"]


def test_a_missing_source_or_reference_is_told(make: Make, tmp_path: Path) -> None:
    cats, empty = str(make("cats", 1)), str(make("empty", 0))
    with pytest.raises(FileNotFoundError, match=r"source: no such .*absent"):
        TranslationImages(str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"reference: .*absent"):
        TranslationImages(cats, reference=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"reference: .*empty"):
        TranslationImages(cats, reference=empty)


def test_sources_and_references_at_the_working_resolution(make: Make) -> None:
    data = TranslationImages(str(make("cats", 3)), reference=str(make("dogs", 10)))
    data.load(4)
    assert (data.sources.pixels_of("002.png") == 2).all()
    assert [int(image[0, 0, 0]) for image in data.reference_pixels(5)] == [0, 2, 4, 6, 8]
    assert len(data.reference_pixels(50)) == 10
    assert data.reference_pixels(1)[0].shape == (4, 4, 3)
    assert TranslationImages(data.source).reference is None


def test_letterbox_reaches_the_batches(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    data = TranslationImages(str(tmp_path / "wide.png"), fit_mode="letterbox")
    data.load(8)
    (batch,) = data.predict_dataloader()
    assert batch["image"][0, :, 0, 0].tolist() == [255, 255, 0, 0, 0, 0, 255, 255]
