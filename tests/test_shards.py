"""Images in shards: the same as those of a folder, in an order that survives interruptions."""

import gzip
import io
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from PIL import Image
from test_preemption import END, arguments, assert_same_fit, kill, state

from cyclelight.cli import main
from datamodules import DomainImages, ShardImages, streaming
from datamodules.reading import FileContent, read_image
from datamodules.streaming import ShardOrder
from datamodules.tars import count_images, find_shards, read_shard

# Lightning 2.6 with torch 2.15; Python 3.12.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*use of fork"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes"),
]

R = 16
COUNTS = (5, 1, 0, 8)
"""Images of the training shards."""


def tar(folder: Path, shard: Path, names: list[str]) -> Path:
    with tarfile.open(shard, "w") as archive:
        for name in names:
            archive.add(folder / name, name)
    return shard


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/train` and `images/val` with 14 and 3 files of several kinds, and shards of them."""
    root = tmp_path_factory.mktemp("shards")
    generator = np.random.default_rng(0)
    for split, counts in (("train", COUNTS), ("val", (2, 1))):
        folder = root / "images" / split
        (folder / "sub").mkdir(parents=True)
        numbers = iter(range(sum(counts)))
        for shard, count in enumerate(counts):
            names = []
            for _, number in zip(range(count), numbers, strict=False):
                pixels = generator.integers(0, 256, (20 + number, 24, 4), dtype=np.uint8)
                image, exif = Image.fromarray(pixels), Image.Exif()
                exif[0x0112] = 6  # Lies on its side.
                name = ("sub/" if number % 5 == 4 else "") + f"{number:02}"
                if number % 3 == 0:
                    names += [f"{name}.png"]  # With transparency.
                    image.save(folder / names[-1])
                elif number % 3 == 1:
                    names += [f"{name}.JPG"]
                    image.convert("RGB").save(folder / names[-1], "JPEG", exif=exif)
                else:
                    (folder / f"{name}.txt").write_text("a cat")
                    names += [f"{name}.txt", f"{name}.webp"]
                    image.convert("L").save(folder / names[-1])
            tar(folder, root / f"{split}-{shard}.tar", names)
    return root


@pytest.fixture
def make(here: Path) -> Callable[..., ShardImages]:
    def made(**options: Any) -> ShardImages:
        given = {"train": f"{here}/train-{{0..3}}.tar", "val": f"{here}/val-*.tar"}
        small = {"batch_size": 2, "num_workers": 0, "shuffle_buffer": 3}
        data = ShardImages(**{**given, **small, **options})
        data.load(R)
        return data

    return made


Make = Callable[..., ShardImages]


def keys(loader: Any) -> list[str]:
    return [key for batch in loader for key in batch["key"]]


def test_images_are_those_of_a_folder(here: Path, make: Make) -> None:
    folder = DomainImages(str(here / "images"), "train", "val", batch_size=2, num_workers=0)
    folder.load(R)
    data = make(train=f"{here}/train-*.tar")
    for loader in ("val_dataloader", "test_dataloader"):
        batches, expected = list(getattr(data, loader)()), list(getattr(folder, loader)())
        for batch, other in zip(batches, expected, strict=True):
            assert batch["key"] == other["key"]
            assert torch.equal(batch["image"], other["image"])
    assert batches[0]["path"] == [f"{here}/val-0.tar/00.png", f"{here}/val-0.tar/01.JPG"]
    assert folder.train_images is not None
    pixels = {item["key"]: item["image"] for item in folder.train_images}
    seen = {}
    for batch in data.train_dataloader():
        assert batch["image"].dtype == torch.uint8
        seen |= dict(zip(batch["key"], batch["image"], strict=True))
    assert seen.keys() == pixels.keys()
    assert all(torch.equal(seen[key], pixels[key]) for key in seen)
    assert data.summary() == {**folder.summary(), "root": here.name}


def shard_order(data: ShardImages, **options: Any) -> ShardOrder:
    assert data.counts is not None
    given = dict(images=sum(data.counts), batch_size=2, processes=1, rank=0, streams=1, buffer=3)
    return ShardOrder(data.train_shards, data.counts, **{**given, "seed": 0, **options})


@pytest.mark.parametrize(
    ("processes", "streams", "batch_size"),
    [(1, 1, 2), (1, 3, 2), (2, 1, 1), (2, 2, 3), (3, 2, 2), (7, 1, 2), (1, 20, 1), (2, 1, 5)],
)
def test_an_epoch_has_each_image_once(
    make: Make, processes: int, streams: int, batch_size: int
) -> None:
    data = make()
    everything = Counter(key for shard in data.train_shards for key, _ in read_shard(shard))
    expected = 14 // (batch_size * processes) * batch_size  # Of each process.
    seen: Counter[str] = Counter()
    for epoch in range(6):
        of_epoch: Counter[str] = Counter()
        for rank in range(processes):
            split = {"processes": processes, "rank": rank, "streams": streams}
            c = shard_order(data, **split, batch_size=batch_size)
            parts = [c.samples(epoch, stream) for stream in range(streams)]
            mine = [key for part in parts for key, _ in part]
            assert len(mine) == expected == c.batches * c.size
            of_epoch.update(mine)
        assert set(of_epoch.values()) == {1}
        seen.update(of_epoch)
    assert seen.keys() == everything.keys()  # What one epoch leaves out comes in another.
    if 14 % (batch_size * processes) == 0:
        assert set(seen.values()) == {6}


def test_a_few_images_make_a_batch_for_each_process(make: Make) -> None:
    data = make()
    seen: Counter[str] = Counter()
    for rank in range(4):
        c = shard_order(data, processes=4, rank=rank, batch_size=16)
        assert (c.size, c.batches) == (4, 1)
        seen.update(key for key, _ in c.samples(0, 0))
    assert len(seen) == 14 and seen.total() == 16


def test_the_order_follows_from_seed_and_epoch_alone(make: Make) -> None:
    data = make()
    first = [key for key, _ in shard_order(data).samples(0, 0)]
    torch.manual_seed(1), np.random.seed(1)
    assert [key for key, _ in shard_order(data).samples(0, 0)] == first
    assert [key for key, _ in shard_order(data).samples(1, 0)] != first
    assert [key for key, _ in shard_order(data, seed=1).samples(0, 0)] != first
    # Recorded, so that a fit can be resumed by a later version.
    assert first[:4] == ["11.webp", "sub/09.png", "12.png", "13.JPG"]


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_an_epoch_can_be_entered_anywhere(make: Make, workers: int) -> None:
    """By workers too: they give what the process itself would read."""

    def rest(epoch: int, done: int) -> list[list[str]]:
        loader = make(num_workers=workers).train_dataloader()
        assert loader.num_workers == workers and len(loader) == 7
        loader.sampler.place = iter([(epoch, done), (epoch + 1, 0)]).__next__  # type: ignore[union-attr]
        return [batch["key"] for _ in range(2) for batch in loader]

    data = make()
    streams = max(1, workers)
    c = shard_order(data, streams=streams)
    batches = []
    for epoch in (2, 3):
        parts = [iter([key for key, _ in c.samples(epoch, s)]) for s in range(streams)]
        batches += [[next(parts[n % streams]) for _ in range(2)] for n in range(7)]
    for done in range(8) if not workers else (0, 3):
        assert rest(2, done) == batches[done:]


def test_what_is_passed_over_is_not_decoded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    read_square = streaming.read_square
    monkeypatch.setattr(
        streaming, "read_square", lambda image, *a: decoded.append(image) or read_square(image, *a)
    )
    loader = make().train_dataloader()
    loader.sampler.place = lambda: (0, 5)  # type: ignore[union-attr]
    assert len(keys(loader)) == 4 == len(decoded)


def test_no_more_workers_than_batches(make: Make) -> None:
    data = make(num_workers=5000, batch_size=7)
    loader = data.train_dataloader()
    assert len(loader) == loader.num_workers == 2  # Of 14 images.
    found = keys(loader)
    assert len(set(found)) == 14


def test_processes_share_the_images(make: Make) -> None:
    data = make()
    seen = []
    for rank in range(2):
        progress = SimpleNamespace(total=SimpleNamespace(processed=0))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=2,
            global_rank=rank,
            fit_loop=loop,
            limit_train_batches=1.0,
            overfit_batches=0,
        )
        loader = data.train_dataloader()
        assert len(loader) == 3
        seen += keys(loader)
    assert len(seen) == 12 == len(set(seen))


def test_uncounted_shards_give_the_epoch_that_is_asked_for(here: Path, make: Make) -> None:
    data = make(train=f"{here}/train-[013].tar", epoch_images=40, num_workers=8)
    assert data.counts is None and "train_images" not in data.summary()
    loader = data.train_dataloader()
    assert loader.num_workers == 3 and len(loader) == 20
    seen = [batch["key"] for batch in loader]
    assert len(seen) == 20 and {len(batch) for batch in seen} == {2}
    # Each of the three workers has one shard, over and over: of 7, 7 and 6 batches.
    counts = Counter(key for batch in seen for key in batch)
    assert len(counts) == 14 and max(counts.values()) >= 12
    loader.sampler.place = lambda: (0, 11)  # type: ignore[union-attr]
    assert [batch["key"] for batch in loader] == seen[11:]
    data.trainer = SimpleNamespace(world_size=4, global_rank=0)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="train has 3 shards, fewer than the 4 processes"):
        data.train_dataloader()


@pytest.mark.parametrize("address", ["pipe:cat {}", "pipe:gzip -c {}", "file:{}"])
def test_commands_and_urls_are_streamed(here: Path, make: Make, address: str) -> None:
    urls = {"train": address.format(f"{here}/train-{{0,3}}.tar"), "epoch_images": 13}
    data = make(
        **urls,
        allow_commands=address.startswith("pipe"),
        val=address.format(f"{here}/val-{{0..1}}.tar"),
        batch_size=1,
    )
    assert data.val_images is not None and len(data.val_images) == 3
    assert len({*keys(data.train_dataloader())}) == 13
    data.batch_size, data.epoch_images = 2, 4  # The stream is left amid a shard.
    assert len(keys(data.train_dataloader())) == 4
    assert data.summary() == {"root": "shards", "val_images": 3}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "cat absent.tar",
            "cannot read shard pipe:cat absent.tar: what fetches it ended with exit 1",
        ),
        (
            "head -c 4000 {}",
            "cannot read shard pipe:head .*: it is cut off",
        ),
        ("cat {}; exit 3", "cannot read shard pipe:cat .*: what fetches it ended with exit 3"),
        ("echo no tar", "cannot read shard pipe:echo no tar: it is no tar file"),
    ],
)
def test_a_command_that_fails_is_told(
    here: Path, make: Make, command: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    url = "pipe:" + command.format(here / "train-0.tar")
    with pytest.raises(ValueError, match=says) as caught:
        keys(make(train=url, epoch_images=40, allow_commands=True).train_dataloader())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["pipe", "PIPE"])
def test_commands_are_run_only_where_that_is_allowed(
    make: Make, tmp_path: Path, split: str, kind: str
) -> None:
    """A recipe of someone else's could hold one."""
    ran = tmp_path / "ran"
    with pytest.raises(ValueError, match=f"{split}: .* is a command .*allow_commands true"):
        make(**{split: f"{kind}:touch {ran}", "epoch_images": 4})
    assert not ran.exists()


def test_small_shards_that_unpack_to_gigabytes(here: Path, tmp_path: Path) -> None:
    """2 MB became 2 GiB, read whole; here claimed alone, and of a header as of an image."""
    image, name = tarfile.TarInfo("0.png"), tarfile.TarInfo("long")
    image.size, name.size, name.type = 2**31, 2**31, tarfile.GNUTYPE_LONGNAME
    table = tarfile.TarInfo("pax")
    table.size, table.type = 2**31, tarfile.XHDTYPE
    for member, told in (
        (image, "0.png unpacks to 2147483648 bytes"),
        (name, "it has a header of 2147483648 bytes"),
        (table, "it has a header of 2147483648 bytes"),
    ):
        shard = tmp_path / f"{member.name}.tar.gz"
        with gzip.open(shard, "wb") as file:
            file.write(member.tobuf() + bytes(10**6))
        for read in (count_images, lambda path: list(read_shard(path))):
            with pytest.raises(ValueError, match=told):
                read(str(shard))


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("cut", [512 * 3, 1000, 700, 100])
def test_a_shard_that_is_cut_off_is_told(
    here: Path, make: Make, tmp_path: Path, cut: int, suffix: str
) -> None:
    """Amid an image, amid a header, between the two; in the middle and at the end."""
    kind: Any = f"w:{suffix[1:]}"
    with tarfile.open(tmp_path / f"a.tar{suffix}", kind) as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.png")
            content = (here / "images/train/00.png").read_bytes()[: 512 * 3 - 300]
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    shard = str(tmp_path / f"a.tar{suffix}")
    assert count_images(shard) == 3 == len(list(read_shard(shard)))
    content = Path(shard).read_bytes()
    # Of the plain file, 3 x (512 + 1536) bytes are images; of the others, what counts is the whole.
    end = 3 * 2048 if not suffix else len(content)
    for kept in (end - cut if cut < end else end // 2, end):
        if kept == len(content):
            continue
        Path(shard).write_bytes(content[:kept])
        for read in (count_images, lambda path: list(read_shard(path))):
            with pytest.raises(ValueError, match=r"cannot read shard .*a\.tar") as caught:
                read(shard)
            assert "\n" not in str(caught.value)


def test_damage_within_a_shard_is_told(here: Path, tmp_path: Path) -> None:
    content = bytearray((here / "train-0.tar").read_bytes())
    with tarfile.open(here / "train-0.tar") as archive:
        offset = archive.getmembers()[2].offset
    content[offset : offset + 512] = b"x" * 512
    (tmp_path / "a.tar").write_bytes(content)
    # Of a stream, too, whose end cannot be looked at again.
    for shard in (str(tmp_path / "a.tar"), f"pipe:cat {tmp_path / 'a.tar'}"):
        with pytest.raises(ValueError, match=f"damaged after {offset} bytes"):
            count_images(shard)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_not_left_out_silently(here: Path, tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(here / "images" / "train" / "00.png", "0.png")
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = kind, "0.png"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"1\.png is a link; make the shard with `tar --deref"):
        count_images(str(tmp_path / "a.tar"))


