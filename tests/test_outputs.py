import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclelight.files import atomic, write_json, write_text
from cyclelight.runs.folder import RunFolder, output_names, sole_use


@pytest.mark.parametrize(
    "names",
    [
        {"a.jpg": "a.png", "sub/a.jpeg": "sub/a.png", "b.c.jpg": "b.c.png", "bare": "bare.png"},
        {"a.jpg": "a.jpg.png", "a.bmp": "a.bmp.png", "sub/a.jpg": "sub/a.png"},
        # a.jpg's full name is the short one of a.jpg.tif, which must then give way too.
        {"a.jpg": "a.jpg.png", "a.bmp": "a.bmp.png", "a.jpg.tif": "a.jpg.tif.png"},
        {".hidden": ".hidden.png", "A.jpg": "A.png", "a.jpg": "a.png"},
    ],
)
def test_names_are_short_and_differ(names: dict[str, str]) -> None:
    assert output_names(list(names)) == names
    assert output_names(list(names)[::-1]) == names


@pytest.mark.parametrize(
    "key", ["../a.png", "a/../../b.png", "/etc/a.png", "", ".", "a//b.png", "./a.png", "a\0.png"]
)
def test_no_key_leaves_the_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        RunFolder(tmp_path, [key])


def test_other_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a' occurs 2 times"):
        RunFolder(tmp_path, ["a", "b", "a"])
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output folder .*file is a file"):
        RunFolder(tmp_path / "file")


