"""Translations that are ended early and run again: the files of an undisturbed run."""

import errno
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from tiny import TINY, R, make_run, predict_words

from cyclelight.cli import main
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.folder import save_domain
from cyclelight.runs.folder import RunFolder, sole_use
from cyclelight.runs.plan import Plan
from datamodules import TranslationImages, translation_images
from datamodules.listing import list_images
from datamodules.order import Batches, ShareSampler, batch_loader

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

NETWORK = """
import torch

class Pixels(torch.nn.Module):
    dim = 768
    def forward(self, images):
        return torch.tanh(images.flatten(1) / 255.0)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A forked process has none of its parent's threads, and crashes where it counts on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, 7 sources and 5 reference images, and a feature network of one's own."""
    root = tmp_path_factory.mktemp("restart")
    names = [f"sub/{index}.png" if index % 3 == 2 else f"{index}.png" for index in range(7)]
    make_run(root, {"sources": names, "real": names[:5]})
    (root / "own_network.py").write_text(NETWORK)
    return root


@pytest.fixture(autouse=True)
def own_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))


def options(here: Path, output: Path, *more: object) -> list[str]:
    own = ("--scores.network", "own_network:Pixels", "--data.batch_size", 2)
    return predict_words(here, output, *own, *more)


class Kill(Callback):
    """Ends this process when a batch was translated, before it is written.

    Args:
        batch: which one of its own.
        number: by which signal.
        rank: if there are several processes, which one.
    """

    def __init__(self, batch: int, number: int, rank: int = 0) -> None:
        self.batch, self.number, self.rank = batch, number, rank

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        # Within the batch that has been counted but not written: this callback stands first.
        ready = trainer.predict_loop.batch_progress.current.ready
        if ready == self.batch and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def kill(batch: int, number: int, rank: int = 0) -> list[str]:
    values = f"batch: {batch}, number: {number:d}, rank: {rank}"
    entry = f"{{class_path: test_restart.Kill, init_args: {{{values}}}}}"
    return ["--trainer.callbacks", f"[{entry}]"]


