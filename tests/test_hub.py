"""Names on the Hugging Face Hub, by its real client against a small local stand-in."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from servers import serving

import cyclelight
from cyclelight.cli import main
from cyclelight.domains import hub
from cyclelight.modules.domain import DomainModule
from cyclelight.modules.translation import TranslationModule
from cyclelight.networks.unet import UNetSettings

SHA = "0123456789abcdef0123456789abcdef01234567"
UNET = UNetSettings((8,), 1, (), head_channels=8, norm_groups=8)


class StandIn(ThreadingHTTPServer):
    """The endpoints that a download and an upload ask for; all files are of one commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.calls: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.private: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def answer(self, body: object = None, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/(.+)", path)
        if found is None:  # The client asks for lists of its own, now and then.
            return self.answer({"error": "none"}, 404)
        self.server.calls.append(f"{self.command} {path}")
        name, kind, rest = found.groups()
        if name in self.server.private:
            return self.answer({"error": "Invalid username or password."}, 401)
        files = self.server.models.get(name)
        if files is None:
            return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
        revision, _, file = rest.partition("/")
        if revision not in ("main", "v1", SHA):
            return self.answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
        if kind == "revision":
            return self.answer({"id": name, "sha": SHA, "siblings": []})
        if kind == "tree":
            tree = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
            return self.answer(tree)
        content = files[file]
        return self.answer(
            content, X_Repo_Commit=SHA, ETag=f'"{hashlib.sha1(content).hexdigest()}"'
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.server.calls.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        url = f"http://127.0.0.1:{self.server.server_port}"
        if self.headers["Authorization"] != "Bearer secret":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            made = self.server.made[-1]
            return self.answer({"url": f"{url}/{made['organization']}/{made['name']}"})
        if "/branch/" in path:
            return self.answer({})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self.answer({"files": modes})
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        lines = [json.loads(line)["value"] for line in body.splitlines()]
        self.server.models[name] = {
            line["path"]: base64.b64decode(line["content"]) for line in lines if "path" in line
        }
        return self.answer({"commitUrl": f"{url}/{name}/commit/{SHA}", "commitOid": SHA})

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """The Hub's client, pointed at the stand-in and at an empty cache."""
    from huggingface_hub import constants

    made = StandIn()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{made.server_port}")
    template = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    hub._download.cache_clear()
    with serving(made):
        yield made
    hub._download.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A domain folder with random weights, in tmp_path/mine."""
    torch.manual_seed(0)
    card = {
        **{"name": "cat", "resolution": 8, "channels": 3, "steps": 3000},
        **{"data": {"root": "AFHQ v2 cat", "train_images": 5065}},
        "data_licence": "CC BY-NC 4.0, NAVER Corporation",
    }
    unet = UNET.build(resolution=8, channels=3)
    return cyclelight.save_domain(
        tmp_path / "mine", unet, cyclelight.NoiseSchedule(), card=card, dtype=torch.float32
    )


def publish(server: StandIn, folder: Path, name: str) -> None:
    files = (path for path in folder.rglob("*") if path.is_file())
    server.models[name] = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_a_name_loads_as_its_folder_and_is_asked_for_once(server: StandIn, folder: Path) -> None:
    (folder / "samples.png").write_bytes(b"not needed")
    (folder / "unet" / "ema.msgpack").write_bytes(b"not needed")
    publish(server, folder, "jane/cat8")
    theirs, ours = cyclelight.load_domain("jane/cat8"), cyclelight.load_domain(folder)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(theirs.denoiser(x, 500).eps, ours.denoiser(x, 500).eps)
    assert theirs.name == "cat"
    got = {call.rpartition(SHA + "/")[2] for call in server.calls if call.startswith("GET /jane")}
    assert got == {
        *("model_index.json", "domain.json", "scheduler/scheduler_config.json"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    }
    asked = len(server.calls)
    module = TranslationModule("jane/cat8", "jane/cat8")
    module.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module.setup("predict")
    module = DomainModule(init_from="jane/cat8", resolution=8)
    assert module.ancestor == "cat" and len(server.calls) == asked
    # Another process asks which commit it is, and finds the files in the cache.
    hub._download.cache_clear()
    cyclelight.load_domain("jane/cat8")
    assert len(server.calls) == asked + 1


def test_without_a_card_the_name_is_the_repository_s(server: StandIn, folder: Path) -> None:
    (folder / "domain.json").unlink()
    publish(server, folder, "jane/cat8")
    assert cyclelight.load_domain("jane/cat8@v1", device="meta").name == "cat8"
    assert "GET /api/models/jane/cat8/revision/v1" in server.calls


def test_errors_are_one_line(
    server: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def refused(name: str, match: str) -> None:
        with pytest.raises(FileNotFoundError, match=match) as caught:
            cyclelight.load_domain(name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"domain: {name} is not a folder here; it ")

    publish(server, folder, "jane/cat8")
    server.private.add("jane/secret")
    refused("jane/secret", "is private, or not at http.*hf auth login")
    with pytest.raises(FileNotFoundError, match=r"jane/dgo .* here; there is no such"):
        cyclelight.load_domain("jane/dgo")
    refused("jane/cat8@v9", "has no revision 'v9'")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("jane/cat8", "is not in the cache, and HF_HUB_OFFLINE forbids")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    cyclelight.load_domain("jane/cat8", device="meta")
    hub._download.cache_clear()
    asked = len(server.calls)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cyclelight.load_domain("jane/cat8").name == "cat"
    assert len(server.calls) == asked


def test_out_of_reach(
    server: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    options = ["--model.target", "jane/dog8", "--data.source", "x.png", "--output", "out"]
    assert main(["predict", "--model.source", "jane/cat8", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --model.source: jane/cat8 is not a folder here; it is not ")
    assert "gives no answer" in err and err.count("\n") == 1
    assert not Path("out").exists()


def test_what_is_local_is_not_asked_for(
    server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "jane").mkdir()
    (tmp_path / "jane" / "cat8").mkdir()
    for name in ("checkpoints/ct", "jane/cat8", "/a/b", "./a/b", "a/b/c", "a", "runs/last.ckpt"):
        assert hub.hub_name(name) is None
        with pytest.raises((FileNotFoundError, ValueError), match=r"does not exist|not a domain"):
            cyclelight.load_domain(name)
    assert server.calls == []
    assert hub.hub_name("checkpoints/ct@main") == ("checkpoints/ct", "main")
    assert hub.hub_name("ann/x") == ("ann/x", None)


def test_inspect_takes_names(
    server: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(server, folder, "jane/cat8")
    assert main(["inspect", "jane/cat8", "jane/dgo"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["A", "cat"] and " 0 B" not in lines[2]
    assert lines[3].split()[0] == "jane/cat8"
    assert lines[4].startswith("-  jane/dgo  is not a folder here; there is no such model at")


def test_push_and_load(
    server: StandIn,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push = ["push", str(folder), "jane/cat8", "--private", "--revision", "v1"]
    assert main(push) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: jane/cat8 is not published: http://127.0.0.1:")
    assert err.count("\n") == 1 and "does not know who you are: log in by `hf auth login`" in err
    (folder / "notes.txt").write_text("not published")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert main(push) == 0
    url = f"http://127.0.0.1:{server.server_port}"
    assert capsys.readouterr().out == f"{url}/jane/cat8/commit/{SHA}\n"
    assert server.made[-1]["name"] == "cat8" and server.made[-1]["visibility"] == "private"
    assert "POST /api/models/jane/cat8/branch/v1" in server.calls
    assert "POST /api/models/jane/cat8/commit/v1" in server.calls
    assert set(server.models["jane/cat8"]) == {
        *("README.md", "model_index.json", "domain.json", "scheduler/scheduler_config.json"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    }
    assert cyclelight.load_domain("jane/cat8").card == cyclelight.load_domain(folder).card


def test_the_model_card(
    server: StandIn,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert main(["push", str(folder), "jane/cat8"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {folder}/README.md\n")
    text = (folder / "README.md").read_text()
    assert server.models["jane/cat8"]["README.md"].decode() == text
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["library_name"] == "diffusers" and metadata["license"] == "cc-by-nc-4.0"
    assert "image-to-image" in metadata["tags"]
    for row in ("images | 8 x 8, 3 channels", "training data | AFHQ v2 cat", "steps | 3,000"):
        assert f"| {row} |" in body
    # What it says works: cyclelight by the name, diffusers by the folder.
    ours, theirs = re.findall(r"```python\n(.*?)```", body, re.S)
    names: dict[str, Any] = {}
    exec(ours, names)
    assert names["images"].shape == (4, 3, 8, 8)
    theirs = theirs.replace('"jane/cat8"', f'"{folder}", low_cpu_mem_usage=False')
    exec(theirs.replace("(num", "(output_type='np', num").replace("50", "2"), names)
    assert names["image"].shape == (8, 8, 3)
    # An edited card is kept.
    (folder / "README.md").write_text("mine")
    assert main(["push", str(folder), "jane/cat8"]) == 0
    assert server.models["jane/cat8"]["README.md"] == b"mine"


def test_a_dry_run_writes_and_publishes_nothing(
    server: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["push", str(folder), "jane/cat8", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "| images | 8 x 8, 3 channels |" in shown
    assert "\nREADME.md\n" in shown and "unet/diffusion_pytorch_model.safetensors" in shown
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert server.calls == [] and server.models == {}


def test_push_refuses_before_it_asks(
    server: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*args: str) -> str:
        assert main(["push", *args]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and not (folder / "README.md").exists()
        return err

    assert "OWNER/NAME must be like jane/cat64, got 'cat'" in refused(str(folder), "cat")
    assert "there is no folder nowhere" in refused("nowhere", "jane/cat8")
    shutil.copy(folder / "domain.json", folder / "unet" / "config.json")
    assert "not one of UNet2DModel" in refused(str(folder), "jane/cat8")
    assert "is required" in refused()
    assert server.calls == []


@pytest.mark.parametrize(
    "link", ["domain.json", "README.md", "unet/diffusion_pytorch_model.part.bin", "vae"]
)
def test_push_follows_no_links(
    server: StandIn, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str
) -> None:
    """A link to a private file, or to a folder with one, would have published that."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "config.json").write_text("{}")
    (folder / link).unlink(missing_ok=True)
    (folder / link).symlink_to(private if link == "vae" else private / "config.json")
    assert main(["push", str(folder), "jane/cat8"]) == 2
    err = capsys.readouterr().err
    assert f"{folder / link}" in err and "is a link to" in err and err.count("\n") == 1
    assert server.calls == []


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        ("CC BY-NC 4.0", ("cc-by-nc-4.0", None)),
        ("CC0 1.0", ("cc0-1.0", None)),
        ("MIT", ("mit", None)),
        ("not stated", ("unknown", None)),
        ("research only; see X", ("other", "research-only-see-x")),
    ],
)
def test_licences(licence: str, told: tuple[str, str | None]) -> None:
    from cyclelight.commands.push import _licence

    assert _licence(licence) == told
