"""`lightning inspect`: one table of domains, and which of them can be paired."""

import json
from pathlib import Path

import pytest
from oracles import tiny_autoencoder

from cyclelight.cli import main
from cyclelight.commands.inspect import _scaled, letter
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains import autoencoder_folder, folder, model_files
from cyclelight.domains.folder import load_domain, save_domain
from cyclelight.networks.unet import UNetSettings

ROOT = Path(__file__).parents[1]
TINY = UNetSettings((8,), 1, (), head_channels=8, norm_groups=8)


def save(folder: Path, resolution: int = 8, channels: int = 3, **schedule: object) -> Path:
    """A domain named by its folder; the weights are random."""
    unet = TINY.build(resolution=resolution, channels=channels)
    card = {
        "name": folder.name,
        "data": {"root": "photos", "train_images": 1234},
        "data_licence": "CC0",
    }
    return save_domain(folder, unet, NoiseSchedule(**schedule), card=card)  # type: ignore[arg-type]


def inspect(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[str], str]:
    """(exit code, lines, stderr)."""
    code = main(["inspect", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_the_shipped_domains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, lines, err = inspect(capsys, "checkpoints/")
    assert (code, err, lines[-1]) == (0, "", "The 5 domains of A translate into each other.")
    assert max(map(len, lines)) <= 100
    assert lines[2].split()[:6] == ["A", "cat", "9.2", "MB", "4.6", "M"]
    assert "checkpoints/cat" in lines[3] and "0.0001..0.02" in lines[3]


def test_groups_and_what_keeps_them_apart(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save(tmp_path / "cat", resolution=16)
    save(tmp_path / "deep" / "dog")
    save(tmp_path / "grey", channels=1)
    save(tmp_path / "late", beta_end=0.03, timesteps=500)
    save(tmp_path / "zebra")
    code, lines, _ = inspect(capsys, tmp_path, tmp_path / "zebra")  # The last one twice.
    text = "\n".join(lines)
    assert code == 0 and text.count("  zebra ") == 1
    letters = {line.split()[1]: line[0] for line in lines if line[1:3] == "  " and line[0] != " "}
    assert letters == {"cat": "A", "dog": "B", "zebra": "B", "grey": "C", "late": "D"}
    assert "Both domains of B translate into each other." in lines
    assert "A and B do not: they differ in resolution: 16 and 8." in lines
    assert "B and C do not: they differ in channels: 3 and 1." in lines
    assert any(line.startswith("B and D do not: their noise schedules differ in") for line in lines)
    for cell in ("8 x 1", "0.0001..0.03", "T = 500", "photos", "1,234 images", "CC0"):
        assert cell in text


def test_what_is_no_domain_is_told_beside_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cat, cut, empty = save(tmp_path / "cat"), save(tmp_path / "cut"), tmp_path / "empty"
    next((cut / "unet").glob("*.safetensors")).unlink()
    empty.mkdir()
    code, lines, err = inspect(capsys, cut, cat, empty, tmp_path / "nowhere")
    assert (code, err) == (1, "")
    assert lines[2].startswith("A  cat")
    bad = [line for line in lines if line.startswith("-  ")]
    assert len(bad) == 3 and bad[0].startswith(f"-  {cut} ") and "holds no weights" in bad[0]
    assert bad[1].endswith(" is not a domain folder: it has no model_index.json")
    assert " does not exist" in bad[2]
    assert "translate into" not in "\n".join(lines)  # One domain alone.
    assert inspect(capsys, empty)[:2] == (
        1,
        [f"-  {empty}  is not a domain folder: it has no model_index.json"],
    )


@pytest.mark.parametrize("card", [{}, {"data": "cats", "data_licence": None, "name": 3}])
def test_a_card_may_say_anything(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, card: dict[str, object]
) -> None:
    cat = save(tmp_path / "cat")
    (cat / "domain.json").write_text(json.dumps(card))
    code, lines, _ = inspect(capsys, cat)
    assert code == 0 and "not stated" in lines[2]


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(capsys)[0] == 2
    assert inspect(capsys, "--verbose", "x")[2] == "error: --verbose is not an option\n"
    code, lines, _ = inspect(capsys, "--help")
    assert code == 0 and "checkpoints/" in "\n".join(lines)


def test_words() -> None:
    units = ("", "K", "M")
    assert [_scaled(n, units) for n in (0, 999, 4_600_000, 93_560_000, 5e9)] == [
        *("0", "999", "4.6 M", "93.6 M", "5000 M")
    ]
    assert [letter(n) for n in (0, 25, 26, 52)] == ["A", "Z", "AA", "BA"]


def test_weights_of_autoencoders_alone_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "cat")
    unet = TINY.build(resolution=8, channels=4)
    latent = {"autoencoder": tiny_autoencoder(), "card": {"name": "latent"}}
    save_domain(tmp_path / "latent", unet, NoiseSchedule(), **latent)  # type: ignore[arg-type]
    read = []

    def load_model(kind: type, path: Path, what: str) -> object:
        read.append(path.relative_to(tmp_path).as_posix())
        return model_files.load_model(kind, path, what)

    for part in (folder, autoencoder_folder):
        monkeypatch.setattr(part, "load_model", load_model)
    assert inspect(capsys, tmp_path)[0] == 0
    assert read == ["latent/vae"]
    load_domain(tmp_path / "latent")
    assert sorted(read[1:]) == ["latent/unet", "latent/vae"]
