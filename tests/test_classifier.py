"""The classifier of noisy images: recorded networks, its training, its folder and its import."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from oracles import formula_input, formula_tensor
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from cyclelight.cli import main
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.adapters.adm_classifier import load_adm_classifier
from cyclelight.domains.adapters.adm_flags import ADMFlags
from cyclelight.domains.classifier import (
    DomainClassifier,
    classifier_fingerprint,
    load_classifier,
    save_classifier,
)
from cyclelight.modules.classifier import DomainClassifierModule
from cyclelight.networks.classifier import ClassifierSettings, ClassifierUNet
from datamodules import DomainImages

ROOT = Path(__file__).parents[1]
CATS = ROOT / "docs" / "demo" / "cats"
VECTORS = Path(__file__).parent / "vectors" / "adm_classifier"
SHAPE: dict[str, Any] = {
    "sample_size": 16,
    "num_channels": 8,
    "channel_mult": (4, 4),
    "num_res_blocks": 1,
    "num_heads": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "dse_attention_pool": {
        "num_classes": 2,
        "attention_resolutions": (8,),
        "num_head_channels": 16,
    },
    "dse_adaptive_pool": {
        "num_classes": 3,
        "attention_resolutions": (16, 8),
        "num_head_channels": 32,
        "use_scale_shift_norm": False,
        "resblock_updown": False,
        "pool": "adaptive",
    },
}
SEEDS = {"dse_attention_pool": 21, "dse_adaptive_pool": 22}
TINY = ClassifierSettings(32, (1, 1), 1, (8,), 16)


def recorded(case: str) -> ClassifierUNet:
    network = ClassifierUNet(**SHAPE, **CASES[case]).eval()
    state = network.state_dict()
    for n, (name, value) in enumerate(state.items()):
        value.copy_(formula_tensor(n, name, value.shape, SEEDS[case]))
    return network


@pytest.mark.parametrize("case", CASES)
def test_recorded_outputs(case: str) -> None:
    v = load_file(VECTORS / f"{case}.safetensors")
    network = recorded(case)
    assert_close(v["x"], formula_input(SEEDS[case], 2, 3, 16, 16))
    for dtype, tolerances in ((torch.float32, (1e-5, 1e-4, 1e-6)), (torch.float64, (1e-9,) * 3)):
        network.to(dtype)
        x = v["x"].to(dtype).requires_grad_()
        logits = network(x, v["timesteps"])
        (grad,) = torch.autograd.grad(logits.log_softmax(1)[:, 1].sum(), x)
        made = (logits, network.features(x, v["timesteps"]), grad)
        names = ("logits", "features", "grad_log_p1")
        for name, value, tolerance in zip(names, made, tolerances, strict=True):
            wanted = v[f"{name}_f64"].to(dtype)
            assert_close(value, wanted, rtol=0, atol=tolerance)


def test_names_and_shapes_of_afhq_256() -> None:
    with torch.device("meta"):
        state = ClassifierUNet().state_dict()
    lines = [f"{name}\t{'x'.join(map(str, t.shape))}" for name, t in state.items()]
    wanted = (VECTORS / "dse_afhq256_shapes.txt").read_text().replace("I2Iout.", "out.")
    assert lines == wanted.split("\n")[: len(lines)]
    assert sum(t.numel() for t in state.values()) == 53_584_386


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prefix", ["I2Iout.", "out."])
def test_import(case: str, prefix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    v, file = load_file(VECTORS / f"{case}.safetensors"), tmp_path / "dse.pt"
    state = recorded(case).state_dict()
    torch.save(
        {name.replace("out.", prefix, name[:4] == "out."): t for name, t in state.items()}, file
    )
    to, heads = tmp_path / "classifier", CASES[case]["num_head_channels"]
    words = ["import", str(file), "--to", str(to), "--flags.num_head_channels", str(heads)]
    names = ["cat", "dog", "wild"][: CASES[case]["num_classes"]]
    words += ["--flags.image_size", "16"] * ("adaptive" in case)
    assert main([*words, "--classes", f"[{', '.join(names)}]"]) == 0, capfd.readouterr()
    classifier = load_classifier(to)
    assert (classifier.classes, classifier.resolution) == (tuple(names), 16)
    assert classifier.schedule == NoiseSchedule.linear()
    assert classifier.card["imported_from"] == "dse.pt"
    for name, tolerance in (("logits", 1e-5), ("features", 1e-4)):
        made = getattr(classifier, name)(v["x"], v["timesteps"])
        assert_close(made, v[f"{name}_f64"].float(), rtol=0, atol=tolerance)


def test_the_shape_of_afhq_256_is_read_from_the_tensors(tmp_path: Path) -> None:
    lines = (VECTORS / "dse_afhq256_shapes.txt").read_text().split()
    shapes = zip(lines[::2], lines[1::2], strict=True)
    state = {name: torch.zeros([*map(int, shape.split("x"))]) for name, shape in shapes}
    torch.save(state, tmp_path / "dse.pt")
    made = load_adm_classifier(tmp_path / "dse.pt", ADMFlags())
    with torch.device("meta"):
        wanted = ClassifierUNet()
    told = {name: value for name, value in made.network.config.items() if name[0] != "_"}
    assert told == {name: value for name, value in wanted.config.items() if name[0] != "_"}
    assert made.classes == ("0", "1")


def test_imports_that_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = recorded("dse_adaptive_pool").state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save(
        {n: t for n, t in state.items() if n != "middle_block.1.qkv.bias"}, tmp_path / "b.pt"
    )
    said = {
        "a": "the image size cannot be told from the tensors: give --flags.image_size",
        "b": "missing: middle_block.1.qkv.bias",
    }
    for name, message in said.items():
        more = ["--flags.num_head_channels", "32"] + ["--flags.image_size", "16"] * (name == "b")
        to = tmp_path / "made"
        assert main(["import", str(tmp_path / f"{name}.pt"), "--to", str(to), *more]) == 2
        assert message in capfd.readouterr().err
        assert not to.exists()
    words = ["import", str(ROOT / "checkpoints" / "cat"), "--to", str(tmp_path / "made")]
    assert main([*words, "--classes", "[a, b]"]) == 2
    assert "--classes is for a classifier" in capfd.readouterr().err


def module(**settings: Any) -> DomainClassifierModule:
    torch.manual_seed(0)
    return DomainClassifierModule(
        **{
            "classes": ("dark", "light"),
            "resolution": 16,
            "network": TINY,
            "warmup_steps": 0,
            "learning_rate": 3e-3,
            "ema_decay": 0.5,
            **settings,
        }
    )


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Demo cats darkened, and the same cats lightened."""
    from PIL import Image

    for path in sorted(CATS.glob("*.png")):
        for name, shift in (("dark", -90), ("light", 90)):
            image = Image.open(path, formats=("PNG",)).convert("RGB").resize((16, 16))
            image = image.point([max(0, min(255, level + shift)) for level in range(256)] * 3)
            file = tmp_path / "data" / name / path.name
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    return tmp_path / "data"


