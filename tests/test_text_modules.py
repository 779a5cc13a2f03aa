"""TextModule, CLIPModule and their data: what is trained, and what others can load of it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from lightning.pytorch import Trainer
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.modules.clip import CLIPModule, contrastive_loss
from cyclelight.modules.text import TextModule
from cyclelight.networks.text import (
    Reading,
    TextEncoderSettings,
    TextUNetSettings,
    VisionSettings,
)
from cyclelight.text.tokens import byte_pairs, token_ids, train_tokenizer
from datamodules import CaptionedImages, DomainImages

R = 16
ENCODER = TextEncoderSettings(vocabulary=600, length=16, width=16, layers=1, heads=2)
UNET = TextUNetSettings((8, 16), 1, (8,), heads=2, norm_groups=8)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of one colour in two styles: plain, and with a black border."""
    root = tmp_path_factory.mktemp("flags")
    rows = ["name,caption"]
    for name, colour in COLOURS.items():
        rows.append(f'{name}1,"{name} flag, flying"')
        for style, border in (("plain", 0), ("framed", 3)):
            pixels = np.zeros((R, R, 3), np.uint8)
            pixels[border : R - border, border : R - border] = colour
            (root / style).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / style / f"{name}1.png")
    (root / "captions.csv").write_text("\n".join(rows) + "\n")
    (root / "held_out.txt").write_text("blue1\n\n")
    return root


def data(root: Path, **options: object) -> CaptionedImages:
    given = {"captions": "captions.csv", "held_out": "held_out.txt", "folder_words": True}
    return CaptionedImages(str(root), num_workers=0, batch_size=6, **{**given, **options})  # type: ignore[arg-type]


def fit(module: TextModule | CLIPModule, root: Path, output: Path, steps: int) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=output,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data(root))
    return trainer


def test_captions_and_what_is_held_out(flags: Path) -> None:
    found = data(flags)
    found.load(R)
    train = {item["key"]: item["caption"] for item in found.train_images}  # type: ignore[union-attr]
    val = {item["key"]: item["caption"] for item in found.val_images}  # type: ignore[union-attr]
    assert val == {
        "plain/blue1.png": "blue flag, flying, plain",
        "framed/blue1.png": "blue flag, flying, framed",
    }
    assert len(train) == 6 and train["plain/red1.png"] == "red flag, flying, plain"
    assert found.summary()["captions"] == 8


