"""Domain folders: anyone's DDPMPipeline folder loads, and what does not is refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch.testing import assert_close

import cyclelight
from cyclelight.networks.unet import UNetSettings

SETTINGS = UNetSettings((16, 16), 1, (8,), head_channels=8, norm_groups=8, learned_variance=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder written by diffusers alone, of a random network with a learned variance."""
    torch.manual_seed(0)
    unet = SETTINGS.build(resolution=16, channels=3)
    scheduler = DDPMScheduler(1000, prediction_type="epsilon", variance_type="learned_range")
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_folder_of_diffusers_predicts_as_diffusers(folder: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    theirs = DDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False).unet(x, 500).sample
    ours = cyclelight.load_domain(folder, variance="learned")
    prediction = ours.denoiser(x, 500)
    assert_close(prediction.eps, theirs[:, :3].detach())
    assert prediction.v_range is not None
    assert_close(prediction.v_range, theirs[:, 3:].detach())
    assert cyclelight.load_domain(folder).denoiser(x, 500).v_range is None
    assert (ours.name, ours.resolution, ours.channels) == ("theirs", 16, 3)


def test_the_oldest_folders_have_their_parts_at_the_root(folder: Path) -> None:
    """As google/ddpm-cifar10-32 has them, and as diffusers still reads them."""
    x = torch.randn(1, 3, 16, 16)
    wanted = cyclelight.load_domain(folder).denoiser(x, 500).eps
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    theirs = DDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False).unet(x, 500).sample
    ours = cyclelight.load_domain(folder).denoiser(x, 500).eps
    assert torch.equal(ours, wanted)
    assert_close(ours, theirs[:, :3].detach())


def test_clipping_x_0_is_folded_into_eps(folder: Path) -> None:
    domain = cyclelight.load_domain(folder, clip_x_0=True)
    x_t = 3 * torch.randn(2, 3, 16, 16)
    alpha_bar = domain.schedule.alpha_bar(300)
    eps = domain.denoiser(x_t, 300).eps
    x_0 = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    assert x_0.abs().max() < 1 + 1e-5
    free = cyclelight.load_domain(folder).denoiser(x_t, 300).eps
    expected = ((x_t - (1 - alpha_bar) ** 0.5 * free) / alpha_bar**0.5).clamp(-1, 1)
    assert_close(x_0, expected, rtol=0, atol=1e-5)


def test_learned_variances_in_lockstep_equal_the_stored_code(folder: Path, tmp_path: Path) -> None:
    """Where two networks' variances differ, the lockstep's last term makes up for it."""
    source = cyclelight.load_domain(folder, variance="learned", dtype=torch.float64)
    other = SETTINGS.build(resolution=16, channels=3)
    cyclelight.save_domain(tmp_path / "other", other, source.schedule, card={"name": "other"})
    target = cyclelight.load_domain(tmp_path / "other", variance="learned", dtype=torch.float64)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    settings = {"steps": 10, "eta": 1.0, "strength": 0.5}
    y = cyclelight.translate(source, target, x, cleanup=0, **settings)
    code = cyclelight.encode(source, x, **settings)
    # The time embedding is float32 in diffusers whatever the dtype: the same on both sides.
    assert_close(cyclelight.decode(target, code), y, rtol=0, atol=1e-9)
    assert (y - x).abs().max() > 1e-2
    assert torch.equal(cyclelight.translate(source, source, x, cleanup=0, **settings), x)
    with pytest.raises(ValueError, match=r"goes with eta 1, got eta 0\.1"):
        cyclelight.translate(source, target, x, steps=10, eta=0.1)


def test_half_precision_on_disk_is_float32_in_memory(folder: Path, tmp_path: Path) -> None:
    domain = cyclelight.load_domain(folder)
    saved = cyclelight.save_domain(
        tmp_path / "half",
        domain.denoiser.network,
        domain.schedule,
        card={"name": "half"},
        dtype=torch.float16,
    )
    half = cyclelight.load_domain(saved)
    x = torch.randn(1, 3, 16, 16)
    assert half.denoiser.network.dtype == torch.float32
    assert_close(half.denoiser(x, 10).eps, domain.denoiser(x, 10).eps, rtol=0, atol=1e-2)
    assert half.schedule == domain.schedule


def test_meta_device_reads_no_weights_but_sees_whether_they_are_whole(folder: Path) -> None:
    domain = cyclelight.load_domain(folder, device="meta")
    assert domain.resolution == 16
    assert {p.device.type for p in domain.denoiser.network.parameters()} == {"meta"}
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cannot be read"):
        cyclelight.load_domain(folder, device="meta")
    weights.unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        cyclelight.load_domain(folder, device="meta")


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    def refused(match: str, path: Path = folder) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
            cyclelight.load_domain(path)
        assert "\n" not in str(caught.value)

    refused("does not exist", tmp_path / "nothing")
    refused("has no model_index.json", tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copytree(folder, tmp_path / "run" / "domain")
    refused("did you mean", tmp_path / "run")
    text = tmp_path / "text.ckpt"
    text.write_text("no checkpoint")
    refused("is no checkpoint of PyTorch", text)
    torch.save({"state_dict": {}}, text)
    refused("is not a checkpoint of cyclelight", text)
    config = folder / "scheduler" / "scheduler_config.json"
    edit(config, beta_schedule="sigmoid")
    refused("beta_schedule 'sigmoid' is not supported")
    edit(config, beta_schedule="linear", prediction_type="flow")
    refused("prediction_type 'flow' is not supported")
    edit(config, prediction_type="epsilon")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused("cannot be read")
    weights.write_bytes(whole)
    edit(folder / "unet" / "config.json", layers_per_block=2)
    refused("missing keys|cannot be read")
    edit(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")
    refused("holds a UNet2DConditionModel")
    (folder / "model_index.json").unlink()
    refused("has no model_index.json")


def test_saving_onto_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    domain = cyclelight.load_domain(folder)
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ValueError, match="is not a domain folder; it is left as it is"):
        cyclelight.save_domain(
            tmp_path / "thesis", domain.denoiser.network, domain.schedule, card={}
        )
