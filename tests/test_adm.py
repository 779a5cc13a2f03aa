"""guided-diffusion's checkpoints: the recorded outputs of the original, and a second network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adm_reference
import pytest
import torch
from diffusers import DDPMPipeline
from oracles import formula_input, formula_tensor, tiny_autoencoder
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from cyclelight.cli import main
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.adapters.adm import load_adm, save_adm
from cyclelight.domains.adapters.adm_flags import ADMFlags
from cyclelight.domains.folder import load_domain, save_domain
from cyclelight.networks import resize
from cyclelight.networks.adm import ADMSettings, ADMUNet
from cyclelight.networks.unet import UNetSettings

VECTORS = Path(__file__).parent / "vectors" / "adm"
SHAPES = {"formula_afhq256": "adm_afhq256_shapes.txt"}

CASES = {
    "case_a": ADMFlags(image_size=16, num_head_channels=16),
    "case_b": ADMFlags(image_size=16, num_heads=4, use_new_attention_order=True),
    "case_c": ADMFlags(image_size=16, num_heads=2),
    "case_d": ADMFlags(image_size=16, num_head_channels=8, use_new_attention_order=True),
    "formula_e": ADMFlags(image_size=32, num_heads=4, num_head_channels=16),
    "formula_f": ADMFlags(
        image_size=32, num_heads=2, num_heads_upsample=4, use_new_attention_order=True
    ),
}


def formula_state(case: str, seed: int) -> dict[str, Tensor]:
    state = {}
    lines = (VECTORS / SHAPES.get(case, f"{case}_shapes.txt")).read_text().splitlines()
    for n, line in enumerate(lines):
        name, text = line.split("\t")
        shape = tuple(map(int, text.split("x")))
        state[name] = formula_tensor(n, name, shape, seed)
    return state


def outputs(path: Path, flags: ADMFlags, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    """The network's, one image at a time where each has a class of its own."""
    if y is None:
        return load_adm(path, flags)(x, t).sample
    rows = []
    for row, label in enumerate(y.tolist()):
        network = load_adm(path, ADMFlags(**{**vars(flags), "class_label": label}))
        rows.append(network(x[row : row + 1], t[row : row + 1]).sample)
    return torch.cat(rows)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_recorded_outputs(case: str, tmp_path: Path) -> None:
    v = load_file(VECTORS / f"{case}.safetensors")
    if case.startswith("case"):
        path, x, step, name = VECTORS / f"{case}.pt", v["x"], 1, "output"
    else:
        seed = {"formula_e": 5, "formula_f": 6}[case]
        path, x, step, name = (
            tmp_path / "m.pt",
            formula_input(seed, 2, 3, 32, 32),
            2,
            "output_every2",
        )
        torch.save(formula_state(case, seed), path)
    out = outputs(path, CASES[case], x, v["timesteps"], v.get("y"))
    exact = v[f"{name}_f64"]
    assert (out[:, :, ::step, ::step] - exact).abs().max() / exact.abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.slow
def test_the_network_of_afhq_256(tmp_path: Path) -> None:
    """93.6 M parameters; no flag is needed."""
    v = load_file(VECTORS / "formula_afhq256.safetensors")
    torch.save(formula_state("formula_afhq256", 10), tmp_path / "m.pt")
    out = load_adm(tmp_path / "m.pt", ADMFlags())(
        formula_input(10, 1, 3, 256, 256), v["timesteps"]
    ).sample
    scale = v["output_every16_f64"].abs().max()
    assert (out[:, :, ::16, ::16] - v["output_every16_f64"]).abs().max() / scale < 1e-5
    block = out[:, :, 100:116, 60:76]
    assert (block - v["output_block_f64"]).abs().max() / scale < 1e-5


def test_names_and_shapes_of_afhq_256() -> None:
    with torch.device("meta"):
        network = ADMSettings().build(resolution=256, channels=3)
    lines = [
        f"{name}\t{'x'.join(map(str, value.shape))}" for name, value in network.state_dict().items()
    ]
    assert lines == (VECTORS / "adm_afhq256_shapes.txt").read_text().splitlines()
    assert sum(p.numel() for p in network.parameters()) == 93_563_910


SETS: list[dict[str, Any]] = [
    dict(channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), num_head_channels=8),
    dict(channel_mult=(1, 1, 2), num_res_blocks=2, attention_resolutions=(4, 16), num_heads=4),
    dict(channel_mult=(1,), num_res_blocks=0, attention_resolutions=(), num_heads=1),
    dict(
        channel_mult=(2, 1),
        num_res_blocks=1,
        attention_resolutions=(16, 8),
        num_heads=2,
        num_heads_upsample=4,
    ),
]


