"""Folders and files that are broken or mean harm: each a ValueError in one line that names it."""

import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from oracles import tiny_autoencoder
from tiny import TINY

from cyclelight import NoiseSchedule, load_autoencoder, load_domain, save_domain
from cyclelight.cli import main
from cyclelight.domains.folder import CHECKPOINT_ENTRY
from cyclelight.domains.generator_folder import load_generator, save_generator
from cyclelight.domains.model_files import read_tensors
from cyclelight.networks.ddgan import DDGANGenerator
from cyclelight.networks.unet import UNetSettings

NEVER = 10**9


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain, with and without an autoencoder, to be broken in copies."""
    root = tmp_path_factory.mktemp("whole")
    save_domain(root / "cat", TINY.build(resolution=16, channels=3), NoiseSchedule(), card={})
    unet = UNetSettings((8,), 1, (), head_channels=8, norm_groups=8).build(resolution=8, channels=4)
    autoencoder = tiny_autoencoder()
    save_domain(root / "latent", unet, NoiseSchedule(), card={}, autoencoder=autoencoder)
    return root


def rewrite(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; a callable removes the field."""
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if not callable(v)}))


GONE: Any = print
"""Stands for a field that is left out."""

NETWORKS: list[dict[str, Any]] = [
    {"layers_per_block": 10**7},
    {"layers_per_block": -1},
    {"layers_per_block": True},
    {"layers_per_block": 1.5},
    {"layers_per_block": "2"},
    {"block_out_channels": [8, 10**9]},
    {"block_out_channels": [60_000, 60_000]},  # 300 GB, if it were built before it is compared.
    {"block_out_channels": [8] * 1000},
    {"block_out_channels": []},
    {"block_out_channels": [8, -16]},
    {"block_out_channels": [0, 0]},
    {"block_out_channels": 8},
    {"block_out_channels": [[[[[8]]]], 16]},
    {"block_out_channels": GONE},
    {"down_block_types": ["DownBlock2D"]},
    {"down_block_types": ["os.system", "DownBlock2D"]},
    {"down_block_types": None},
    {"down_block_types": {"a": 1}},
    {"norm_num_groups": 0},
    {"norm_num_groups": 7},
    {"norm_num_groups": True},
    {"attention_head_dim": 0, "down_block_types": ["AttnDownBlock2D"] * 2},
    {"norm_eps": "1e-5"},
    {"norm_eps": float("nan")},
    {"dropout": 2},
    {"dropout": float("inf")},
    {"act_fn": "eval"},
    {"act_fn": 3},
    {"act_fn": "x" * 10**6},
    {"in_channels": True},
    {"in_channels": 0},
    {"in_channels": -3},
    {"in_channels": 2**40},
    {"in_channels": None},
    {"in_channels": "3"},
    {"out_channels": 5},
    {"sample_size": True},
    {"sample_size": -16},
    {"sample_size": 10**9},
    {"sample_size": [16, 8]},
    {"sample_size": 16.5},
    {"sample_size": None},
    {"sample_size": "\ud800"},
    {"time_embedding_type": "\ud800"},
    {"time_embedding_type": "fourier"},
    {"flip_sin_to_cos": 2},
    {"num_class_embeds": 10},
    {"mid_block_type": 4},
    {"sample_size": 15},
    {"downsample_padding": None},
    {"downsample_padding": 3},
    {"downsample_padding": [1, 1]},
    {"freq_shift": {"a": 1}},
    {"freq_shift": []},
    {"mid_block_scale_factor": [1, 2]},
    {"norm_eps": [0.5, 2]},
    {"norm_num_groups": -1},
    {"mid_block_scale_factor": 0},
    {"add_attention": {}},
    {"_class_name": "ADMUNet", "timestep_scale": {}},
    {"_class_name": "ADMUNet", "timestep_scale": 0},
    {"_class_name": ["UNet2DModel"]},
    {"_class_name": {}},
    {"_class_name": "\ud800"},
    {"_class_name": "CovarianceNetwork"},
    {"_class_name": "CovarianceNetwork", "body": {"_class_name": "CovarianceNetwork"}},
    {
        "_class_name": "CovarianceNetwork",
        "body": {"_class_name": "UNet2DModel", "layers_per_block": 10**7},
    },
    {"_class_name": "ADMUNet", "num_res_blocks": 10**7},
    {"_class_name": "ADMUNet", "num_channels": 2**20},
    {"_class_name": "ADMUNet", "channel_mult": [1e30]},
    {"_class_name": "ADMUNet", "num_head_channels": 0},
    {"_class_name": GONE},
]
SCHEDULERS: list[dict[str, Any]] = [
    {"num_train_timesteps": NEVER},
    {"num_train_timesteps": 0},
    {"num_train_timesteps": -1},
    {"num_train_timesteps": True},
    {"num_train_timesteps": 1000.5},
    {"num_train_timesteps": "1000"},
    {"num_train_timesteps": None},
    {"beta_start": float("nan")},
    {"beta_start": "small"},
    {"beta_end": 1},
    {"beta_end": 0.9},
    {"beta_schedule": ["linear"]},
    {"beta_schedule": "\ud800"},
    {"trained_betas": "0.1"},
    {"trained_betas": []},
    {"trained_betas": [0.1, None]},
    {"trained_betas": [0.1, True]},
    {"trained_betas": {"a": 1}},
    {"trained_betas": 5},
    {"prediction_type": ["epsilon"]},
    {"prediction_type": "flow_prediction"},
    {"_class_name": ["DDPMScheduler"]},
    {"_class_name": "os.system"},
    {"_class_name": GONE},
]
AUTOENCODERS: list[dict[str, Any]] = [
    {"scaling_factor": 0},
    {"scaling_factor": -1},
    {"scaling_factor": float("nan")},
    {"scaling_factor": True},
    {"scaling_factor": "1"},
    {"scaling_factor": None},
    {"layers_per_block": 10**7},
    {"latent_channels": 2**30},
    {"block_out_channels": [60_000, 60_000]},
    {"norm_num_groups": 0},
    {"in_channels": 5},
    {"shift_factor": [0.1]},
    {"_class_name": "UNet2DModel"},
    {"_class_name": ["AutoencoderKL"]},
]


