"""docs/live in a real browser: what its page shows is what the network makes in Python."""

import base64
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, browser, opened
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
LIVE = ROOT / "docs" / "live"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser() is None, reason="there is no Chromium here"),
    pytest.mark.skipif(not (LIVE / "lib").is_dir(), reason="`make live` was not run"),
]
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


class Handler(SimpleHTTPRequestHandler):
    """Says nothing of what it serves."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    handler = partial(Handler, directory=str(ROOT / "docs"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/live/"
        with opened(url, tmp_path_factory.mktemp("profile"), *CAMERA) as page:
            page.until("document.readyState === 'complete' && 'ready' in document.body.dataset")
            yield page
        server.shutdown()


def pixels(page: Page, canvas: str) -> NDArray[np.uint8]:
    """(R, R, 4) of a canvas."""
    code = (
        f"(() => {{ const c = document.getElementById('{canvas}'); const d ="
        f" c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        f" return btoa(String.fromCharCode(...d)); }})()"
    )
    found = np.frombuffer(base64.b64decode(page.evaluate(code)), dtype=np.uint8)
    side = round((len(found) / 4) ** 0.5)
    return found.reshape(side, side, 4)


def by_python(source: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network makes of the pixels of the source, (R, R, 3), in levels."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(LIVE / "student.onnx"))
    x = source[:, :, :3].transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    (made,) = session.run(["translations"], {"images": x})
    levels: NDArray[np.float32] = ((made[0].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255)
    return levels


def is_as_python_makes_it(page: Page) -> NDArray[np.uint8]:
    source, made = pixels(page, "source"), pixels(page, "made")
    assert source.shape == made.shape == (48, 48, 4) and (made[:, :, 3] == 255).all()
    assert np.abs(made[:, :, :3] - by_python(source)).max() <= 0.51
    return source


def test_a_file(page: Page) -> None:
    page.choose("#file", ROOT / "docs" / "demo" / "emoji" / "1f640.png")
    page.until("document.body.dataset.made === '1'")
    source = is_as_python_makes_it(page)
    # The cat's transparent surroundings are white, its middle is not.
    assert (source[0, 0, :3] == 255).all() and source[24, 24, :3].min() < 250


def test_an_example(page: Page) -> None:
    page.evaluate("document.querySelectorAll('#examples button')[3].click()")
    page.until("document.body.dataset.made === '2'")
    is_as_python_makes_it(page)


def test_a_drop(page: Page) -> None:
    page.evaluate(
        "(async () => { const blob = await (await fetch('../demo/emoji/1f6f5.png')).blob();"
        "const transfer = new DataTransfer(); transfer.items.add(new File([blob], 'a.png'));"
        "document.getElementById('pictures').dispatchEvent(new DragEvent('drop',"
        "{ dataTransfer: transfer, bubbles: true, cancelable: true })); })()"
    )
    page.until("document.body.dataset.made === '3'")
    is_as_python_makes_it(page)


def test_what_is_no_picture(page: Page) -> None:
    page.choose("#file", ROOT / "pyproject.toml")
    page.until("document.getElementById('status').className === 'error'")
    assert page.evaluate("document.body.dataset.made") == "3"


def test_the_camera(page: Page) -> None:
    """A stream of pictures, until it is stopped; the last one stays."""
    page.evaluate("document.getElementById('camera').click()")
    page.until("Number(document.body.dataset.made) >= 6")
    assert page.evaluate("document.getElementById('camera').textContent") == "Stop the camera"
    page.evaluate("document.getElementById('camera').click()")
    page.until("document.getElementById('camera').textContent === 'Start the camera'")
    before = page.evaluate(
        "new Promise(done => setTimeout(() => done(document.body.dataset.made), 500))"
    )
    source = is_as_python_makes_it(page)
    assert source[:, :, :3].std() > 10  # Chromium's test picture.
    assert page.evaluate("document.body.dataset.made") == before


def test_nothing_is_fetched_from_elsewhere(page: Page) -> None:
    """Nor could it be: the page's own policy forbids it."""
    found = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    here = page.evaluate("location.origin")
    assert len(found) > 5 and all(url.startswith((here, "blob:")) for url in found)
    refused = page.evaluate("fetch('http://127.0.0.2:9/').then(() => '', error => error.message)")
    assert "Failed to fetch" in refused
