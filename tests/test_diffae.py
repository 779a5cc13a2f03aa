"""DiffAE: the three networks, the two chains, the two trainings, its checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from trainings import fit, make_images

from cyclelight.chains.diffae import (
    SCHEDULE,
    code_denoiser,
    image_denoiser,
    make_codes,
)
from cyclelight.chains.diffae import (
    make_images as decode_images,
)
from cyclelight.chains.sample import reverse_chain
from cyclelight.diffusion.grid import TimeGrid
from cyclelight.diffusion.pixels import to_float
from cyclelight.domains.adapters.diffae import load_diffae
from cyclelight.domains.generator_folder import load_generator, save_generator
from cyclelight.modules.diffae import DiffAEModule
from cyclelight.modules.diffae_latent import DiffAELatentModule
from cyclelight.networks.ddgan import DDGANSettings
from cyclelight.networks.diffae import DiffAESettings
from cyclelight.networks.latent_prior import PriorLayer
from datamodules import DomainImages

VECTORS = Path(__file__).parent / "vectors" / "diffae"
CASE = load_file(VECTORS / "vectors.safetensors")
TINY = DiffAESettings(8, (1, 2), (1, 2), 1, (), 1, 6, 16, 3, 8, norm_groups=4)


@pytest.fixture(scope="module")
def network() -> Any:
    return load_diffae(VECTORS / "last.ckpt", VECTORS / "latent.pkl", image_size=16)[0]


@torch.no_grad()
def test_published_networks(network: Any) -> None:
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(network.encoder(CASE["x"]), CASE["cond"], **close)
    eps = network(CASE["fw_x"], CASE["fw_t"], CASE["fw_cond"])
    torch.testing.assert_close(eps, CASE["fw_pred"], **close)
    own = network(CASE["fw_x"], CASE["fw_t"], network.encoder(CASE["x"]))
    torch.testing.assert_close(own, CASE["fw_auto_pred"], **close)
    torch.testing.assert_close(
        network.prior(CASE["lat_x"], CASE["lat_t"]), CASE["lat_pred"], **close
    )


@pytest.mark.parametrize("steps", [5, 10])
@torch.no_grad()
def test_published_decoding(network: Any, steps: int) -> None:
    grid = TimeGrid.whole(SCHEDULE, steps)
    assert [*grid.timesteps][::-1] == CASE[f"T{steps}.clip.timesteps"].tolist()
    states = reverse_chain(
        image_denoiser(network, CASE["cond"]),
        CASE[f"T{steps}.clip.x_T"],
        grid=grid,
        eta=0,
        noise=lambda *_: pytest.fail("no noise is drawn"),
        purpose="sample",
    )
    wanted = CASE[f"T{steps}.clip.decode"]
    torch.testing.assert_close(torch.stack(list(states)), wanted, atol=1e-3, rtol=0)


@torch.no_grad()
def test_published_samples(network: Any) -> None:
    images = decode_images(network, CASE["rand_x_T"], CASE["cond"], 5)
    torch.testing.assert_close(images, CASE["rand_decode"], atol=1e-3, rtol=0)
    denoiser = code_denoiser(network)
    states = reverse_chain(
        denoiser,
        CASE["lat_x"][:, :, None, None],
        grid=TimeGrid.whole(denoiser.schedule, 5),
        eta=0,
        noise=lambda *_: pytest.fail("no noise is drawn"),
        purpose="sample",
    )
    chain = torch.stack(list(states))[..., 0, 0]
    torch.testing.assert_close(chain, CASE["lat_chain"], atol=1e-4, rtol=0)
    code = make_codes(network, CASE["lat_x"], 5)
    torch.testing.assert_close(code, CASE["uncond_cond"], atol=1e-4, rtol=0)
    made = decode_images(network, CASE["rand_x_T"], code, 5)
    torch.testing.assert_close(made, CASE["uncond_image"], atol=1e-3, rtol=0)


def test_import_is_strict(tmp_path: Path) -> None:
    checkpoint = torch.load(VECTORS / "last.ckpt", weights_only=True)
    with pytest.raises(ValueError, match="a latent prior needs the statistics of the codes"):
        load_diffae(VECTORS / "last.ckpt", image_size=16)
    state: dict[str, Tensor] = dict(checkpoint["state_dict"])
    del state["ema_model.out.2.bias"]
    state["ema_model.odd"] = torch.zeros(2)
    torch.save({"state_dict": state}, tmp_path / "bad.ckpt")
    with pytest.raises(
        ValueError, match=r"missing: denoiser\.out\.2\.bias; unexpected: denoiser\.odd"
    ):
        load_diffae(tmp_path / "bad.ckpt", VECTORS / "latent.pkl", image_size=16)
    kept = {n: v for n, v in checkpoint["state_dict"].items() if ".latent_net." not in n}
    torch.save({"state_dict": kept}, tmp_path / "plain.ckpt")
    network, has_prior = load_diffae(tmp_path / "plain.ckpt", image_size=16)
    assert not has_prior
    with torch.no_grad():
        torch.testing.assert_close(network.encoder(CASE["x"]), CASE["cond"], atol=1e-4, rtol=0)


def test_both_trainings(tmp_path: Path) -> None:
    """The losses fall; the second leaves the first's networks alone and knows the codes' spread."""
    images = make_images(tmp_path / "images")
    torch.manual_seed(0)
    module = DiffAEModule(16, network=TINY, learning_rate=2e-3, warmup_steps=0, ema_decay=0.9)
    trainer = fit(module, images, tmp_path / "one", 60, check_val_every_n_epoch=30)
    # Noise of variance 1 is what a network that knows nothing leaves.
    assert float(trainer.callback_metrics["val/loss"]) < 0.8
    generator = tmp_path / "one" / "generator"
    first, card = load_generator(generator)
    assert card["latent_prior"] is False
    latent = DiffAELatentModule(str(generator), learning_rate=2e-3, warmup_steps=0, ema_decay=0.9)
    fit(latent, images, tmp_path / "two", 40, check_val_every_n_epoch=5)
    second, card = load_generator(tmp_path / "two" / "generator")
    assert card["latent_prior"] is True
    moved = {n for n, v in second.state_dict().items() if not torch.equal(v, first.state_dict()[n])}
    assert {name.split(".")[0] for name in moved} == {"prior", "code_mean", "code_std"}
    # Of the codes of the training images, half of which are mirrored in training but not here.
    data = DomainImages(str(images), batch_size=4, num_workers=0)
    data.load(16)
    assert data.train_images is not None
    pixels = torch.stack([data.train_images[i]["image"] for i in range(len(data.train_images))])
    reader: Any = first
    with torch.no_grad():
        codes = reader.encoder(to_float(pixels))
    writer: Any = second
    # The last batch of four is dropped if it is not whole.
    torch.testing.assert_close(writer.code_mean, codes.mean(dim=0), rtol=0.5, atol=0.1)
    with torch.no_grad():
        assert latent.pictures(torch.zeros(2, 3, 16, 16), 0).shape == (2, 3, 16, 16)


def test_norm_groups() -> None:
    """Of every norm; with one channel each, no colour would come through the last one."""
    shifts = []
    for groups in (2, 8):
        torch.manual_seed(0)
        network = replace(TINY, norm_groups=groups).build(resolution=16, channels=3)
        norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
        assert len(norms) > 10 and {norm.num_groups for norm in norms} == {groups}
        for layer in network.denoiser.modules():  # So that nothing begins at 0.
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.1)
        x, t, code = torch.randn(1, 3, 16, 16), torch.tensor([900]), torch.zeros(1, 6)
        colour = torch.tensor([1.0, -1.0, 0.5])[None, :, None, None]
        with torch.no_grad():
            gap = network(x + colour, t, code) - network(x, t, code)
        shifts.append(float(gap[..., 4:-4, 4:-4].mean(dim=(2, 3)).abs().max()))
    assert shifts[0] > 5 * shifts[1]


def test_refusals(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_generator(
        tmp_path / "g", DDGANSettings(8, (1,), 1, (), 4, 8, 1).build(resolution=8, channels=3), {}
    )
    with pytest.raises(ValueError, match="must hold a diffusion autoencoder, not a DDGANGenerator"):
        DiffAELatentModule(str(tmp_path / "g"))
    for settings, told in (
        (DiffAESettings(num_channels=48), "channel_mult times num_channels must give multiples"),
        (DiffAESettings(16, (1, 2), norm_groups=12), "of norm_groups 12, or sums below, .* got"),
        (DiffAESettings(num_channels=32), "norm_groups must be below num_channels = 32, got 32"),
        (DiffAESettings(norm_groups=0), "norm_groups must be at least 1"),
        (DiffAESettings(latent_layers=1), "latent_layers must be at least 2"),
        (DiffAESettings(encoder_mult=(1,) * 7), "resolution must be a multiple of 64"),
    ):
        with pytest.raises(ValueError, match=told):
            DiffAEModule(32, network=settings)


def test_prior_begins_as_published() -> None:
    """Layers before an activation with variance 2 / c_in (He et al. 2015)."""
    torch.manual_seed(0)
    layer = PriorLayer(128, 256, 64)
    assert float(layer.linear.weight.detach().var()) == pytest.approx(2 / 128, rel=0.1)
    assert float(layer.cond_layers[1].weight.detach().var()) == pytest.approx(2 / 64, rel=0.1)