def check_refused(folder: Path, part: str = "") -> None:
    """Loaded with weights and without, it is refused in a line that names the folder's part."""
    for device in ("meta", "cpu"):
        start = time.monotonic()
        with pytest.raises(ValueError) as caught:
            load_domain(folder, device=device)
        assert time.monotonic() - start < 10
        told = str(caught.value)
        assert told.startswith(f"domain: {folder}") and len(told) < 700 and "\n" not in told, told
        assert part in told


@pytest.mark.parametrize("changes", NETWORKS, ids=ascii)
def test_networks(whole: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    shutil.copytree(whole / "cat", tmp_path / "cat")
    rewrite(tmp_path / "cat" / "unet" / "config.json", **changes)
    check_refused(tmp_path / "cat")


@pytest.mark.parametrize("changes", SCHEDULERS, ids=ascii)
def test_schedulers(whole: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    shutil.copytree(whole / "cat", tmp_path / "cat")
    rewrite(tmp_path / "cat" / "scheduler" / "scheduler_config.json", **changes)
    check_refused(tmp_path / "cat")


@pytest.mark.parametrize("changes", AUTOENCODERS, ids=ascii)
def test_autoencoders(whole: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    shutil.copytree(whole / "latent", tmp_path / "latent")
    rewrite(tmp_path / "latent" / "vae" / "config.json", **changes)
    check_refused(tmp_path / "latent", "vae")
    with pytest.raises(ValueError, match="vae"):
        load_autoencoder(tmp_path / "latent" / "vae")


TEXTS = {
    "nested": "[" * 10**5,
    "object": '{"a":' * 10**5,
    "list": "[]",
    "cut": '{"a": 1',
    "digits": '{"num_train_timesteps": ' + "9" * 5000 + "}",
    "latin": b'{"name": "caf\xe9"}',
    "zeros": bytes(1000),
    "empty": "",
    "large": '{"a": "' + "x" * 2**24 + '"}',
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "file", ["unet/config.json", "scheduler/scheduler_config.json", "domain.json"]
)
def test_files_of_settings(whole: Path, tmp_path: Path, file: str, text: str) -> None:
    shutil.copytree(whole / "cat", tmp_path / "cat")
    written = TEXTS[text]
    (tmp_path / "cat" / file).write_bytes(
        written if isinstance(written, bytes) else written.encode()
    )
    check_refused(tmp_path / "cat", file)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "no regular file"),
        ("unet/diffusion_pytorch_model.safetensors.index.json", "no regular file"),
        ("unet/diffusion_pytorch_model.bin", "no regular file"),
        ("unet/config.json", "it has no unet/config.json"),
        ("scheduler/scheduler_config.json", "it has no scheduler/scheduler_config.json"),
    ],
)
def test_pipes_in_place_of_files(whole: Path, tmp_path: Path, file: str, part: str) -> None:
    """Whoever opens one waits for ever."""
    shutil.copytree(whole / "cat", tmp_path / "cat")
    (tmp_path / "cat" / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "cat" / file)
    check_refused(tmp_path / "cat", part)


