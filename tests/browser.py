"""A headless Chromium, driven through pipes by its DevTools protocol: no further package needed."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    """The program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page that is open in a browser."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = os.fdopen(send, "wb"), os.fdopen(receive, "rb")
        self._left, self._number, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def close(self) -> None:
        self._send.close(), self._receive.close()

    def call(self, method: str, **params: Any) -> Any:
        """What the browser answers; RuntimeError if it refuses."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._left:
            read = os.read(self._receive.fileno(), 1 << 16)
            if not read:
                raise RuntimeError("the browser has ended")
            self._left += read
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, once its promise is kept."""
        given = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **given)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def until(self, condition: str, seconds: int = 60) -> None:
        """Wait until JavaScript is true; the page's status is told if it does not become so."""
        found = self.evaluate(
            f"new Promise(done => {{ const end = Date.now() + {1000 * seconds}; const look = () =>"
            f" ({condition}) ? done(true) : Date.now() > end ? done(false) : setTimeout(look, 50);"
            f" look(); }})"
        )
        assert found, (condition, self.evaluate("document.body.innerText"))

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])


@contextmanager
def opened(url: str, profile: Path, *options: str) -> Iterator[Page]:
    """A page of that address; the browser ends with it."""
    program = browser()
    assert program is not None
    read_there, send = os.pipe()
    receive, write_there = os.pipe()

    def arrange() -> None:
        # By way of high numbers, since one of them may be 3 or 4 already.
        read, write = os.dup2(read_there, 100), os.dup2(write_there, 101)
        os.dup2(read, 3), os.dup2(write, 4)

    process = subprocess.Popen(
        [
            *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", *options),
        ],
        preexec_fn=arrange,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there), os.close(write_there)
    page = None
    try:
        page = Page(send, receive)
        page.call("Page.enable")
        page.call("Page.navigate", url=url)
        yield page
    finally:
        process.kill()
        process.wait()
        if page is not None:
            page.close()