def random_state(settings: dict[str, Any], seed: int) -> dict[str, Tensor]:
    network = ADMUNet(sample_size=16, **settings)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator)
        * (0.8 / max(1, value.numel() / len(value)) ** 0.5 if value.ndim > 1 else 0.2)
        + float(value.ndim == 1 and name.endswith("weight"))
        for name, value in network.state_dict().items()
    }


@torch.no_grad()
@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("which", range(len(SETS)))
def test_against_the_reference(which: int, updown: bool, new_order: bool, tmp_path: Path) -> None:
    flags = {"num_head_channels": -1, **SETS[which], "num_channels": 32}
    flags |= {"resblock_updown": updown, "use_scale_shift_norm": updown ^ new_order}
    flags["learn_sigma"] = not new_order
    state = random_state(flags, which)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "m.pt")
    heads = {n: v for n, v in flags.items() if n.startswith("num_head") and v != -1}
    told = ADMFlags(image_size=16, use_new_attention_order=new_order, **heads)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    t = torch.tensor([3, 977])
    flags |= {"image_size": 16, "use_new_attention_order": new_order}
    wanted = adm_reference.forward(
        {name: value.double() for name, value in state.items()}, flags, x.double(), t, None
    )
    network = load_adm(tmp_path / "m.pt", told)
    out = network(x, t).sample
    assert (out - wanted).abs().max() / wanted.abs().max() < 1e-5

    # What is written is the same network, in the legacy order.
    save_adm(network, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    flags["use_new_attention_order"] = False
    legacy = adm_reference.forward(
        {name: value.double() for name, value in again.items()}, flags, x.double(), t, None
    )
    assert_close(legacy, wanted)
    back = load_adm(tmp_path / "again.pt", ADMFlags(image_size=16, **heads))
    assert dict(back.config) == dict(network.config)
    for name, value in network.state_dict().items():
        assert torch.equal(value, back.state_dict()[name])


def test_files_of_old_versions_of_torch(tmp_path: Path) -> None:
    state = torch.load(VECTORS / "case_a.pt", weights_only=True)
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    network = load_adm(tmp_path / "m.pt", CASES["case_a"])
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_half_precision_safetensors(tmp_path: Path) -> None:
    state = {n: v.half() for n, v in torch.load(VECTORS / "case_a.pt", weights_only=True).items()}
    save_file(state, tmp_path / "m.safetensors")
    network = load_adm(tmp_path / "m.safetensors", CASES["case_a"])
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[name].float())


def test_from_a_file_to_a_domain_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(VECTORS / "case_a.pt")
    flags = ["--flags.image_size", "16", "--flags.num_head_channels", "16"]
    to = str(tmp_path / "domain")
    assert main(["import", source, "--to", to, *flags, "--data_licence", "CC0"]) == 0
    page = capsys.readouterr().out
    assert "num_head_channels        16       given" in page
    card = json.loads((tmp_path / "domain/domain.json").read_text())
    assert (card["name"], card["data_licence"], card["imported_from"]) == (
        *("domain", "CC0", "case_a.pt"),
    )
    # Anything that a domain serves for: with a learned variance here, and in diffusers.
    domain = load_domain(to, variance="learned")
    assert domain.denoiser(torch.zeros(1, 3, 16, 16), 5).v_range is not None
    network = ADMUNet.from_pretrained(to, subfolder="unet")
    pipeline = DDPMPipeline.from_pretrained(to, unet=network)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)

    assert main(["export", to, "--to", str(tmp_path / "back.pt")]) == 0
    assert "--image_size 16" in capsys.readouterr().out
    original = torch.load(source, weights_only=True)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == list(original)
    assert all(torch.equal(back[name], original[name]) for name in original)

    # A domain folder is imported too; the card goes along.
    assert main(["import", to, "--to", str(tmp_path / "other")]) == 0
    assert load_domain(tmp_path / "other").card["data_licence"] == "CC0"


def test_a_latent_domain_keeps_its_autoencoder(tmp_path: Path) -> None:
    unet = UNetSettings((8,), 1, (), head_channels=8, norm_groups=8).build(resolution=8, channels=4)
    theirs = tmp_path / "theirs"
    save_domain(theirs, unet, NoiseSchedule(), card={}, autoencoder=tiny_autoencoder())
    assert main(["import", str(theirs), "--to", str(tmp_path / "ours")]) == 0
    a, b = load_domain(theirs), load_domain(tmp_path / "ours")
    assert (a.space, a.shape, a.resolution) == (b.space, b.shape, b.card["resolution"])
    assert b.card["name"] == "ours" and a.space.startswith("latents")


