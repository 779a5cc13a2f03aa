"""Which files a folder or a pattern means: with links, loops of them, and files passed over."""

import warnings
from glob import glob
from pathlib import Path

import pytest
from PIL import Image, features

from datamodules.listing import SUFFIXES, find_images, fits, list_images
from datamodules.reading import read_image


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def keys(files: list[tuple[str, Path]]) -> list[str]:
    return [key for key, _ in files]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "cats"
    touch(root, "a.png", "sub/b.png")
    touch(tmp_path, "elsewhere/c.png", "elsewhere/deeper/d.png")
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere" / "deeper")  # Comes first: found there.
    (root / "sub" / "up").symlink_to(root)  # A loop.
    (root / "aaa").symlink_to(root / "sub")  # Its own name stands first in the alphabet.
    (root / "e.png").symlink_to(tmp_path / "elsewhere" / "c.png")  # A file is what it is called.
    wanted = ["a.png", "again/d.png", "e.png", "more/c.png", "sub/b.png"]
    assert keys(list_images(root)) == wanted
    assert keys(find_images(str(root))) == wanted
    assert keys(find_images(f"{root}/**/*.png")) == wanted
    assert keys(find_images(f"{root}/**")) == wanted
    assert keys(find_images(f"{root}/*/*.png")) == ["again/d.png", "more/c.png", "sub/b.png"]
    assert all(path == root / key for key, path in list_images(root))


def test_a_handful_stays_a_handful_whatever_loops(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    for name in "ab":  # Two loops: each further step doubles the ways through them.
        (tmp_path / name / "x").symlink_to(tmp_path)
        (tmp_path / name / "y").symlink_to(tmp_path)
    assert keys(find_images(f"{tmp_path}/**/*.png")) == ["a/1.png", "b/2.png"]
    assert keys(find_images(f"{tmp_path}/*/*/*/*.png")) == ["a/x/a/1.png", "a/x/b/2.png"]


@pytest.mark.parametrize(
    "pattern",
    ["**/*.png", "**", "a/**/*.png", "**/c/*", "*/**/b?.png", "**/[ab]*.png", "**/b/**/*", "**/b"],
)
def test_patterns_mean_what_glob_means(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "x.png", "a/b1.png", "a/b/c/d.png", "b/c/b2.png", "b/b/b/e.png", ".f/g.png")
    theirs = {name.rstrip("/") for name in glob(pattern, root_dir=tmp_path, recursive=True)}
    below = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    ours = {str(path) for path in below if fits(path.parts, Path(pattern).parts)}
    files = {name for name in theirs if (tmp_path / name).is_file()}
    assert {name for name in ours if not name.startswith(".")} == files


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.heic", "sub/c.HEIC", "d.psd", "notes.txt", ".hidden.tga", "sub/e")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    told = r"passed over 2 \.heic, 2 links that lead nowhere, 1 \.psd: no images, or in a format"
    with pytest.warns(UserWarning, match=told):
        assert keys(list_images(tmp_path)) == ["a.png"]
    for name in ("b.heic", "sub/c.HEIC", "d.psd", "gone", "gone.png"):
        (tmp_path / name).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keys(list_images(tmp_path)) == ["a.png"]


def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    touch(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if Path(path).name == "closed":  # Root may read any.
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError, match="closed"):
        list_images(tmp_path)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_each_suffix_is_of_a_format_that_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    mode = {".pbm": "1", ".pgm": "L", ".pfm": "F"}.get(suffix, "RGB")
    value = {"1": 1, "L": 128, "F": 0.5}.get(mode, (128, 128, 128))
    exact = {".avif": {"quality": 100}}.get(suffix, {})
    Image.new(mode, (16, 16), value).save(tmp_path / f"a{suffix}", **exact)  # type: ignore[arg-type]
    ((key, path),) = list_images(tmp_path)
    level = 255 if mode == "1" else 128
    got = read_image(path).getpixel((8, 8))
    assert key == f"a{suffix}" and got == pytest.approx((level,) * 3, abs=1)
