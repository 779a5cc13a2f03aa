"""Each kind of image file is made on the spot, with values that are known before."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from cyclelight.diffusion.pixels import digest
from datamodules import square_images
from datamodules.items import Items
from datamodules.listing import list_images
from datamodules.loading import make_loader, useful_workers
from datamodules.order import batch_loader
from datamodules.reading import OnError, read_image, read_square
from datamodules.square_images import SquareImages


def first_pixel(path: Path) -> tuple[int, int, int]:
    image = read_image(path)
    assert image.mode == "RGB"
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel  # type: ignore[return-value]


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    image.info["transparency"] = 1
    return image


def grey(dtype: str, value: float) -> Image.Image:
    return Image.fromarray(np.full((2, 2), value, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "make", "pixel"),
    [
        ("rgb.png", lambda: Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        ("rgb.bmp", lambda: Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        ("rgb.webp", lambda: Image.new("RGB", (2, 2), (90, 90, 90)), (90, 90, 90)),
        ("grey.png", lambda: Image.new("L", (2, 2), 77), (77, 77, 77)),
        ("grey.jpg", lambda: Image.new("L", (8, 8), 77), (77, 77, 77)),
        ("bits.png", lambda: Image.new("1", (2, 2), 1), (255, 255, 255)),
        ("palette.gif", lambda: Image.new("RGB", (2, 2), (10, 20, 30)).quantize(2), (10, 20, 30)),
        ("clear.png", lambda: Image.new("RGBA", (2, 2), (9, 9, 9, 0)), (255, 255, 255)),
        ("half.png", lambda: Image.new("RGBA", (2, 2), (0, 100, 200, 51)), (204, 224, 244)),
        ("grey-alpha.png", lambda: Image.new("LA", (2, 2), (0, 51)), (204, 204, 204)),
        ("palette-clear.png", palette_with_transparency, (255, 255, 255)),
        ("cmyk.tif", lambda: Image.new("CMYK", (2, 2), (255, 0, 0, 0)), (0, 255, 255)),
        ("16-high.png", lambda: grey("uint16", 65535), (255, 255, 255)),
        ("16-mid.png", lambda: grey("uint16", 257 * 100 + 128), (100, 100, 100)),
        ("16-next.png", lambda: grey("uint16", 257 * 100 + 129), (101, 101, 101)),
        ("16.tif", lambda: grey("uint16", 300), (1, 1, 1)),
        ("16-big-endian.tif", lambda: grey(">u2", 257 * 7), (7, 7, 7)),
        ("float.tif", lambda: grey("float32", 0.6), (153, 153, 153)),
    ],
)
def test_every_kind_becomes_rgb(
    tmp_path: Path, name: str, make: Callable[[], Image.Image], pixel: tuple[int, int, int]
) -> None:
    make().save(tmp_path / name)
    assert first_pixel(tmp_path / name) == pixel


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert first_pixel(tmp_path / "cmyk.jpg") == pytest.approx((255, 0, 0), abs=2)


def test_16_bit_colour_keeps_its_range(tmp_path: Path) -> None:
    # Pillow writes no such PNG: one pixel by hand, red 65535, green 32896 (= 128 * 257), blue 0.
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0" + struct.pack(">HHH", 65535, 32896, 0))
    png = chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    assert first_pixel(tmp_path / "deep.png") == (255, 128, 0)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn clockwise to see it upright: top left goes to top right.
    image.save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "turned.png"))
    assert upright.shape == (4, 2, 3)
    assert upright[0, 1, 0] == 255 and upright.sum() == 3 * 255


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("deep.tif", lambda: grey("int32", 65535), "signed 32-bit integers.*8 or 16 bits"),
        ("range.tif", lambda: grey("float32", 255), "255.*\\[0, 1\\]"),
        ("nan.tif", lambda: grey("float32", float("nan")), "nan"),
    ],
)
def test_values_of_unknown_range_are_errors(
    tmp_path: Path, name: str, make: Callable[[], Image.Image], reason: str
) -> None:
    make().save(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}.*{reason}"):
        read_image(tmp_path / name)


def damaged(folder: Path) -> list[Path]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    paths = []
    for suffix in ("png", "jpg", "webp", "tif", "gif", "bmp"):
        path = folder / f"cut.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        paths.append(path)
    for name, content in (("empty.png", b""), ("text.jpg", b"not an image\n")):
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    return paths


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path) -> None:
    for path in damaged(tmp_path):
        with pytest.raises(ValueError, match=f"cannot read image .*{path.name}: .+") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count(path.name) == 1
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")


def test_listing_is_sorted_recursive_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.JPeG", "notes.txt", ".d.png", ".e/f.png", "._a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == [
        ("a.jpg", tmp_path / "a.jpg"),
        ("b.PNG", tmp_path / "b.PNG"),
        ("sub/c.JPeG", tmp_path / "sub" / "c.JPeG"),
    ]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")


@pytest.mark.parametrize("limit", [0, square_images.MEMORY_LIMIT])
def test_skipping_leaves_the_others_in_place(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(square_images, "MEMORY_LIMIT", limit)
    for level in (10, 20, 30, 40):
        Image.new("RGB", (6, 4), (level,) * 3).save(tmp_path / f"{level}.png")
    (tmp_path / "20.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"skipped 1 of 4 images: cannot read .*20\.png"):
        images = SquareImages(list_images(tmp_path), 4, on_error="skip")
    assert images.in_memory == (limit > 0)
    items = [images[index] for index in range(len(images))]
    assert [item["key"] for item in items] == ["10.png", "30.png", "40.png"]
    for item, level in zip(items, (10, 30, 40), strict=True):
        assert torch.equal(item["image"], torch.full((4, 4, 3), level, dtype=torch.uint8))
    assert [path for path, _ in images.skipped] == [str(tmp_path / "20.png")]
    with pytest.raises(ValueError, match=r"20\.png"):
        SquareImages(list_images(tmp_path), 4)


def look(rank: int, root: Path, on_error: OnError) -> None:
    """What one of two processes finds, and which files it read, to a file."""
    torch.set_num_threads(1)
    store = f"file://{root}/store_{on_error}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    read, found = square_images.read_square, list[str]()

    def noted(path: Path, *more: Any) -> torch.Tensor:
        found.append(path.name)
        return read(path, *more)

    square_images.read_square = noted
    try:
        images = SquareImages(list_images(root / "images"), 4, on_error=on_error, keep=False)
        result = [key for key, _ in images.files]
        same = digest(read(root / "images" / "a.png", 4, "crop"))
        entries = [("a.png", same), ("a.png", "other"), ("b.png", "other"), ("x.png", "other")]
        known = [{"key": key, "digest": of_pixels} for key, of_pixels in entries]
        assert images.changed(known) == {"a.png", "b.png"}
        assert images.changed([known[1], known[0], known[3]]) == set()
    except ValueError as error:
        result = [str(error)]
    (root / f"{on_error}{rank}.json").write_text(json.dumps([sorted(found), result]))


@pytest.mark.filterwarnings("ignore:.*use of fork", "ignore:skipped")
@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_processes_share_the_first_look(tmp_path: Path, on_error: OnError) -> None:
    (tmp_path / "images").mkdir()
    for name in "abcde":
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{name}.png")
    for name in "de":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"broken")
    mp = torch.multiprocessing.get_context("fork")
    processes = [mp.Process(target=look, args=(rank, tmp_path, on_error)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    told = [json.loads((tmp_path / f"{on_error}{rank}.json").read_text()) for rank in range(2)]
    assert [files for files, _ in told] == [["a.png", "c.png", "e.png"], ["b.png", "d.png"]]
    (_, mine), (_, theirs) = told
    assert mine == theirs
    if on_error == "skip":
        assert mine == ["a.png", "b.png", "c.png"]
    else:
        assert len(mine) == 1 and "d.png" in mine[0]  # Both found one, and both tell the first.


def noise(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        path
    )
    return path


def spoil(path: Path) -> None:
    """Damage a PNG in the middle, which its checksums tell."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_what_looks_whole_is_decoded_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, suffix in enumerate(("png", "jpg", "bmp", "webp")):
        noise(tmp_path / f"{seed}.{suffix}", seed)
    (tmp_path / "4.jpg").write_bytes((tmp_path / "1.jpg").read_bytes() + b"more")
    at_once = SquareImages(list_images(tmp_path), 8, keep=False)
    read, found = square_images.read_square, list[str]()

    def noted(path: Path, *more: Any) -> torch.Tensor:
        found.append(path.name)
        return read(path, *more)

    monkeypatch.setattr(square_images, "read_square", noted)
    images = SquareImages(list_images(tmp_path), 8, keep=False, put_off=True)
    assert sorted(found) == ["2.bmp", "3.webp", "4.jpg"]
    assert torch.equal(images.all_pixels(), at_once.all_pixels())
    known = [{"key": key, "digest": digest(at_once.pixels_of(key))} for key in images.keys]
    found.clear()
    other = {"key": "0.png", "digest": "other"}
    assert images.changed([known[0], known[2], other]) == {"0.png"}
    assert images.changed([other, known[0]]) == set()
    assert found == ["0.png"]


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:skipped . of . images")
def test_what_does_not_look_whole_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for path in damaged(tmp_path / "all"):
        told = []
        for put_off in (False, True):
            with pytest.raises(ValueError, match=f"{path.name}.*skip leaves such") as caught:
                SquareImages([(path.name, path)], 8, keep=False, put_off=put_off)
            told.append(str(caught.value))
        assert told[0] == told[1]
    spoil(noise(tmp_path / "a.png", 0))
    files = [("a.png", tmp_path / "a.png"), ("b.png", noise(tmp_path / "b.png", 1))]
    images = SquareImages(files, 8, keep=False, put_off=True)
    assert images.changed([{"key": "b.png", "digest": digest(images.pixels(1))}]) == set()
    for use in (lambda: images[0], lambda: images.changed([{"key": "a.png", "digest": ""}])):
        with pytest.raises(ValueError, match=r"cannot read image .*a\.png: .*skip leaves such"):
            use()
    kept = SquareImages(files, 8, "crop", "skip", keep=False, put_off=True)
    assert kept.keys == ["b.png"] and len(kept.skipped) == 1


