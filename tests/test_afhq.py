"""AFHQ from a local server: downloads resume, and what is damaged or hostile leaves nothing."""

import hashlib
import io
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from servers import serving

from cyclelight.cli import main
from datamodules import AFHQ, DomainImages, afhq, fetching

COUNTS = {"train/cat": 3, "train/dog": 2, "train/wild": 2}
TESTS = {"cat": 2, "dog": 1, "wild": 1}


class Server(ThreadingHTTPServer):
    """Serves `body` at any path; `cut` ends an answer after that many bytes."""

    body = b""
    cut: int | None = None
    ranges = True
    kind = "application/zip"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        """The Range header of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.zip?dl=1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        body, total, start = server.body, len(server.body), 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        self.wfile.write(body[start : server.cut])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """What stands in for the authors' links; the releases are tiny."""
    made = Server()
    for version, release in afhq.RELEASES.items():
        images = COUNTS | {f"{release.test}/{name}": n for name, n in TESTS.items()}
        tiny = replace(release, url=made.url, images=images)
        monkeypatch.setitem(afhq.RELEASES, version, tiny)
    with serving(made):
        yield made


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(file, "png")
    return file.getvalue()


def archive(version: str = "v2", extra: dict[str | zipfile.ZipInfo, bytes] | None = None) -> bytes:
    """A zip laid out as the published one: v1 has all below afhq/."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        top = "afhq/" if version == "v1" else ""
        for sub, count in afhq.RELEASES[version].images.items():
            for n in range(count):
                made.writestr(f"{top}{sub}/{n}.png", png(n))
        made.writestr(f"{top}train/cat/.DS_Store", b"not an image")
        for name, content in (extra or {}).items():
            made.writestr(name, content)
    return file.getvalue()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_downloads_unpacks_and_reads(server: Server, tmp_path: Path, version: str) -> None:
    server.body = archive(version)
    data = AFHQ(str(tmp_path / "data"), version, "cat", batch_size=2)  # type: ignore[arg-type]
    assert data.train_files == []
    data.prepare_data()
    release = afhq.RELEASES[version]
    note = f"{release.name}.zip.sha256"
    assert names(tmp_path / "data") == {release.name, note}
    digest = hashlib.sha256(server.body).hexdigest()
    assert (tmp_path / "data" / note).read_text() == f"{digest}  {release.name}.zip\n"
    assert names(tmp_path / "data" / release.name / "train" / "cat") == {"0.png", "1.png", "2.png"}
    data.find()
    data.load(4)
    (batch,) = data.val_dataloader()
    assert batch["key"] == ["0.png", "1.png"] and batch["image"].shape == (2, 4, 4, 3)
    assert data.summary() == {"root": f"AFHQ {version} cat", "train_images": 3, "val_images": 2}
    # There now: nothing is asked for again, whatever way it is pointed at.
    for root in (tmp_path / "data", tmp_path / "data" / release.name):
        again = AFHQ(str(root), version, "dog")  # type: ignore[arg-type]
        again.prepare_data()
        assert len(again.train_files) == 2 and isinstance(again, DomainImages)
    assert len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.body, server.cut, server.ranges = archive(), 100, ranges
    data = AFHQ(str(tmp_path))
    with pytest.raises(OSError, match=r"ended at 100 of \d+ bytes.*run again") as caught:
        data.prepare_data()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"afhq_v2.zip.part"}
    server.cut = None
    data.prepare_data()
    assert server.asked == [None, "bytes=100-"]
    assert names(tmp_path) == {"afhq_v2", "afhq_v2.zip.sha256"}


@pytest.mark.parametrize("more", [0, 1])
def test_a_part_that_is_whole_or_too_long(server: Server, tmp_path: Path, more: int) -> None:
    server.body = archive()
    (tmp_path / "afhq_v2.zip.part").write_bytes(server.body + b"x" * more)
    AFHQ(str(tmp_path)).prepare_data()
    assert len(server.asked) == 1 + more
    assert names(tmp_path) == {"afhq_v2", "afhq_v2.zip.sha256"}


def test_offline_says_what_to_put_where(tmp_path: Path, server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="refused") as caught:
        AFHQ(str(tmp_path / "data")).prepare_data()
    assert names(tmp_path) == set()
    text = str(caught.value)
    assert "\n" not in text and "urlopen" not in text
    assert f"put afhq_v2.zip, from {afhq.HOME}, at {tmp_path}/data/afhq_v2.zip" in text
    assert f"train/ and test/ into {tmp_path}/data/afhq_v2" in text


def test_members_of_any_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member `.` has no parts at all; a small archive may hold much larger things."""
    server.body = archive(extra={".": b"", "./": b""})
    AFHQ(str(tmp_path / "a")).prepare_data()
    assert "afhq_v2" in names(tmp_path / "a")
    monkeypatch.setattr(fetching, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match=r"train/cat/0.png unpacks to \d+ bytes, more than"):
        AFHQ(str(tmp_path / "b")).prepare_data()
    assert "afhq_v2" not in names(tmp_path / "b")


def test_a_web_page_is_no_archive(server: Server, tmp_path: Path) -> None:
    """What a disabled link answers with."""
    server.body, server.kind = b"<html>Link disabled</html>", "text/html; charset=utf-8"
    with pytest.raises(OSError, match="a web page, not the archive"):
        AFHQ(str(tmp_path)).prepare_data()
    assert names(tmp_path) == set()