def test_a_shard_that_changed_since_is_told(here: Path, make: Make, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes((here / "train-3.tar").read_bytes())
    data = make(train=str(shard))
    shard.write_bytes((here / "train-0.tar").read_bytes())
    with pytest.raises(ValueError, match=r"a\.tar has lost images"):
        keys(data.train_dataloader())


def test_a_sample_has_one_image(here: Path, tmp_path: Path) -> None:
    folder = here / "images" / "train"
    image = (folder / "00.png").read_bytes()
    for names, says in (
        (["0.txt", "0.json"], r"sample 0 has 0 images, not 1, in \.txt, \.json"),
        (["a/0.png", "a/0.jpg"], r"sample a/0 has 2 images, not 1, in \.png, \.jpg"),
        (["a.1.png", "a.2.png"], r"sample a has 0 images, not 1, in \.1\.png, \.2\.png"),
        (["0.png", "1.png", "0.txt"], r"sample 0 has 0 images, not 1, in \.txt"),
        (["0.png", "0.seg.png", "._0.png", ".x/1.png", "README"], None),
    ):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name in names:
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(image)
                archive.addfile(member, io.BytesIO(image))
        if says is not None:
            with pytest.raises(ValueError, match=says):
                list(read_shard(str(tmp_path / "a.tar")))
        else:
            assert [key for key, _ in read_shard(str(tmp_path / "a.tar"))] == ["0.png", ".x/1.png"]


def broken(here: Path, path: Path) -> str:
    """A shard of three images, of which the second is none."""
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            image = (here / "images" / "train" / "00.png").read_bytes()
            content = b"broken" if number == 1 else image
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def test_an_unreadable_image_stops_or_is_skipped(here: Path, make: Make, tmp_path: Path) -> None:
    shard = broken(here, tmp_path / "a.tar")
    says = r"cannot read image .*a\.tar/1\.png: not in an image format known here"
    with pytest.raises(ValueError, match=f"{says} .*on_error: skip"):
        make(val=shard)
    with pytest.raises(ValueError, match=f"{says} .*on_error: skip"):
        keys(make(train=shard).train_dataloader())
    with pytest.warns(UserWarning, match=rf"skipped 1 of 3 images: {says}"):
        data = make(val=shard, on_error="skip")
    assert keys(data.val_dataloader()) == ["0.png", "2.png"]
    loader = make(train=shard, on_error="skip", batch_size=3).train_dataloader()
    with pytest.warns(UserWarning, match=f"skipped: {says}"):
        (batch,) = loader
    assert sorted(batch["key"]) == ["0.png", "2.png"] and len(batch["image"]) == 2
    loader = make(train=shard, on_error="skip", batch_size=1).train_dataloader()
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"none of the images of a batch can be read: .*1\.png"),
    ):
        keys(loader)