def test_parts_of_the_weights_lie_in_the_folder(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "cat", tmp_path / "cat")
    index = tmp_path / "cat" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    check_refused(tmp_path / "cat", "in another folder")


def test_one_bad_folder_does_not_blind_inspect(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "latent")
    changes = [NETWORKS[i] for i in (0, 18, 45, 48)]
    for number, change in enumerate(changes):
        shutil.copytree(whole / "cat", tmp_path / "all" / f"bad{number}")
        rewrite(tmp_path / "all" / f"bad{number}" / "unet" / "config.json", **change)
    (tmp_path / "all" / "loop").symlink_to("loop")
    assert main(["inspect", str(tmp_path / "all"), str(tmp_path / "all" / "loop")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("A  ") for line in lines) == 1
    assert sum(line.startswith("-  ") for line in lines) == len(changes) + 1

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("cyclelight.domains.folder.load_domain", fail)
    assert main(["inspect", str(whole / "cat")]) == 1
    assert "MemoryError" in capsys.readouterr().out


def test_generators(tmp_path: Path) -> None:
    network = DDGANGenerator(16, 3, 32, (1,), 1, (), 8, 16, 1)
    save_generator(tmp_path / "g", network, {})
    for changes in (
        {"num_res_blocks": 10**7},
        {"mapping_layers": 10**7},
        {"num_channels": "32"},
        {"channel_mult": [2000]},
        {"_class_name": "UNet2DModel"},
    ):
        rewrite(tmp_path / "g" / "network" / "config.json", **changes)
        with pytest.raises(ValueError, match=r"^generator: "):
            load_generator(tmp_path / "g")


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_folder_with_one_variant_of_the_weights(
    whole: Path, tmp_path: Path, variant: str
) -> None:
    shutil.copytree(whole / "cat", tmp_path / "cat")
    unet = UNet2DModel.from_pretrained(whole / "cat" / "unet")
    folder = tmp_path / "cat" / "unet"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    dtype = torch.float16 if variant == "fp16" else torch.bfloat16
    torch.nn.Module.to(unet, dtype).save_pretrained(folder, variant=variant)
    denoiser: Any = load_domain(tmp_path / "cat").denoiser
    for name, value in denoiser.network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, unet.state_dict()[name].float())
    unet.save_pretrained(folder, variant="other")
    with pytest.raises(ValueError, match="it holds the variants"):
        load_domain(tmp_path / "cat")