def apart(args: list[str]) -> int:
    """`main(args)` in a process of its own, which has all modules loaded: its exit status."""
    pid = os.fork()
    if pid == 0:
        os._exit(main(args))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    """All files but for the lock and the configuration, which names the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "config.yaml")
    }


@pytest.fixture(scope="module")
def whole(here: Path) -> Path:
    """A run that nothing disturbs."""
    sys.path.insert(0, str(here))
    assert main(options(here, here / "whole")) == 0
    sys.path.remove(str(here))
    return here / "whole"


@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.parametrize(("batch", "finished"), [(1, 0), (3, 4), (4, 6)])
def test_a_killed_run_goes_on(
    here: Path, whole: Path, tmp_path: Path, batch: int, finished: int
) -> None:
    killed = apart(options(here, tmp_path, *kill(batch, signal.SIGKILL)))
    assert killed == -signal.SIGKILL
    assert len(list((tmp_path / "images").rglob("*.png"))) == finished
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")}
    assert main(options(here, tmp_path)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_terminated_run_goes_on(here: Path, whole: Path, tmp_path: Path, number: int) -> None:
    assert main(options(here, tmp_path, *kill(2, number))) == 143
    assert list(RunFolder(tmp_path).manifest()) == ["0.png", "1.png"]
    assert main(options(here, tmp_path)) == 0
    assert files(tmp_path) == files(whole)


def test_a_finished_run_only_counts_again(here: Path, whole: Path, tmp_path: Path) -> None:
    before = files(whole), (whole / "images" / "0.png").stat().st_mtime_ns
    (whole / "metrics.json").unlink()  # As if it had been killed just before that was written.
    assert main(options(here, whole)) == 0
    assert (files(whole), (whole / "images" / "0.png").stat().st_mtime_ns) == before


def test_what_a_crash_left_is_put_right(here: Path, whole: Path, tmp_path: Path) -> None:
    assert main(options(here, tmp_path)) == 0
    (tmp_path / "images" / "sub" / "2.png").unlink()
    (tmp_path / "images" / f".{'0' * 32}.tmp").write_bytes(b"half")
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write('{"key": "3.p')
    assert main(options(here, tmp_path)) == 0
    assert files(tmp_path) == files(whole)


def test_sources_that_have_changed_are_translated_again(here: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(here / "sources", sources)

    def run(name: str) -> dict[str, bytes]:
        assert main(options(here, tmp_path / name, "--data.source", sources)) == 0
        return files(tmp_path / name)

    before = run("out")
    os.utime(sources / "1.png", (1, 1))  # Still the same pixels.
    shutil.copy(sources / "4.png", sources / "3.png")
    (sources / "0.png").rename(sources / "0.bmp")  # Another key, the same name of the result.
    with pytest.warns(UserWarning, match="^1 images, such as 3.png, are other ones than those"):
        after = run("out")
    assert after == run("anew") and after.keys() == before.keys()
    images = [name for name in before if name.startswith("images/")]
    assert [name for name in images if before[name] != after[name]] == [
        "images/0.png",
        "images/3.png",
    ]


@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.filterwarnings("ignore:.*are other ones than those")
@pytest.mark.parametrize(
    ("moment", "written", "back"),
    [("write_image", 0, False), ("write_image", 0, True), ("add_to_manifest", 1, True)],
)
def test_a_run_killed_beside_a_write_goes_on(
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    written: int,
    back: bool,
) -> None:
    """With a source that has changed, also if it is changed back."""
    sources = tmp_path / "sources"
    shutil.copytree(here / "sources", sources)
    args = options(here, tmp_path / "out", "--data.source", sources)
    assert main(args) == 0
    before = files(tmp_path / "out")
    shutil.copy(sources / "4.png", sources / "3.png")
    with monkeypatch.context() as patched:
        carry_out = getattr(RunFolder, moment)

        def kill(folder: RunFolder, key: str, *rest: object) -> object:
            if key == "3.png":
                os.kill(os.getpid(), signal.SIGKILL)
            return carry_out(folder, key, *rest)

        patched.setattr(RunFolder, moment, kill)
        assert apart(args) == -signal.SIGKILL
    after = files(tmp_path / "out")
    assert sum(after[name] != before[name] for name in before if "images/" in name) == written
    if back:
        shutil.copy(here / "sources" / "3.png", sources / "3.png")
    assert main(args) == 0
    again = options(here, tmp_path / "anew", "--data.source", sources)
    assert back or main(again) == 0
    assert files(tmp_path / "out") == (before if back else files(tmp_path / "anew"))


def test_overwriting_waits_until_all_is_loaded(
    here: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What fails before leaves the images, and what is known of them, as they were."""
    shutil.copytree(whole, tmp_path / "out")
    shutil.copytree(here / "sources", tmp_path / "sources")
    shutil.copytree(here / "dog", tmp_path / "dog")
    (tmp_path / "sources" / "3.png").write_bytes(b"no image")
    network = tmp_path / "dog" / "unet" / "config.json"  # Which its weights will not fit.
    network.write_text(network.read_text().replace('layers_per_block": 1', 'layers_per_block": 2'))
    args = options(here, tmp_path / "out", "--overwrite", "--model.method.steps", 5)
    for option, spoilt, told in (
        ("--data.source", "sources", "cannot read image"),
        ("--scores.weights", "none", "network own_network:Pixels cannot be made"),
        ("--model.target", "dog", "dog/unet cannot be read"),
    ):
        assert main([*args, option, str(tmp_path / spoilt)]) == 1
        assert told in capfd.readouterr().err
        assert files(tmp_path / "out") == files(whole)
        config = (tmp_path / "out" / "config.yaml").read_text()
        assert config == (whole / "config.yaml").read_text()