class Bomb:
    """Runs code when unpickled the ordinary way."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return (exec, ("raise SystemExit('code was run')",))


def _state(**changes: Tensor | None) -> dict[str, Tensor]:
    state = torch.load(VECTORS / "case_a.pt", weights_only=True)
    return {n: v for n, v in {**state, **changes}.items() if v is not None}


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.touch(), "cannot be read: it ends too early"),
    "text": (lambda p: p.write_text("hello"), "is no checkpoint of PyTorch"),
    "truncated": (
        lambda p: p.write_bytes((VECTORS / "case_a.pt").read_bytes()[:300_000]),
        "cannot be read",
    ),
    "hostile": (lambda p: torch.save({"a": Bomb()}, p), "would run exec"),
    "a list": (lambda p: torch.save([torch.zeros(1)], p), "but a list"),
    "nested": (lambda p: torch.save({"state_dict": {}}, p), "state_dict is no tensor"),
    "another network": (
        lambda p: torch.save({"conv.weight": torch.zeros(1)}, p),
        "not the tensors of a UNet",
    ),
    "missing": (
        lambda p: torch.save(_state(**{"middle_block.1.norm.bias": None}), p),
        "missing: middle_block.1.norm.bias",
    ),
    "unexpected": (
        lambda p: torch.save(_state(extra=torch.zeros(1)), p),
        "unexpected: extra",
    ),
    "misshapen": (
        lambda p: torch.save(_state(**{"middle_block.1.norm.bias": torch.zeros(2)}), p),
        "misshapen: middle_block.1.norm.bias (2 instead of 32)",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, says = BROKEN[kind]
    path = tmp_path / "model.pt"
    make(path)
    flags = ["--flags.image_size", "16", "--flags.num_head_channels", "16"]
    assert main(["import", str(path), "--to", str(tmp_path / "to"), *flags]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: import: {path}") and err.count("\n") == 1
    assert says in err
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere.pt", "--to", "x"], "there is no file nowhere.pt"),
        (["case_a.pt"], "--to is required"),
        (["case_a.pt", "--to", "x"], "give --flags.image_size"),
        (["case_a.pt", "--to", "x", "--flags.image_size", "16"], "give --flags.num_head_channels"),
        (["case_a.pt", "--to", "."], "--to: . exists already"),
        (
            ["case_a.pt", "--to", "x", "--flags.image_siez", "1"],
            "--flags.image_siez is not an option",
        ),
        (["case_a.pt", "--to", "x", "--flags.noise_schedule", "sigmoid"], "noise_schedule must be"),
        (
            ["case_c.pt", "--to", "x", "--flags.image_size", "16", "--flags.num_heads", "2"],
            "this network has 5 classes: give --flags.class_label, 0 to 4",
        ),
        (
            [
                *[
                    "case_a.pt",
                    "--to",
                    "x",
                    "--flags.image_size",
                    "16",
                    "--flags.num_head_channels",
                    "5",
                ]
            ],
            "num_head_channels 5 does not divide the channels [32]",
        ),
        ([".", "--to", "x"], "is not a domain folder"),
        (
            [".", "--to", "x", "--flags.image_size", "16"],
            "--flags are for guided-diffusion's files",
        ),
    ],
)
def test_usage(
    args: list[str], says: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(VECTORS)
    assert main(["import", *args]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert says in err
    assert not Path("x").exists()


def test_only_adm_networks_are_exported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoints = str(Path(__file__).parents[1] / "checkpoints" / "cat")
    assert main(["export", checkpoints, "--to", str(tmp_path / "cat.pt")]) == 2
    assert "holds a UNet2DModel; only an ADMUNet" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_resolution() -> None:
    """Attention stays at its levels, and the network is rebuilt from its own settings."""
    settings = ADMSettings(32, (1, 1), 1, (8,), num_head_channels=8)
    network = settings.build(resolution=16, channels=3)
    resize(network, 32)
    assert network.config.attention_resolutions == (16,)
    again = ADMUNet.from_config(network.config)
    again.load_state_dict(network.state_dict())
    with pytest.raises(ValueError, match="resolution must be a multiple of 2"):
        resize(network, 33)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (ADMSettings(32, (1, 3), 0, (), num_head_channels=64), r"not divide the channels \[32\]"),
        (ADMSettings(32, (1, 3), 1, (), num_head_channels=64), r"not divide the channels \[96\]"),
        (ADMSettings(24, (1,), 1, ()), r"multiples of 32, got \[24\]"),
        (ADMSettings(32, (1,), 1, (8,)), r"must be among \[16\], got \[8\]"),
        (ADMSettings(32, (1,), -1, ()), "num_res_blocks must be at least 0, got -1"),
    ],
)
def test_settings_that_contradict(settings: ADMSettings, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings.build(resolution=16, channels=3)