def test_content_is_read_as_a_file_is(here: Path) -> None:
    path = here / "images" / "train" / "01.JPG"
    assert read_image(FileContent("a", path.read_bytes())).tobytes() == read_image(path).tobytes()


def test_two_images_of_one_key_are_told(here: Path, make: Make, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes((here / "val-0.tar").read_bytes())
    with pytest.raises(ValueError, match=r"val: .*a\.tar/00\.png and .*b\.tar/00\.png have the"):
        make(val=f"{tmp_path}/?.tar")


def test_patterns(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    assert find_shards("train", "train-{3,0}.tar") == ["train-3.tar", "train-0.tar"]
    assert find_shards("train", "{val,train}-[01].tar")[1:3] == ["val-1.tar", "train-0.tar"]
    assert find_shards("train", "*-0.tar") == ["train-0.tar", "val-0.tar"]
    assert find_shards("train", "http://x/{00..01}.tar")[1] == "http://x/01.tar"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train": "train-{0..9}.tar"}, "--data.train: no such shard train-4.tar"),
        ({"train": "none-*.tar"}, "--data.train: no shards found by none-*.tar"),
        ({"val": "val-{0..1.tar"}, "--data.val: the braces of 'val-{0..1.tar' do not match"),
        (
            {"train": "images"},
            "--data.train: images is a folder, not shards such as 'images/*.tar'",
        ),
        ({"val": "*-0.tar"}, "--data.val and train must not share shards, got train-0.tar in both"),
        ({"train": "http://x/0.tar"}, "--data.epoch_images must be given, since train has URLs"),
        ({"epoch_images": "0"}, "--data.epoch_images must be at least 1, got 0"),
        ({"shuffle_buffer": "0"}, "--data.shuffle_buffer must be at least 1, got 0"),
        ({"batch_size": "0"}, "--data.batch_size must be at least 1, got 0"),
        ({"root": "images"}, "--data.root is not an option"),
    ],
)
def test_bad_arguments_are_one_line(
    here: Path,
    tmp_path: Path,
    options: dict[str, str],
    says: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(here)
    given = {"train": "train-*.tar", "val": "val-*.tar", **options}
    words = [word for name, value in given.items() for word in (f"--data.{name}", value)]
    assert main(["fit", "--data", "ShardImages", *words, "--output", str(tmp_path / "out")]) == 2
    assert capfd.readouterr().err == f"error: {says}\n"
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_one_line(
    here: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "webdataset"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert main(shard_fit(here, tmp_path, 0)) == 2
    assert capfd.readouterr().err == (
        "error: ShardImages needs webdataset, which is not installed: "
        "pip install cyclelight[shards]\n"
    )


def shard_fit(here: Path, output: Path, workers: int, *more: object) -> list[str]:
    """The fit of `test_preemption`, of 14 images: 7 batches an epoch, 16 steps."""
    words = arguments(output)
    index = words.index("--data.root")
    shards = ("--data", "ShardImages", "--data.train", here / "train-*.tar")
    split = ("--data.val", here / "val-*.tar", "--data.shuffle_buffer", 3)
    del words[index : index + 2]
    numbers = ("--data.num_workers", workers, "--trainer.max_steps", 16)
    return ["fit", *map(str, (*shards, *split)), *words[1:], *map(str, (*numbers, *more))]


FIT_END = (*END[:-1], 16)


@pytest.fixture(scope="module", params=[0, 2])
def whole(
    request: pytest.FixtureRequest, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """(workers, the folder) of a fit that nothing disturbs."""
    root = tmp_path_factory.mktemp("whole")
    assert main(shard_fit(here, root, request.param, *FIT_END)) == 0
    return request.param, root


@pytest.mark.parametrize("stops", [[3], [7], [10, 13]])
def test_a_resumed_fit_equals_an_undisturbed_one(
    here: Path, whole: tuple[int, Path], tmp_path: Path, stops: list[int]
) -> None:
    """Amid an epoch, at its end, and twice in the second one."""
    workers, root = whole
    last = ("--ckpt_path", "last")
    for stop in stops:
        assert main(shard_fit(here, tmp_path, workers, *FIT_END, *kill(stop), *last)) == 143
        assert state(tmp_path)["global_step"] == stop
    assert main(shard_fit(here, tmp_path, workers, *FIT_END, *last)) == 0
    assert_same_fit(tmp_path, root)


@pytest.mark.slow
def test_two_processes_resume_too(here: Path, tmp_path: Path) -> None:
    """3 batches each an epoch; the shards are uneven, and neither waits for the other."""
    ddp = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.max_steps", 8)
    end = ("--checkpoint.every_n_train_steps", 8, *ddp)

    def run(output: Path, *more: object) -> int:
        return ranks.run(shard_fit(here, output, 1, *end, *more))[0]

    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "parts", *kill(5, rank=1)) == 143
    assert state(tmp_path / "parts")["global_step"] == 5
    assert run(tmp_path / "parts", "--ckpt_path", "last") == 0
    assert_same_fit(tmp_path / "parts", tmp_path / "whole")


def test_validate_and_test_judge_as_with_a_folder(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {
        "model.init_from": tmp_path / "fit" / "domain",
        "model.resolution": R,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    shards = ["--data", "ShardImages", "--data.train", f"{here}/train-*.tar"]
    shards += ["--data.val", f"{here}/val-*.tar"]
    folder = ["--data.root", f"{here}/images", "--data.train", "train", "--data.val", "val"]
    assert main(shard_fit(here, tmp_path / "fit", 0, "--trainer.max_steps", 1)) == 0
    capfd.readouterr()
    losses = []
    for data in (shards, folder):
        assert main(["validate", *words, *data]) == 0
        losses.append(capfd.readouterr().out)
    assert "val/loss" in losses[0] and losses[0] == losses[1]
    figures = []
    for name, data in (("a", shards), ("b", folder)):
        scores = ["--scores.samples", "2", "--scores.steps", "2", "--output", str(tmp_path / name)]
        assert main(["test", *words, *data, *scores]) == 0
        figures.append((tmp_path / name / "metrics.json").read_text())
    assert figures[0] == figures[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_ends_a_fit_in_one_line(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    shard = broken(here, tmp_path / "a.tar")
    assert main(shard_fit(here, tmp_path / "out", workers, "--data.train", shard)) == 1
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1 and f"cannot read image {shard}/1.png: not in an image" in error[0]


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data", "ShardImages", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--data.shuffle_buffer" in out and "--data.root" not in out