def test_a_source_that_cannot_be_read_any_more_is_skipped(here: Path, tmp_path: Path) -> None:
    """Its translation stays; the figures are of the others."""
    sources = tmp_path / "sources"
    shutil.copytree(here / "sources", sources)
    args = options(here, tmp_path / "out", "--data.source", sources)
    assert main(args) == 0
    before = files(tmp_path / "out")
    (sources / "3.png").write_bytes(b"no image")
    assert main(args) == 1
    assert files(tmp_path / "out") == before
    with pytest.warns(UserWarning, match="skip"):
        assert main([*args, "--data.on_error", "skip"]) == 0
    after = files(tmp_path / "out")
    assert [name for name in before if "images/" in name and after[name] != before[name]] == []
    assert len(after["metrics.csv"].splitlines()) == len(before["metrics.csv"].splitlines()) - 1


@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_damaged_in_the_middle_is_told_when_it_is_used(
    here: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    """What was finished before is kept, and the same command goes on with a sound file."""
    sources = tmp_path / "sources"
    shutil.copytree(here / "sources", sources)
    key, last = list_images(sources)[-1]
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 255
    last.write_bytes(content)
    args = options(here, tmp_path / "out", "--data.source", sources, "--data.num_workers", workers)
    assert main(args) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot read image {last}: ") and "skip leaves such" in error
    made = RunFolder(tmp_path / "out", [name for name, _ in list_images(sources)]).finished()
    assert len(made) >= 4 and key not in made
    shutil.copy(here / "sources" / key, last)
    assert main(args) == 0
    there, now = files(whole), files(tmp_path / "out")
    images = [name for name in there if name.startswith("images/") or name == "metrics.csv"]
    assert all(there[name] == now[name] for name in images)


@pytest.mark.parametrize(
    ("source", "output", "told"),
    [
        ("sources", "sources", "sources are looked for"),
        ("sources", "sources/sub/out", "sources are looked for"),
        ("sources/**/*.png", "sources/out", "sources are looked for"),
        ("sources/*.png", "sources", "lie where this run would write"),
        ("out/images", "out", "lie where this run would write"),
        ("sources", "", "--output: the name of the folder is empty"),
        ("sources", "fit", "is that of a fit"),
    ],
)
def test_a_run_keeps_apart_from_its_sources(
    here: Path,
    tmp_path: Path,
    source: str,
    output: str,
    told: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for folder in ("sources", "out/images"):
        shutil.copytree(here / "sources", tmp_path / folder)
    (tmp_path / "fit" / "checkpoints").mkdir(parents=True)
    before, root = files(tmp_path), tmp_path / output if output else ""
    args = options(here, Path(root), "--data.source", tmp_path / source, "--output", root)
    assert main(args) == 2
    error = capfd.readouterr().err
    assert told in error and error.count("\n") == 1 and files(tmp_path) == before


def test_what_made_the_images_must_be_known(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(options(here, tmp_path)) == 0
    before = files(tmp_path)
    for name in ("config.yaml", "made_by.json"):
        content = (tmp_path / name).read_text()
        cut = content[: content.index("init_args:") + 10] if name == "config.yaml" else "{"
        for damaged in ("", "a: [", "17", "a: 2001-99-99", "[" * 5000, cut):
            (tmp_path / name).write_text(damaged)
            capfd.readouterr()
            assert main(options(here, tmp_path)) == 2
            assert f"as {tmp_path / name} is missing or damaged" in capfd.readouterr().err
        (tmp_path / name).write_text(content)
    (tmp_path / "made_by.json").unlink()
    assert main(options(here, tmp_path)) == 2
    assert main(options(here, tmp_path, "--overwrite")) == 0
    assert files(tmp_path) == before


def test_the_configuration_is_written_whole(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped while it writes leaves the one that made the images."""
    assert main(options(here, tmp_path)) == 0
    before, replace = (tmp_path / "config.yaml").read_text(), os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target).name == "config.yaml":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    assert main(options(here, tmp_path, "--data.batch_size", 3)) == 130
    assert (tmp_path / "config.yaml").read_text() == before


def test_the_same_under_other_names_goes_on(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(options(here, tmp_path, "--trainer.precision", "32-true")) == 0
    monkeypatch.chdir(here)
    same = ("--data.source", "sources/", "--model.source", "cat", "--trainer.precision", 32)
    assert main(options(here, tmp_path, *same)) == 0
    shutil.copytree(here / "sources", tmp_path / "other" / "sources")
    monkeypatch.chdir(tmp_path / "other")
    assert main(options(here, tmp_path, *same[:2], *same[-2:])) == 2
    assert main(options(here, tmp_path, *same[-2:])) == 0


def test_other_settings_are_refused_by_name(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(options(here, tmp_path)) == 0
    before, _ = files(tmp_path), capfd.readouterr()
    assert main(options(here, tmp_path, "--model.method.steps", 5, "--model.method.eta", 0.5)) == 2
    error = capfd.readouterr().err
    assert "--model.method.eta was 1.0, now 0.5; --model.method.steps was 4, now 5" in error
    assert error.count("\n") == 1 and files(tmp_path) == before
    # These do not decide what the images are.
    assert main(options(here, tmp_path, "--data.batch_size", 3)) == 0
    assert main(options(here, tmp_path, "--model.method.steps", 5, "--overwrite")) == 0
    assert files(tmp_path)["images/0.png"] != before["images/0.png"]
    assert files(tmp_path).keys() == before.keys()
    assert main(["predict", "--config", str(tmp_path / "config.yaml")]) == 0
    assert "overwrite: false" in (tmp_path / "config.yaml").read_text()


def test_other_weights_of_the_same_name_are_refused(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(here / "dog", tmp_path / "dog")
    args = options(here, tmp_path / "out", "--model.target", tmp_path / "dog")
    assert main(args) == 0
    before, _ = files(tmp_path / "out"), capfd.readouterr()
    torch.manual_seed(7)
    trained_on = TINY.build(resolution=R, channels=3)
    save_domain(tmp_path / "dog", trained_on, NoiseSchedule(), card={"name": "dog"})
    assert main(args) == 2
    error = capfd.readouterr().err
    assert f"by other weights than those of --model.target {tmp_path / 'dog'};" in error
    assert error.count("\n") == 1 and files(tmp_path / "out") == before
    assert main([*args, "--overwrite"]) == 0
    after = files(tmp_path / "out")
    assert after.keys() == before.keys() and after["images/0.png"] != before["images/0.png"]
    assert after["made_by.json"] != before["made_by.json"]


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match="without locks"), sole_use(tmp_path):
        pass


def test_a_second_run_is_refused(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ready, go_on = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:  # The lock belongs to a process, so that another one must hold it.
        with open(tmp_path / ".lock", "a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            os.write(ready[1], b".")
            os.read(go_on[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    # Neither a translation nor a fit.
    cats = Path(__file__).parents[1] / "docs" / "demo" / "cats"
    fit = ["fit", f"--data.root={cats}", f"--output={tmp_path}"]
    try:
        for args in (options(here, tmp_path), fit):
            assert main(args) == 2
            assert "another run is writing to the output folder" in capfd.readouterr().err
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    finally:
        os.write(go_on[1], b".")
        os.waitpid(pid, 0)
    assert main(options(here, tmp_path)) == 0


def test_values_that_are_not_finite_stop_the_run(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unet = TINY.build(resolution=R, channels=3)
    with torch.no_grad():
        unet.conv_out.weight.fill_(torch.nan)
    save_domain(tmp_path / "nan", unet, NoiseSchedule(), card={"name": "nan"})
    args = options(here, tmp_path / "out", "--model.target", tmp_path / "nan")
    assert main(args) == 1
    assert "the image made of 0.png has values that are not finite" in capfd.readouterr().err
    assert not (tmp_path / "out" / "images").exists()


def test_batches_are_the_same_whatever_is_done(here: Path) -> None:
    data = TranslationImages(str(here / "sources"), batch_size=3, num_workers=0)
    data.load(R)
    assert data.groups() == [range(3), range(3, 6), range(6, 7)]

    def left(done: set[str]) -> tuple[list[range], list[Any]]:
        plan = Plan(RunFolder("nowhere"), data.keys, data.groups(), done)
        groups = plan.batches(done=False)
        return plan.batches(done=True), list(batch_loader(data.loaded, groups, 0, None))

    done, batches = left({"0.png", "1.png", "3.png", "4.png"})
    assert done == [range(3)]
    assert [batch["key"] for batch in batches] == [["4.png", "6.png", "sub/2.png"], ["sub/5.png"]]
    done, (empty,) = left(set(data.keys))
    assert done == data.groups()
    assert empty["key"] == [] and len(empty["image"]) == 0


@pytest.mark.parametrize(("batch_size", "shuffled"), [(1, False), (5, False), (2, True)])
def test_other_batches_give_the_same_images_to_one_level(
    here: Path,
    whole: Path,
    tmp_path: Path,
    batch_size: int,
    shuffled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last bits depend on the shape of a batch: bit for bit at one shape, else to rounding."""
    if shuffled:
        order = np.random.default_rng(0).permutation(7)
        found = translation_images.find_images
        monkeypatch.setattr(
            translation_images, "find_images", lambda s: [found(s)[i] for i in order]
        )
    assert main(options(here, tmp_path, "--data.batch_size", batch_size)) == 0
    folders = [RunFolder(root, list(RunFolder(root).manifest())) for root in (tmp_path, whole)]
    assert folders[0].manifest() == folders[1].manifest()
    for key in folders[0].manifest():
        one, other = (folder.read_image(key, R).int() for folder in folders)
        assert (one - other).abs().max() <= 1
    mine, theirs = (json.loads((f.root / "metrics.json").read_text()) for f in folders)
    for figure, expected in zip(mine["figures"], theirs["figures"], strict=True):
        assert figure["value"] == pytest.approx(expected["value"], rel=1e-3, abs=1e-4)


def test_batches_are_dealt_without_repetition(here: Path) -> None:
    data = TranslationImages(str(here / "sources"), batch_size=3, num_workers=0)
    data.load(R)
    batches = Batches(data.loaded, data.groups())
    dealt = [list(ShareSampler(batches, 2, rank)) for rank in range(2)]
    assert dealt == [[0, 2], [1]]
    assert [len(ShareSampler(batches, 5, rank)) for rank in range(5)] == [1, 1, 1, 0, 0]


def ddp(processes: int) -> tuple[str, ...]:
    return ("--trainer.devices", str(processes), "--trainer.strategy", "ddp")


@pytest.mark.parametrize(("limit", "left"), [("0", 7), ("1", 5), ("0.5", 3)])
def test_half_a_run_says_so(here: Path, tmp_path: Path, limit: str, left: int) -> None:
    """Seven images in batches of two: four batches."""
    cut = options(here, tmp_path, "--trainer.limit_predict_batches", limit)
    with pytest.warns(UserWarning, match=f"{left} of 7 images were not made: trainer.limit_"):
        assert main(cut) == 0
    assert len(list((tmp_path / "images").rglob("*.png"))) == 7 - left


SLOW = pytest.mark.slow


@pytest.mark.parametrize("processes", [pytest.param(2, marks=SLOW), 3, pytest.param(5, marks=SLOW)])
def test_processes_give_the_same_files(
    here: Path, whole: Path, tmp_path: Path, processes: int
) -> None:
    """Bit for bit, with more processes than batches too."""
    assert ranks.run([*options(here, tmp_path), *ddp(processes)], processes, here)[0] == 0
    assert files(tmp_path) == files(whole)
    assert json.loads((tmp_path / "metrics.json").read_text())["figures"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_a_process_loses_nothing(
    here: Path, whole: Path, tmp_path: Path, killed: int
) -> None:
    """Both runs are started by Lightning's launcher."""
    command = [*options(here, tmp_path), *ddp(2)]
    assert ranks.launch([*command, *kill(2, signal.SIGKILL, killed)], here) != 0
    assert not (tmp_path / "metrics.json").exists()
    assert ranks.launch(command, here) == 0
    assert files(tmp_path) == files(whole)
    assert json.loads((tmp_path / "metrics.json").read_text())["figures"]