def fit(model: DomainClassifierModule, data: Path, root: Path, steps: int) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        default_root_dir=root,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, DomainImages(str(data), batch_size=8, num_workers=0, val_fraction=0.3))
    return trainer


def test_fit_learns_and_writes_a_folder(folders: Path, tmp_path: Path) -> None:
    trainer = fit(module(), folders, tmp_path / "run", 100)
    classifier = load_classifier(tmp_path / "run" / "classifier")
    assert (classifier.classes, classifier.resolution) == (("dark", "light"), 16)
    assert classifier.card["steps"] == 100
    # Brightness is told until little but noise is left.
    figures = trainer.callback_metrics
    assert figures["val/accuracy_t0000-0199"] == 1
    assert classifier.card["val_accuracy"] == round(float(figures["val/accuracy"]), 4)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    items = list(data.val_images)
    x = to_float(torch.stack([item["image"] for item in items]))
    labels = [item["key"].split("/")[0] for item in items]
    guesses = [classifier.classes[i] for i in classifier.logits(x, 0).argmax(1)]
    assert guesses == labels
    assert not any(p.requires_grad for p in classifier.network.parameters())
    assert (tmp_path / "run" / "samples" / "step_000100.png").is_file()


def test_the_loss_is_the_cross_entropy_of_noised_images() -> None:
    model = module(flip=False)
    torch.nn.init.normal_(model.network.out[2].c_proj.weight)
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append((x, t))
            return torch.stack([x.mean((1, 2, 3)), 2 * x.mean((1, 2, 3))], 1)

    model.network = Spy()  # type: ignore[assignment]
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    image = torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8)
    batch = {"image": image, "key": [f"{n}/x.png" for n in ("dark", "light", "light", "dark")]}
    loss = model.training_step(batch, 0)
    ((x_t, t),) = seen
    logits = torch.stack([x_t.mean((1, 2, 3)), 2 * x_t.mean((1, 2, 3))], 1)
    assert_close(loss, F.cross_entropy(logits, torch.tensor([0, 1, 1, 0])))
    # What is left after the image is taken away is noise of the level of t.
    a = model.schedule.alphas_cumprod[t].float().view(-1, 1, 1, 1)
    noise = (x_t - a.sqrt() * to_float(image)) / (1 - a).sqrt()
    assert_close(noise.std((1, 2, 3)), torch.ones(4), rtol=0, atol=0.1)
    assert len(set(t.tolist())) > 1


