"""`lightning weights`, with a server in the place of those that publish the files."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from servers import serving
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torchvision.models import AlexNet_Weights

from cyclelight.cli import main
from cyclelight.commands import weights as command
from cyclelight.metrics import weights
from cyclelight.metrics.weights import WeightFile

CONTENT = b"weights" * 100


def test_files_are_those_that_the_packages_ask_for() -> None:
    assert weights.INCEPTION.url == URL_INCEPTION_V3
    assert weights.ALEXNET.url == AlexNet_Weights.DEFAULT.url
    for file in (weights.INCEPTION, weights.ALEXNET):
        assert file.sha256 in file.name


class Publisher(BaseHTTPRequestHandler):
    """Sends the file; of the first answer only the beginning."""

    cut = threading.Event()
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.asked.append(span)
        start = int(span[6:-1]) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        if not self.cut.is_set():
            self.cut.set()
            self.wfile.write(CONTENT[:100])
            return
        self.wfile.write(CONTENT[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WeightFile]:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with serving(HTTPServer(("127.0.0.1", 0), Publisher)) as server:
        digest = hashlib.sha256(CONTENT).hexdigest()
        made = WeightFile(f"http://127.0.0.1:{server.server_port}/net.pth", digest, "FID")
        monkeypatch.setattr(command, "FILES", (made,))
        yield made


def test_what_is_missing_is_fetched_and_checked(
    file: WeightFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*args: str) -> tuple[int, str]:
        code = main(["weights", *args])
        return code, " ".join(capsys.readouterr().out.split())

    code, text = shown()
    assert code == 1 and "missing at" in text and "FID" in text and not list(tmp_path.iterdir())
    code, text = shown("--fetch")  # The connection ends early.
    assert code == 1 and "cannot be fetched" in text and not file.home.exists()
    code, text = shown("--fetch")  # It goes on where it was.
    assert code == 0 and Publisher.asked[-1] == "bytes=100-", text
    assert file.home.read_bytes() == CONTENT and file.find() == file.home
    assert shown()[0] == 0
    file.home.write_bytes(CONTENT + b"!")
    code, text = shown()
    assert code == 1 and "is damaged or another file: its SHA-256 begins with" in text


def test_no_network(file: WeightFile, capsys: pytest.CaptureFixture[str]) -> None:
    lost = WeightFile("http://127.0.0.1:9/net.pth", file.sha256, "FID")
    code, text = command._state(lost, True)
    assert not code and text.startswith("cannot be fetched (") and "\n" not in text