class Greedy:
    """Becomes as large as a number says when it is unpickled, which torch takes for harmless."""

    def __init__(self, kind: Callable[..., Any]) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int]]:
        return self.kind, (2 * 10**9,)


def deep(levels: int) -> Any:
    value: Any = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def one_number(*shape: int) -> torch.Tensor:
    return torch.zeros(1).expand(*shape)


BOMBS: dict[str, Any] = {
    "bytearray": {"a": Greedy(bytearray)},
    "FloatTensor": {"a": Greedy(torch.FloatTensor)},
    "Tensor": {"a": Greedy(torch.Tensor)},
    "UntypedStorage": {"a": Greedy(torch.UntypedStorage)},
    "far more memory": {"a": one_number(50_000, 50_000)},
    "without end": {"a": deep(60)},
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_would_fill_the_memory(tmp_path: Path, name: str, old: bool) -> None:
    file = tmp_path / "model.pt"
    torch.save(BOMBS[name], file, _use_new_zipfile_serialization=not old)
    assert file.stat().st_size < 10**5
    with pytest.raises(ValueError, match=f"^import: {file} is refused: .*{name}"):
        read_tensors(file, "import")
    assert main(["import", str(file), "--to", str(tmp_path / "domain")]) == 2


@pytest.mark.parametrize("member", [".", "", "/", "..", "data.pkl"])
def test_archives_with_odd_members(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], member: str
) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "beside.ckpt")
    for name in ("beside", "alone"):
        file = tmp_path / f"{name}.ckpt"
        with zipfile.ZipFile(file, "a") as made:
            made.writestr(zipfile.ZipInfo(member), b"x")
        with pytest.raises(ValueError, match=f"^domain: {file} "):
            load_domain(file)
        for words in (
            ["import", str(file), "--to", str(tmp_path / "domain")],
            ["fit", "--ckpt_path", str(file), "--output", str(tmp_path / "o"), "--data.root", "x"],
        ):
            assert main(words) == 2
            error = capsys.readouterr().err
            assert str(file) in error and error.count("\n") == 1
    assert not (tmp_path / "domain").exists()


def test_compressed_checkpoints_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 MB became 9.4 GB; torch.save itself compresses nothing."""
    torch.save(
        {"state_dict": {"a": torch.zeros(10**7)}, "pytorch-lightning_version": "2"},
        tmp_path / "plain.pt",
    )
    bomb = tmp_path / "bomb.ckpt"
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for part in plain.infolist():
            made.writestr(part.filename, plain.read(part))
    assert bomb.stat().st_size < 10**5
    for words in (
        ["inspect", str(bomb)],
        ["import", str(bomb), "--to", str(tmp_path / "domain")],
        ["fit", "--ckpt_path", str(bomb), "--output", str(tmp_path / "fit"), "--data.root", "x"],
    ):
        assert main(words) == (1 if words[0] == "inspect" else 2)
        assert "it would unpack to 4" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "entry",
    [
        {},
        [],
        {"unet": {}, "scheduler": {}, "card": {}},
        {"unet": {"_class_name": "UNet2DModel"}, "scheduler": [], "card": {}},
        {"unet": [], "scheduler": {}, "card": []},
        {"unet": {"_class_name": "UNet2DModel"}, "scheduler": {}, "card": {}},
        {
            "unet": {"_class_name": "UNet2DModel", "layers_per_block": 10**7},
            "scheduler": {},
            "card": {},
        },
        {
            "unet": {"_class_name": "UNet2DModel", "sample_size": 16},
            "scheduler": {},
            "card": {},
            "autoencoder": {"class": "AutoencoderKL", "config": {}, "state_dict": {}, "card": {}},
        },
    ],
    ids=str,
)
def test_broken_checkpoints(tmp_path: Path, entry: Any) -> None:
    torch.save({CHECKPOINT_ENTRY: entry, "state_dict": {}}, tmp_path / "last.ckpt")
    check_refused(tmp_path / "last.ckpt")