def test_a_folder_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    network = recorded("dse_attention_pool")
    classifier = DomainClassifier(network, NoiseSchedule.cosine(200), ("a", "b"), {"data": "x"})
    folder = save_classifier(tmp_path / "c", classifier)
    back = load_classifier(folder)
    assert (back.classes, back.schedule, back.card["data"]) == (
        ("a", "b"),
        classifier.schedule,
        "x",
    )
    x = formula_input(21, 2, 3, 16, 16)
    assert torch.equal(back.features(x, 7), network.features(x, 7))
    before = classifier_fingerprint(folder)
    save_classifier(folder, replace(classifier, card={}))
    assert classifier_fingerprint(folder) == before
    network.time_embed[0].bias.data[0] += 1
    save_classifier(folder, classifier)
    assert classifier_fingerprint(folder) != before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("gone", "does not exist; give a classifier folder"),
        ("classifier.json", "has no classifier.json"),
        ("diffusion_pytorch_model.safetensors", "holds no weights"),
        ("classes", "classes must be 2, got 1"),
        ("class", "holds a UNet2DModel, not one of ClassifierUNet"),
    ],
)
def test_folders_that_are_none(change: str, says: str, tmp_path: Path) -> None:
    classifier = DomainClassifier(recorded("dse_attention_pool"), NoiseSchedule(), ("a", "b"))
    folder = save_classifier(tmp_path / "c", classifier)
    name, key, value = "classifier.json", "classes", ["a"]
    if change == "gone":
        shutil.rmtree(folder)
    elif change in ("classes", "class"):
        if change == "class":
            name, key, value = "config.json", "_class_name", "UNet2DModel"  # type: ignore[assignment]
        card = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**card, key: value}))
    else:
        (folder / change).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        load_classifier(folder, "method.classifier")
    assert str(caught.value).startswith("method.classifier: ")


def test_settings_that_are_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes must be at least two different folders"):
        module(classes=("cat", "cat"))
    with pytest.raises(ValueError, match="pool must be one of attention, adaptive, got 'mean'"):
        module(network=replace(TINY, pool="mean"))
    with pytest.raises(ValueError, match="lies in no folder of dark, blue"):
        fit(module(classes=("dark", "blue")), folders, tmp_path / "run", 1)
    with pytest.raises(ValueError, match="classes: there are no train images in a folder blue"):
        fit(module(classes=("dark", "light", "blue")), folders, tmp_path / "run", 1)
    assert not (tmp_path / "run" / "classifier").exists()


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs" / "classifiers").glob("*.yaml")))
def test_recipes_fit(recipe: Path, tmp_path: Path) -> None:
    """At their own size and depth, of few channels."""
    data = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    for split in (data["train"], data["val"]):
        for name in ("cat", "dog", "wild", "google", "twitter"):
            if name in recipe.read_text():
                shutil.copytree(CATS, tmp_path / "data" / split / name)
    options = {
        "--model.network.num_channels": "32",
        "--model.network.num_head_channels": "32",
        "--trainer.max_steps": "1",
        "--trainer.accelerator": "cpu",
        "--trainer.limit_val_batches": "1",
        "--trainer.log_every_n_steps": "1",
        "--trainer.enable_model_summary": "false",
        "--trainer.enable_progress_bar": "false",
        "--data.root": str(tmp_path / "data"),
        "--data.batch_size": "2",
        "--output": str(tmp_path / "run"),
    }
    words = [word for pair in options.items() for word in pair]
    assert main(["fit", "--config", str(recipe), *words]) == 0
    assert load_classifier(tmp_path / "run" / "classifier").classes