def test_an_image_is_written_as_it_is(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)
    path = RunFolder(tmp_path, ["sub/a.jpg"]).write_image("sub/a.jpg", pixels)
    assert path == tmp_path / "images" / "sub" / "a.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(image, pixels.numpy())
    write_text(tmp_path / "plain.txt", "")
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    write_text(target, "before")
    with pytest.raises(KeyboardInterrupt), atomic(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "before"
    assert list(target.parent.iterdir()) == [target]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    full = r"No space left on device: .*a\.png"
    with pytest.raises(OSError, match=full), atomic(tmp_path / "a.png") as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("anything")
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_file_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that became read-only, which even refuses to remove what is not there."""

    def refuse(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    told = r"Read-only file system: .*/a\.png"
    with pytest.raises(OSError, match=told), atomic(tmp_path / "a.png") as temporary:
        temporary.write_text("anything")


def test_images_that_the_manifest_lacks_are_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    for key in ("a.jpg", "b.jpg"):
        folder.write_image(key, torch.zeros(2, 2, 3, dtype=torch.uint8))
    folder.add_to_manifest("b.jpg", "b.jpg", "0", 0)
    assert folder.unlisted() == ["a.jpg"]


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"fid": 1.5, "names": ["é"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"fid": 1.5, "names": ["é"]}


def test_the_manifest_is_sorted_without_repetitions(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, ["b.jpg", "a.jpg"])
    assert folder.open_manifest() == 0 and folder.finished() == {}
    for key, seed in (("b.jpg", 1), ("a.jpg", 1), ("b.jpg", 2)):
        folder.add_to_manifest(key, f"cats/{key}", "ab", seed)
    assert len(folder.manifest_path.read_text().splitlines()) == 3
    folder.close_manifest()
    assert [json.loads(line) for line in folder.manifest_path.read_text().splitlines()] == [
        dict(key="a.jpg", source="cats/a.jpg", digest="ab", output="images/a.png", seed=1),
        dict(key="b.jpg", source="cats/b.jpg", digest="ab", output="images/b.png", seed=2),
    ]


def test_an_image_of_another_name_is_not_taken_for_it(tmp_path: Path) -> None:
    """jpg, then png in its place, then jpg again: the same name of the translation."""

    def run(*keys: str, makes: Sequence[str] = ()) -> RunFolder:
        folder = RunFolder(tmp_path, keys)
        folder.open_manifest()
        for key in makes:
            folder.write_image(key, torch.zeros(2, 2, 3, dtype=torch.uint8))
            folder.add_to_manifest(key, key, "0", 0)
        return folder

    run("a.jpg", "b.jpg", makes=("a.jpg", "b.jpg"))
    assert list(run("a.png").manifest()) == ["b.jpg"]
    assert list(run("a.png", makes=["a.png"]).finished()) == ["a.png"]
    assert list(run("a.jpg", "b.jpg").finished()) == ["b.jpg"]
    # Both keep their suffixes now: the one without is of neither.
    assert list(run("b.jpg", "b.png").manifest()) == []
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.png"]


def test_a_name_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not UTF-8: 'caf\\udce9.png'; rename it"):
        output_names(["ä.png", os.fsdecode(b"caf\xe9.png")])


def test_what_is_no_entry_is_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, ["a.jpg"])
    folder.add_to_manifest("a.jpg", "a.jpg", "0", 0)
    with folder.manifest_path.open("ab") as file:
        file.write(b'17\n{}\n{"key": "b"}\n\xff\n' + b"[" * 100_000 + b"\n" + b"9" * 5000 + b"\n")
        (entry,) = folder.entries()
        wrong = {"key": 5, "source": None, "digest": [], "output": {}, "seed": "0"}
        for name, value in wrong.items():
            file.write(json.dumps({**entry, name: value}).encode() + b"\n")
    assert list(folder.entries()) == [entry]


@pytest.mark.parametrize("output", ["../a.png", "images/../../a.png", "{outside}", "config.yaml"])
def test_no_entry_has_a_file_removed_that_is_no_image(tmp_path: Path, output: str) -> None:
    outside, root = tmp_path / "a.png", tmp_path / "run"
    output = output.format(outside=outside)
    folder = RunFolder(root, ["a.jpg"])
    folder.write_image("a.jpg", torch.zeros(2, 2, 3, dtype=torch.uint8))
    files = [outside, root / "config.yaml"]
    for path in files:
        path.write_text("mine")
    entry = dict(key="a.jpg", source="a.jpg", digest="0", output=output, seed=0)
    folder.manifest_path.write_text(json.dumps(entry) + "\n")
    folder.open_manifest()
    folder.manifest_path.write_text(json.dumps(entry) + "\n")
    folder.clear()
    assert all(path.is_file() for path in files)


def test_only_temporary_files_of_this_run_are_removed(tmp_path: Path) -> None:
    ours = f".{'0' * 32}.tmp"
    removed = [tmp_path / ours, *(tmp_path / f / ours for f in ("images/sub", "checkpoints"))]
    kept = [tmp_path / ".notes.tmp", tmp_path / "images" / ".x.tmp", tmp_path / "other" / ours]
    for path in [*removed, *kept]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with sole_use(tmp_path):
        assert not any(path.exists() for path in removed)
        assert all(path.exists() for path in kept)


def test_a_later_run_goes_on(tmp_path: Path) -> None:
    image = torch.zeros(4, 4, 3, dtype=torch.uint8)
    first = RunFolder(tmp_path, ["a.jpg", "b.jpg", "d.jpg"])
    first.open_manifest()
    for key in ("a.jpg", "b.jpg", "d.jpg"):
        first.write_image(key, image)
        first.add_to_manifest(key, key, "ab", 0)
    first.image_path("d.jpg").unlink()
    second = RunFolder(tmp_path, ["b.jpg", "c.jpg", "d.jpg"])
    assert second.open_manifest() == 1
    assert list(second.finished()) == ["b.jpg"] and list(second.manifest()) == ["a.jpg", "b.jpg"]
    assert torch.equal(second.read_image("b.jpg", 4), image)
    with pytest.raises(ValueError, match=r"b\.png is 4 x 4 pixels, not 8 x 8"):
        second.read_image("b.jpg", 8)
    second.image_path("b.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="delete it and run again"):
        second.read_image("b.jpg", 4)
    second.clear()
    assert [path.name for path in tmp_path.rglob("*")] == ["images"]


def test_a_line_cut_off_by_a_crash_is_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, ["a.jpg", "b.jpg"])
    folder.add_to_manifest("a.jpg", "a.jpg", "0", 0)
    with folder.manifest_path.open("a") as file:
        file.write('{"key": "b.jp')
    assert list(folder.manifest()) == ["a.jpg"]
    folder.add_to_manifest("b.jpg", "b.jpg", "0", 0)  # Of another process, into the same line.
    assert list(folder.manifest()) == ["a.jpg"]
    folder.close_manifest()
    assert len(folder.manifest_path.read_text().splitlines()) == 1


def test_lines_written_at_once_do_not_mix(tmp_path: Path) -> None:
    groups = [[f"{group}-{n}.png" for n in range(200)] for group in range(4)]

    def append(keys: list[str]) -> None:
        folder = RunFolder(tmp_path, keys)
        for key in keys:
            folder.add_to_manifest(key, "x" * 500, "0", 0)

    with ThreadPoolExecutor(len(groups)) as pool:
        list(pool.map(append, groups))
    keys = sorted(key for group in groups for key in group)
    assert list(RunFolder(tmp_path, keys).manifest()) == keys


def test_a_locale_that_knows_no_unicode_is_named(tmp_path: Path) -> None:
    """In the C locale a name of another letter is no name, though the file is called well."""
    code = (
        "import sys; from cyclelight.runs.folder import output_names\n"
        "try: output_names([sys.argv[1]])\n"
        "except ValueError as error: print(ascii(str(error)))"
    )
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, "K\u00e4se.png"]
    done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, text=True)
    if sys.platform == "linux":
        assert "names are read as ascii: LC_ALL=C.UTF-8" in done.stdout, done.stderr