def ask(rank: int, root: Path) -> None:
    """What one of two processes finds changed, and which files it read for that, to a file."""
    torch.set_num_threads(1)
    store = f"file://{root}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    read, found = square_images.read_square, list[str]()

    def noted(path: Path, *more: Any) -> torch.Tensor:
        found.append(path.name)
        return read(path, *more)

    square_images.read_square = noted
    images = SquareImages(list_images(root / "images"), 4, keep=False, put_off=True)
    entries = [{"key": f"{name}.png", "digest": "other"} for name in "abd"]
    entries[0]["digest"] = digest(read(root / "images" / "a.png", 4, "crop"))
    result = sorted(images.changed(entries))
    spoil(root / "images" / "c.png") if rank == 0 else None
    torch.distributed.barrier()
    try:
        images.changed([{"key": "c.png", "digest": "other"}])
    except ValueError as error:
        result.append(str(error))
    (root / f"{rank}.json").write_text(json.dumps([sorted(found), result]))


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_processes_share_what_was_put_off(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for seed, name in enumerate("abcde"):
        noise(tmp_path / "images" / f"{name}.png", seed)
    mp = torch.multiprocessing.get_context("fork")
    processes = [mp.Process(target=ask, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (mine, told), (theirs, same) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert mine == ["a.png", "c.png"] and theirs == ["b.png", "d.png"]
    assert told == same and told[:2] == ["b.png", "d.png"] and "c.png" in told[2]


def test_a_square_is_what_its_file_holds(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_square(tmp_path / "a.png", 5, "crop").numpy(), pixels)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"a": {"text": "a cat"}, "b": {}}, "b has no text, which other images have"),
        ({"b": {"text": "a dog"}}, "a has no text"),
        ({"a": {"output": "x.png"}, "b": {"output": "y.png"}}, "cannot be called output"),
    ],
)
def test_fields_that_would_be_lost_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Items(["a", "b"], fields)


