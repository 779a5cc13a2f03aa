"""Careless and hostile inputs, and the commands that meet them: see careless.py."""

import io
import json
import os
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms

import cyclelight
from cyclelight.diffusion.denoiser import Prediction
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.adapters.adm import save_adm
from cyclelight.domains.domain import Domain
from cyclelight.modules.domain import DomainModule
from cyclelight.networks.adm import ADMUNet
from cyclelight.networks.unet import UNetSettings
from datamodules.reading import read_image

TINY = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8)
SIZE = 16
Case = tuple[str, list[str] | Callable[[], object]]


def domain(name: str, folder: str | None = None, **scheduler: Any) -> str:
    """A domain folder; `scheduler` changes its settings."""
    path = Path(folder or name)
    torch.manual_seed(len(name))
    unet = TINY.build(resolution=SIZE, channels=3)
    cyclelight.save_domain(path, unet, NoiseSchedule(), card={"name": name})
    if scheduler:
        edit(path / "scheduler" / "scheduler_config.json", **scheduler)
    return str(path)


def edit(file: Path, **values: Any) -> None:
    """Change settings of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def network(folder: str, **values: Any) -> str:
    """A domain folder whose network's settings are changed."""
    edit(Path(domain("cat", folder)) / "unet" / "config.json", **values)
    return folder


def images(*names: str, size: int = SIZE) -> None:
    """Images of noise."""
    generator = np.random.default_rng(0)
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(name)