def test_captions_beside_the_images(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (R, R)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "b.txt").write_text("a dog")
    found = CaptionedImages(str(tmp_path), val_fraction=0.01)
    assert found.captions == {"a.png": "a cat", "b.png": "a dog"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "nowhere.csv"}, "captions: no such file .*nowhere.csv"),
        ({"captions": "held_out.txt"}, "captions: .*held_out.txt has no column caption"),
        ({"captions": None}, "captions: text files beside the images has a caption for none"),
        ({"held_out": "captions.csv"}, "held_out: captions.csv names no image"),
        ({"held_out": "nowhere.txt"}, "held_out: no such file"),
    ],
)
def test_bad_tables_are_refused(flags: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data(flags, **options)


def test_tokens() -> None:
    captions = ["red flag, flying", "blue flag, flying", "Red Flag"]
    tokenizer = train_tokenizer(captions, 600, 8)
    again = train_tokenizer(reversed(captions), 600, 8)
    ids = token_ids(tokenizer, captions)
    assert torch.equal(token_ids(again, captions), ids)
    assert ids.shape == (3, 8) and (ids[:, 0] == 0).all() and (ids[:, -1] == 1).all()
    assert torch.equal(ids[0, 1:3], ids[2, 1:3])  # Whatever the case; a word is one token.
    assert token_ids(tokenizer, [""])[0].tolist() == [0] + [1] * 7
    with pytest.raises(ValueError, match="a text may have 6 tokens, this one has 8: 'red"):
        token_ids(tokenizer, ["red red red red red red red red"])


def test_byte_pairs_are_those_of_the_paper() -> None:
    """The example of Sennrich et al. 2016, Figure 1, whose ties are broken by the alphabet here."""
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    by_hand = [("e", "s"), ("es", "t</w>"), ("l", "o"), ("e", "w"), ("ew", "est</w>")]
    assert byte_pairs(words, 5) == by_hand
    assert byte_pairs({"aaab": 1}, 9) == [("a", "a"), ("a", "b</w>"), ("aa", "ab</w>")]


def test_contrastive_loss_is_the_papers_where_captions_differ() -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    right = torch.arange(3)
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert_close(contrastive_loss(logits, ["a", "b", "c"]), expected)
    # Of two images with one caption, each is as right as the other.
    both = contrastive_loss(torch.tensor([[50.0, 50.0], [50.0, 50.0]]), ["a", "a"])
    assert_close(both.item(), math.log(2), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_a_text_model_learns_and_loads_elsewhere(flags: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = TextModule(R, UNET, ENCODER, learning_rate=1e-2, warmup_steps=5, ema_decay=0.9)
    found = data(flags)
    found.load(R)
    x = torch.stack([i["image"] for i in found.train_images]).permute(0, 3, 1, 2) / 127.5 - 1  # type: ignore[union-attr]
    captions = [i["caption"] for i in found.train_images]  # type: ignore[union-attr]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([100, 300, 500, 700, 900, 990])
    trainer = fit(module, flags, tmp_path, 100)
    folder = tmp_path / "text_model"
    parts = (
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float(),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float(),
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
    )
    unet, encoder, tokenizer, scheduler = parts
    assert trainer.global_step == 100 and scheduler.config.prediction_type == "v_prediction"
    assert NoiseSchedule.from_diffusers(scheduler.config) == module.schedule
    with torch.no_grad():
        states = encoder(token_ids(tokenizer, captions)).last_hidden_state
        v = Reading(unet, states)(scheduler.add_noise(x, noise, t), t)
        target = scheduler.get_velocity(x, noise, t)
        learned = (v - target).square().mean()
        module.to("cpu").eval()
        theirs = NetworkDenoiser(
            Reading(
                module.networks["unet"],  # type: ignore[arg-type]
                module.networks["text_encoder"](module.ids(captions)).last_hidden_state,
            ),
            module.schedule,
            prediction_type="v_prediction",
        ).output(scheduler.add_noise(x, noise, t), t)[0]
    assert_close(v, theirs, rtol=0, atol=2e-2)  # Half precision on disk.
    assert learned < 0.95 * target.square().mean()
    assert json.loads((folder / "card.json").read_text())["steps"] == 100
    assert (tmp_path / "samples" / "step_000100.png").is_file()


def test_a_clip_learns_and_loads_elsewhere(flags: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = VisionSettings(patch=8, width=16, layers=1, heads=2)
    module = CLIPModule(
        R, vision, ENCODER, projection=16, learning_rate=1e-2, warmup_steps=5, ema_decay=0.5
    )
    fit(module, flags, tmp_path, 200)
    clip = CLIPModel.from_pretrained(tmp_path / "clip").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "clip")
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "clip")
    found = data(flags)
    found.load(R)
    pixels = [item["image"].numpy() for item in found.train_images]  # type: ignore[union-attr]
    captions = [item["caption"] for item in found.train_images]  # type: ignore[union-attr]
    x = processor(pixels, return_tensors="pt")["pixel_values"]
    assert_close(x, torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1)
    with torch.no_grad():
        logits = clip(input_ids=token_ids(tokenizer, captions), pixel_values=x).logits_per_image
    assert logits.argmax(dim=1).tolist() == list(range(6))
    # What it shows beside real images is what their captions find: by now, these themselves.
    shown = [image for image, _ in module._shown.values()]
    real = torch.stack(shown).permute(0, 3, 1, 2) / 127.5 - 1
    assert_close(module.eval().pictures(real[2:], 2), real[2:])
    assert (tmp_path / "samples" / "step_000200.png").is_file()


def test_a_text_model_wants_captions(tmp_path: Path) -> None:
    cats = Path(__file__).parents[1] / "docs" / "demo" / "cats"
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ValueError, match=r"takes images with captions .* got DomainImages"):
        trainer.fit(TextModule(R, UNET, ENCODER), DomainImages(str(cats), num_workers=0))