def test_further_fields_come_with_the_images_and_tell_of_a_change(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (4, 4), (name == "b" and "red") or "blue").save(tmp_path / f"{name}.png")
    fields = {"a.png": {"text": "a cat", "scale": 1.5}, "b.png": {"text": "a dog", "scale": 2.0}}
    images = SquareImages(list_images(tmp_path), 4, fields=fields)
    (batch,) = batch_loader(images, [range(2)], 0, None)
    assert batch["text"] == ["a cat", "a dog"] and batch["scale"] == [1.5, 2.0]
    entries = [
        {"key": key, "digest": of_pixels, **fields[key]}
        for key, of_pixels in zip(batch["key"], batch["digest"], strict=True)
    ]
    assert images.changed(entries) == set()
    assert images.changed([entries[0], {**entries[1], "text": "a wolf"}]) == {"b.png"}
    assert images.changed([{"key": "a.png", "digest": batch["digest"][0]}]) == {"a.png"}


class Signalled(Dataset[int]):
    """The id of the process that reads it, which sends itself what ends other processes."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return os.getpid()


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_processes_that_decode_heed_their_parent_alone() -> None:
    loader = make_loader(Signalled(), 1, in_memory=False)
    pids = [int(batch) for batch in loader]
    assert len({os.getpid(), *pids}) == 2
    (worker,) = multiprocessing.active_children()
    with suppress(RuntimeError):  # Torch's, if it is the first to see the end.
        worker.terminate()
        worker.join(10)
    worker.join(10)
    assert worker.exitcode == 143


class Unsendable(Dataset[object]):
    """Images that cannot be handed on, as if there were no room for them in /dev/shm."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> object:
        return self

    def __reduce__(self) -> str:
        raise OSError(28, "No space left on device")


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_process_that_cannot_hand_images_on_is_not_waited_for() -> None:
    loader = make_loader(
        Unsendable(),
        1,
        in_memory=False,
        batch_size=None,
        multiprocessing_context="fork",
        timeout=60,
    )
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("asked", "images", "started"), [(5000, 6, 2), (3, 6, 2), (1, 6, 1), (0, 6, 0)]
)
def test_no_more_processes_than_batches(asked: int, images: int, started: int) -> None:
    data = TensorDataset(torch.zeros(images))
    assert make_loader(data, asked, in_memory=False, batch_size=3).num_workers == started
    halves = torch.utils.data.BatchSampler(range(images), images // 2, drop_last=False)
    loader = make_loader(data, asked, in_memory=False, batch_size=None, sampler=halves)
    assert loader.num_workers == started
    assert make_loader(data, asked, in_memory=True, batch_size=3).num_workers == 0


def test_no_more_processes_than_help() -> None:
    most = max(64, 4 * (os.cpu_count() or 1))
    with pytest.warns(UserWarning, match=f"num_workers 5000 are more than help here: {most}"):
        assert useful_workers(5000, 10**6) == most
    assert useful_workers(64, 10**6) == 64