def predict(source: str, target: str, *more: str, data: str = "cats", out: str = "") -> list[str]:
    """The words of a translation."""
    out = out or tempfile.mkdtemp(prefix="out", dir=".")
    return [
        *("predict", "--model.source", source, "--model.target", target, "--data.source", data),
        *("--model.method.steps", "4", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--output", out, *more),
    ]


def fit(out: str, *more: str, root: str = "cats") -> list[str]:
    """The words of a training of two steps."""
    return [
        *("fit", "--config", "animals32", "--model.resolution", str(SIZE), "--data.root", root),
        *("--model.network.block_out_channels", "[32, 32, 32]", "--trainer.max_steps", "2"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--output", out, *more),
    ]


def level(path: str) -> str:
    """The middle pixel of an image as it is read."""
    return f"read as {read_image(path).getpixel((SIZE // 2, SIZE // 2))}"


def tensor(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Uniform numbers in [-scale, scale]."""
    return (torch.rand(*shape) * 2 - 1) * scale


def models() -> Iterator[Case]:
    """Point 1: folders that are no domain of ours."""
    for name in ("FlowMatchEulerDiscrete", "EDMEuler", "ScoreSdeVe", "CMStochasticIterative"):
        folder = domain("cat", f"is_{name}", _class_name=f"{name}Scheduler")
        yield f"scheduler {name}", predict(folder, "dog")
        if name == "EDMEuler":
            yield f"inspect of {name}", ["inspect", folder]
    changed: dict[str, dict[str, Any]] = {
        "class-conditional network": {"class_embed_type": "timestep"},
        "Fourier time embedding": {"time_embedding_type": "fourier"},
        "an upsampler's 2 C input channels": {"in_channels": 6},
        "4 channels": {"in_channels": 4, "out_channels": 4},
    }
    for kind, values in changed.items():
        yield kind, predict(network(kind.replace(" ", "_"), **values), "dog")
    yield "sample_size [16, 16]", predict(network("square", sample_size=[16, 16]), "dog")


def fits() -> Iterator[Case]:
    """Points 2, 6 and 9: fits into used folders, limits, precision."""
    yield "a first fit", fit("run")
    yield "a second fit into the folder", fit("run")
    yield "a dry run into the folder", fit("run", "--trainer.fast_dev_run", "true")
    yield "started over", fit("run", "--overwrite")
    yield (
        "limit_predict_batches 1 of 5 images, a batch each",
        predict("cat", "dog", "--trainer.limit_predict_batches", "1", "--data.batch_size", "1"),
    )
    yield (
        "limit_predict_batches 0",
        predict("cat", "dog", "--trainer.limit_predict_batches", "0"),
    )
    for precision in ("64", "bf16-true", "23"):
        yield (
            f"--trainer.precision {precision}",
            predict("cat", "dog", "--trainer.precision", precision),
        )
    checkpoint = "run/checkpoints/last.ckpt"
    yield (
        "DomainModule.load_from_checkpoint",
        lambda: DomainModule.load_from_checkpoint(checkpoint).name,
    )
    yield "channels 1: fit", fit("grey", "--model.channels", "1")
    yield "channels 1: predict", predict("grey/domain", "grey/domain")
    torch.save({"state_dict": Harm(), "global_step": 1}, "harm.ckpt")
    yield "a checkpoint that runs code", fit("other", "--ckpt_path", "harm.ckpt")
    yield "5,000 workers", predict("cat", "dog", "--data.num_workers", "5000")


class Harm:
    """Unpickling it would print."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("CODE WAS RUN",)


def files() -> Iterator[Case]:
    """Points 3, 4 and 10: which images are found, and how their pixels are read."""
    images("outside/far.png", "linked/near.png")
    os.symlink(Path("outside").resolve(), "linked/folder")
    os.symlink(Path("linked").resolve(), "outside/loop")
    yield "a linked folder, and a loop", predict("cat", "dog", data="linked")
    images("mixed/a.png", "mixed/b.jpe", "mixed/c.avif")
    for name in ("d.heic", "e.txt"):
        Path("mixed", name).write_bytes(b"?")
    yield "suffixes of every kind", predict("cat", "dog", data="mixed", out="of_mixed")
    steps = np.full((SIZE, SIZE), 0xC000, np.uint16)
    Image.fromarray(steps).save("white_is_zero.tif", tiffinfo={262: 0})
    yield "TIFF, 16 bit, 0 is white, 0xC000", lambda: level("white_is_zero.tif")
    Image.fromarray(np.full((SIZE, SIZE), 70000, np.int32)).save("integers.tif")
    yield "TIFF, 32-bit integers", predict("cat", "dog", data="integers.tif")
    wide = Image.new("RGB", (SIZE, SIZE), (0, 255, 0))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    wide.save("profile.png", icc_profile=lab)
    yield "an ICC profile that is not of RGB", predict("cat", "dog", data="profile.png")
    Path("ghost.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    yield "PostScript named .png", predict("cat", "dog", data="ghost.png")
    images("hard/a\x1b]0;title\x07.png")
    yield (
        "control characters in a name",
        predict("cat", "dog", "--data.on_error", "raise", data="hard"),
    )
    images("pairs/a.png", "pairs/a.bmp", "pairs/cafe\u0301.png")
    shutil.copytree("pairs", "theirs")
    os.rename("theirs/cafe\u0301.png", "theirs/caf\u00e9.png")
    yield (
        "evaluate: a.png and a.bmp, NFD against NFC names",
        evaluate("pairs", "theirs"),
    )
    images("one/a.png", "ones/a.png")
    yield "evaluate: one image", evaluate("one", "ones")
    os.symlink("nowhere", "dangling")
    yield "a dangling link as output", predict("cat", "dog", out="dangling")


def evaluate(source: str, translated: str) -> list[str]:
    """The words of `evaluate`."""
    given = ("--source", source, "--translated", translated, "--reference", "cats")
    return ["evaluate", *given, "--output", f"of_{source}.json"]


def archives() -> Iterator[Case]:
    """Point 10: archives, checkpoints, recipes, folders."""
    with zipfile.ZipFile("dot.pt", "w") as archive:
        archive.writestr(".", b"")
    yield "a zip with the member `.`", ["import", "dot.pt", "--to", "made"]
    with zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(200_000_000))
    yield "0.2 MB that unpack to 200 MB", predict("bomb.ckpt", "dog")
    with tarfile.open("bomb.tar.gz", "w:gz") as shard:
        info = tarfile.TarInfo("a.png")
        info.size = 300_000_000
        shard.addfile(info, io.BytesIO(bytes(info.size)))
    for kind, shard_name in (
        ("a shard with a 300 MB member", "bomb.tar.gz"),
        ("a shard that is a command", "pipe:echo harm"),
    ):
        shutil.copy("bomb.tar.gz", "val.tar.gz")
        shards = ["--data.train", shard_name, "--data.val", "val.tar.gz", "--output", "shards"]
        yield kind, ["fit", "--config", "animals32", "--data", "ShardImages", *shards]
    yield "a recipe from a URL", ["fit", "--config", "https://example.org/recipe.yaml"]
    for kind, values in {
        "10^7 layers": {"layers_per_block": 10**7},
        "negative width": {"block_out_channels": [8, -16]},
    }.items():
        yield kind, predict(network(kind.replace(" ", "_"), **values), "dog")
    yield "10^9 steps", predict(domain("cat", "long", num_train_timesteps=10**9), "dog")
    os.makedirs("several", exist_ok=True)
    shutil.copytree("cat", "several/cat", dirs_exist_ok=True)
    network("several/bad", norm_num_groups=0)
    yield "inspect with one bad folder", ["inspect", "several"]
    shutil.copytree("cat", "leaking", dirs_exist_ok=True)
    Path("secret").write_text("secret")
    os.symlink(Path("secret").resolve(), "leaking/README.md")
    yield "push of a link out of the folder", ["push", "leaking", "jane/cat", "--dry-run"]
    shape = {"num_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "num_heads": 4}
    save_adm(ADMUNet(sample_size=SIZE, attention_resolutions=(8,), **shape), Path("model.pt"))
    given = ["import", "model.pt", "--to", "made", "--flags.num_heads", "4"]
    given += ["--flags.image_size", str(SIZE)]
    yield "a flag against the tensors", [*given, "--flags.num_channels", "64"]
    yield "4000 steps, rescale_timesteps not said", [*given, "--flags.diffusion_steps", "4000"]


def python() -> Iterator[Case]:
    """Point 7 and the scalars of point 10: the API."""
    cat, dog = cyclelight.load_domain("cat"), cyclelight.load_domain("dog")

    def translate(x: Any, target: Any = dog, **settings: Any) -> Callable[[], object]:
        return lambda: (
            cyclelight.translate(cat, target, x, **{"steps": 4, **settings}).mean().item()
        )

    x = tensor(1, 3, SIZE, SIZE)
    yield "images of 0 to 255", translate(tensor(1, 3, SIZE, SIZE, scale=127) + 127)
    yield "images with NaN", translate(x * float("nan"))
    yield "a NumPy array", translate(x.numpy())
    yield "a PIL image", translate(Image.new("RGB", (SIZE, SIZE)))
    yield "a path", translate("cats/0.png")
    yield "an empty batch", translate(x[:0])

    class Own:
        schedule = NoiseSchedule()

        def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
            self.answer = answer

        def __call__(self, x_t: torch.Tensor, t: Any) -> Any:
            return self.answer(x_t)

    answers: dict[str, Callable[[torch.Tensor], Any]] = {
        "a denoiser that returns a tensor": lambda x_t: x_t,
        "an eps of one channel": lambda x_t: Prediction(x_t[:, :1]),
    }
    for kind, answer in answers.items():
        yield kind, translate(x, Domain(Own(answer), SIZE))
    yield "eta=torch.tensor(.5)", translate(x, eta=torch.tensor(0.5))
    yield "eta=np.float32(.5)", translate(x, eta=np.float32(0.5))
    yield "steps=2.5", translate(x, steps=2.5)
