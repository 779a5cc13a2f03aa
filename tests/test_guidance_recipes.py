"""The recipes of guidance as they are shipped: what they train is what the next one takes."""

from pathlib import Path

import pytest
from trainings import make_images

from cyclelight.cli import main
from cyclelight.guidance.load import load_map

ROOT = Path(__file__).parents[1]
GUIDANCE = ROOT / "configs" / "guidance"


def fit(name: str, images: Path, output: Path, *more: str) -> None:
    """A recipe with what would take long cut short."""
    options = {
        "--config": str(GUIDANCE / f"{name}.yaml"),
        "--data.root": str(images),
        "--data.batch_size": "2",
        "--trainer.max_steps": "2",
        "--trainer.accelerator": "cpu",
        "--trainer.precision": "32-true",
        "--trainer.logger": "false",
        "--trainer.enable_checkpointing": "false",
        "--trainer.enable_model_summary": "false",
        "--trainer.enable_progress_bar": "false",
        "--output": str(output),
    }
    words = [word for pair in options.items() for word in pair]
    assert main(["fit", *words, *more]) == 0


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", count=6, side=48)


def test_covariance(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fit("sn", images, tmp_path / "sn")
    generator = load_map(str(tmp_path / "sn" / "domain"), steps=3, eta=0.0, variance="learned")
    assert list(generator.shapes) == ["x_T", "eps_999", "eps_499"]


def test_ddgan(images: Path, tmp_path: Path) -> None:
    small = ["--model.network.num_channels", "8", "--model.discriminator_width", "8"]
    fit("ddgan32", images, tmp_path / "run", *small)
    assert load_map(str(tmp_path / "run" / "generator")).calls == 4


def test_diffae(images: Path, tmp_path: Path) -> None:
    small = ["--model.network.num_channels", "32", "--model.network.latent_width", "16"]
    fit("diffae32", images, tmp_path / "one", *small)
    first = str(tmp_path / "one" / "generator")
    with pytest.raises(ValueError, match="has no latent prior to make codes of noise"):
        load_map(first)
    fit("diffae32_latent", images, tmp_path / "two", "--model.generator", first)
    assert load_map(str(tmp_path / "two" / "generator"), steps=5).calls == 10


def test_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(ROOT)
    options = {
        "--config": str(GUIDANCE / "cat_tabby.yaml"),
        "--data.count": "1",
        "--model.steps": "2",
        "--model.sampler.steps": "2",
        # The recipe's judge is in a package that is not asked for.
        "--scores.judge": "efficientnet-lite0",
        "--trainer.accelerator": "cpu",
        "--trainer.enable_progress_bar": "false",
        "--output": str(tmp_path / "out"),
    }
    words = [word for pair in options.items() for word in pair]
    assert main(["guide", *words]) == 0
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_every_recipe_is_tested() -> None:
    text = Path(__file__).read_text()
    for recipe in GUIDANCE.glob("*.yaml"):
        assert recipe.stem in text