def hostile(kind: str) -> bytes:
    match kind:
        case "truncated":
            return archive()[:-200]
        case "bit":
            body = bytearray(archive())
            body[body.find(b"IDAT") + 4] ^= 1
            return bytes(body)
        case "link":
            link = zipfile.ZipInfo("train/cat/link.png")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            return archive(extra={link: b"/etc/passwd"})
        case name:
            return archive(extra={name: b"evil"})


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "is no zip, or cut short"),
        ("bit", "is damaged at train/cat/0.png: Bad CRC-32"),
        ("link", "leads out of a folder"),
        ("../train/cat/evil.png", "leads out of a folder"),
        ("train/cat/../../../evil.png", "leads out of a folder"),
        ("/train/cat/evil.png", "leads out of a folder"),
        ("..\\train\\evil.png", "leads out of a folder"),
        ("C:/train/cat/evil.png", "leads out of a folder"),
    ],
)
def test_damaged_or_hostile_archives_leave_nothing(
    server: Server, tmp_path: Path, kind: str, says: str
) -> None:
    server.body = hostile(kind)
    root = tmp_path / "deep" / "data"
    with pytest.raises(ValueError, match=says) as caught:
        AFHQ(str(root)).prepare_data()
    assert "\n" not in str(caught.value)
    assert names(root) == set() and names(tmp_path) == {"deep"} and names(root.parent) == {"data"}
    # One that the user put there is refused too, but is the user's.
    (root / "afhq_v2.zip").write_bytes(server.body)
    with pytest.raises(ValueError, match=says):
        AFHQ(str(root)).prepare_data()
    assert names(root) == {"afhq_v2.zip"}


def test_an_archive_must_be_the_one_seen_before(server: Server, tmp_path: Path) -> None:
    (tmp_path / "afhq_v2.zip").write_bytes(archive(extra={"train/readme.txt": b"changed"}))
    (tmp_path / "afhq_v2.zip.sha256").write_text(f"{'0' * 64}  afhq_v2.zip\n")
    with pytest.raises(ValueError, match="not the archive that was here before"):
        AFHQ(str(tmp_path)).prepare_data()
    assert names(tmp_path) == {"afhq_v2.zip", "afhq_v2.zip.sha256"}
    (tmp_path / "afhq_v2.zip.sha256").unlink()
    AFHQ(str(tmp_path)).prepare_data()
    assert names(tmp_path) == {"afhq_v2.zip", "afhq_v2.zip.sha256", "afhq_v2"}
    assert server.asked == []


def test_a_zip_of_any_name_is_unpacked_beside_itself(server: Server, tmp_path: Path) -> None:
    (tmp_path / "faces.zip").write_bytes(archive())
    data = AFHQ(str(tmp_path / "faces.zip"), domain="wild")
    data.prepare_data()
    data.find()
    assert data.root == tmp_path / "faces" and len(data.val_files) == 1
    (tmp_path / "bad.zip").write_bytes(b"bad")
    with pytest.raises(ValueError, match="is no zip"):
        AFHQ(str(tmp_path / "bad.zip"))


def test_numbers_of_images_are_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "afhq_v2.zip").write_bytes(archive(extra={"train/cat/more.png": png(9)}))
    data = AFHQ(str(tmp_path))
    with pytest.raises(ValueError, match=r"has 4 images in train/cat, AFHQ v2 has 3; .*unpack it"):
        data.prepare_data()
    with zipfile.ZipFile(tmp_path / "afhq_v2.zip") as made:
        made.extractall(tmp_path / "afhq_v2")
    with pytest.warns(UserWarning, match="train/cat has 4 images, not 3"):
        assert len(AFHQ(str(tmp_path)).train_files) == 4


def test_the_other_version_is_told(server: Server, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive("v1"))) as made:
        made.extractall(tmp_path)
    with pytest.raises(ValueError, match=r"version v2 has a folder test, but .* has val as v1"):
        AFHQ(str(tmp_path / "afhq"))
    assert len(AFHQ(str(tmp_path / "afhq"), "v1").train_files) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v3"}, "version must be one of v1, v2, got 'v3'"),
        ({"domain": "cow"}, "domain must be one of cat, dog, wild, got 'cow'"),
        ({"root": "absent.zip"}, "root: no such file absent.zip"),
        ({"root": __file__}, "is neither a folder nor a .zip"),
        ({"batch_size": 0}, "batch_size.*0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        AFHQ(**options)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., int]:
    """`lightning fit` of a tiny network on AFHQ below tmp_path/data."""
    network = {"block_out_channels": [16], "layers_per_block": 1, "attention_resolutions": []}
    model = {"resolution": 8, "network": network | {"head_channels": 8}}
    recipe = {
        "model": {"class_path": "DomainModule", "init_args": model},
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    start = ["fit", "--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out")]
    return lambda *args: main([*start, "--data", "AFHQ", *args])


def test_fit_on_afhq(server: Server, tmp_path: Path, fit: Callable[..., int]) -> None:
    server.body = archive()
    options = ["--data.root", str(tmp_path / "data"), "--data.version", "v2"]
    assert fit(*options, "--data.domain", "dog", "--data.batch_size", "2") == 0
    assert '"AFHQ v2 dog"' in (tmp_path / "out" / "domain" / "domain.json").read_text()


def test_wrong_options_are_named(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert fit("--data.root", str(tmp_path / "absent.zip")) == 2
    assert capsys.readouterr().err.startswith("error: --data.root: no such file")
    assert fit("--data.domain", "cow") == 2
    assert capsys.readouterr().err.startswith("error: --data.domain: ")
