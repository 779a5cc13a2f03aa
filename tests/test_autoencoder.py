"""Latent-space domains: pixels cross the border once each way, and the chain lies in between."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, LDMPipeline, VQModel
from oracles import SCHEDULE, Gaussian, Orthogonal, tiny_autoencoder
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight import Autoencoder, Domain, LatentCode
from cyclelight.networks.unet import UNetSettings

UNET = UNetSettings((8, 16), 1, (), head_channels=8, norm_groups=8)


def images(count: int = 2, resolution: int = 8) -> Tensor:
    return torch.rand(count, 3, resolution, resolution, dtype=torch.float64) * 2 - 1


def latent_folder(folder: Path, autoencoder: Autoencoder, seed: int = 0, **settings: Any) -> Path:
    """A domain folder of 16 pixels with a random network on 4 x 8 x 8."""
    torch.manual_seed(seed)
    unet = UNET.build(resolution=8, channels=4)
    card = {"name": folder.name}
    return cyclelight.save_domain(
        folder, unet, SCHEDULE, card=card, autoencoder=autoencoder, **settings
    )


class Turned:
    """Noise of one space, as the other space sees it: `to` of what `draw` gives for its shape."""

    def __init__(self, noise: Any, like: Tensor, to: Callable[[Tensor], Tensor]) -> None:
        self.noise, self.like, self.to = noise, like, to

    def __call__(self, purpose: str, timestep: int, like: Tensor) -> Tensor:
        return self.to(self.noise(purpose, timestep, self.like))


def orthogonal_pair() -> tuple[list[Domain], list[Domain], Autoencoder]:
    """Two Gaussian domains in pixels, and the same two seen through an orthogonal map.

    The map A takes N(m, s^2 I) to N(A m, s^2 I): the exact denoiser keeps its form with mean A m.
    """
    autoencoder = Autoencoder(Orthogonal())
    pixel, latent = [], []
    for name, mean, std in (("source", 0.4, 0.5), ("target", -0.3, 0.2)):
        image = torch.full((1, 3, 8, 8), mean, dtype=torch.float64)
        pixel.append(Domain(Gaussian(mean, std), 8, name=name))
        turned = Gaussian(autoencoder.encode(image), std)  # type: ignore[arg-type]
        latent.append(Domain(turned, 8, name=name, autoencoder=autoencoder))
    return pixel, latent, autoencoder


def test_through_an_orthogonal_map_every_function_is_as_in_pixels() -> None:
    pixel, latent, autoencoder = orthogonal_pair()
    x = images()
    noise = cyclelight.KeyedNoise(3, ["a", "b"])
    turned = Turned(noise, x, autoencoder.encode)
    settings = {"steps": 10, "eta": 0.7, "strength": 0.8, "cleanup": 300}
    expected = cyclelight.translate(*pixel, x, noise=noise, **settings)
    assert (expected - x).abs().max() > 0.3
    assert_close(cyclelight.translate(*latent, x, noise=turned, **settings), expected)

    code = cyclelight.encode(latent[0], x, steps=10, eta=0.7, noise=turned)
    assert code.x_T.shape == (2, 12, 4, 4)
    in_pixels = cyclelight.encode(pixel[0], x, steps=10, eta=0.7, noise=noise)
    assert_close(code.x_T, autoencoder.encode(in_pixels.x_T))
    decoded = cyclelight.decode(pixel[1], in_pixels)
    assert_close(cyclelight.decode(latent[1], code), decoded)

    x_T = cyclelight.invert(pixel[0], x, steps=10)
    assert_close(cyclelight.invert(latent[0], x, steps=10), autoencoder.encode(x_T))
    back = cyclelight.sample(pixel[0], x_T=x_T, steps=10, eta=0.0)
    latents = autoencoder.encode(x_T)
    assert_close(cyclelight.sample(latent[0], x_T=latents, steps=10, eta=0.0), back)


def test_samples_have_the_moments_of_the_images() -> None:
    """Latents are scaled to N(A m, (f s)^2) by the factor f; decoding takes it out again."""
    factor, mean, std = 2.0, 0.3, 0.25
    autoencoder = Autoencoder(Orthogonal(scaling_factor=factor))
    centre = autoencoder.encode(torch.full((1, 3, 8, 8), mean, dtype=torch.float64)).float()
    denoiser = Gaussian(centre, factor * std)  # type: ignore[arg-type]
    domain = Domain(denoiser, 8, autoencoder=autoencoder.to(torch.float32))
    drawn = cyclelight.sample(domain, 200, steps=1000, eta=0.0)
    assert drawn.shape == (200, 3, 8, 8)
    assert_close(drawn.mean(), torch.tensor(mean), rtol=0, atol=0.01)
    assert_close(drawn.std(), torch.tensor(std), rtol=0, atol=0.01)


def test_equal_networks_give_the_round_trip_bit_for_bit(tmp_path: Path) -> None:
    folder = latent_folder(tmp_path / "cat", tiny_autoencoder())
    domain, same = cyclelight.load_domain(folder), cyclelight.load_domain(folder)
    x = images(2, 16).float()
    round_trip = domain.to_images(domain.to_states(x))
    assert (round_trip - x).abs().max() > 0.1
    settings: dict[str, Any] = {"steps": 5, "eta": 0.5}
    assert torch.equal(cyclelight.translate(domain, same, x, cleanup=0, **settings), round_trip)
    code = cyclelight.encode(domain, x, **settings)
    assert_close(cyclelight.decode(same, code), round_trip, rtol=0, atol=1e-3)


def test_latents_are_the_scaled_mean_of_the_posterior() -> None:
    autoencoder, x = tiny_autoencoder(scaling_factor=2.5), images(2, 16).float()
    posterior = autoencoder.network.encode(x).latent_dist
    assert torch.equal(autoencoder.encode(x), posterior.mean * 2.5)
    assert torch.equal(autoencoder.encode(x), autoencoder.encode(x))
    latents = torch.randn(2, 4, 8, 8)
    assert torch.equal(
        autoencoder.decode(latents), autoencoder.network.decode(latents / 2.5).sample
    )
    double = autoencoder.to(torch.float64).encode(x)
    assert double.dtype == torch.float32
    assert_close(double, posterior.mean * 2.5)


def test_a_domain_folder_is_what_was_saved_and_diffusers_reads_it(tmp_path: Path) -> None:
    autoencoder = tiny_autoencoder()
    folder = latent_folder(tmp_path / "cat", autoencoder, dtype=torch.float16)
    domain = cyclelight.load_domain(folder)
    assert domain.autoencoder is not None
    assert domain.autoencoder.card == {"resolution": 16}
    assert domain.autoencoder.fingerprint == autoencoder.fingerprint
    assert (domain.resolution, domain.channels, domain.shape) == (16, 3, (4, 8, 8))
    x = images(2, 16).float()
    assert torch.equal(domain.to_states(x), autoencoder.encode(x))
    theirs = AutoencoderKL.from_pretrained(folder, subfolder="vae", low_cpu_mem_usage=False)
    theirs.requires_grad_(False)  # or attention takes another kernel, which rounds otherwise
    with torch.no_grad():
        latents = theirs.encode(x).latent_dist.mode() * theirs.config.scaling_factor
        assert torch.equal(domain.to_states(x), latents)
    # Latents have no range: neither our chain nor diffusers' may clip them.
    pipeline = DDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    assert not pipeline.scheduler.config.clip_sample
    again = latent_folder(tmp_path / "again", domain.autoencoder)
    for name in ("config.json", "autoencoder.json", "diffusion_pytorch_model.safetensors"):
        assert (again / "vae" / name).read_bytes() == (folder / "vae" / name).read_bytes()
    meta = cyclelight.load_domain(folder, device="meta")
    assert (meta.space, meta.shape) == (domain.space, domain.shape)


def test_an_ldm_folder_of_diffusers_samples_as_diffusers(tmp_path: Path) -> None:
    """With a vector-quantised autoencoder, under the name that diffusers gives it."""
    torch.manual_seed(0)
    unet = UNET.build(resolution=8, channels=4)
    vqvae = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        vq_embed_dim=4,
        num_vq_embeddings=16,
        norm_num_groups=8,
        scaling_factor=0.5,
    ).eval()
    scheduler = cyclelight.NoiseSchedule.linear().to_diffusers()
    ddim = DDIMScheduler(**scheduler, clip_sample=False, set_alpha_to_one=True, steps_offset=0)
    LDMPipeline(vqvae, unet, ddim).save_pretrained(tmp_path / "ldm")
    domain = cyclelight.load_domain(tmp_path / "ldm")
    assert (domain.resolution, domain.shape) == (16, (4, 8, 8))
    x_T = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = cyclelight.sample(domain, x_T=x_T, steps=10, eta=0.0)
    pipeline = LDMPipeline.from_pretrained(tmp_path / "ldm", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        generator=torch.Generator().manual_seed(1), num_inference_steps=10, output_type="np"
    ).images
    shown = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert_close(shown, torch.as_tensor(theirs), rtol=0, atol=1e-4)


def test_a_stored_code_remembers_its_space(tmp_path: Path) -> None:
    _, (source, target), _ = orthogonal_pair()
    code = cyclelight.encode(source, images(), steps=5)
    code.save(tmp_path / "code.safetensors")
    loaded = LatentCode.load(tmp_path / "code.safetensors")
    assert loaded.space == source.space
    assert torch.equal(cyclelight.decode(target, loaded), cyclelight.decode(target, code))
    other = Domain(target.denoiser, 8, autoencoder=Autoencoder(Orthogonal(seed=1)))
    with pytest.raises(ValueError, match="they differ in space: latents of autoencoder"):
        cyclelight.decode(other, code)


def test_domains_of_different_spaces_are_not_paired(tmp_path: Path) -> None:
    cat = cyclelight.load_domain(latent_folder(tmp_path / "cat", tiny_autoencoder()))
    dog = cyclelight.load_domain(latent_folder(tmp_path / "dog", tiny_autoencoder(seed=1)))
    unet = UNET.build(resolution=16, channels=3)
    wild = cyclelight.save_domain(tmp_path / "wild", unet, SCHEDULE, card={})
    factor = latent_folder(tmp_path / "factor", tiny_autoencoder(scaling_factor=2.0))
    for target in (dog, cyclelight.load_domain(wild), cyclelight.load_domain(factor)):
        with pytest.raises(ValueError, match="they differ in space: latents of ") as caught:
            cyclelight.translate(cat, target, torch.zeros(1, 3, 16, 16))
        assert f"and {target.space}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_wrong_shapes_and_clipping_are_refused(tmp_path: Path) -> None:
    folder = latent_folder(tmp_path / "cat", tiny_autoencoder())
    domain = cyclelight.load_domain(folder)
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, 16, 16\)"):
        cyclelight.encode(domain, torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"x_T must have shape \(B, 4, 8, 8\)"):
        cyclelight.sample(domain, x_T=torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="clip_x_0 needs pixels"):
        cyclelight.load_domain(folder, clip_x_0=True)
    with pytest.raises(ValueError, match="latents_mean is not supported"):
        network = tiny_autoencoder().network
        network.register_to_config(latents_mean=[0.1])
        Autoencoder(network)


def test_wrong_autoencoder_folders_are_refused(tmp_path: Path) -> None:
    def refused(match: str, path: Path) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
            cyclelight.load_autoencoder(path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("autoencoder: ")

    refused("does not exist", tmp_path / "nothing")
    refused("is not an autoencoder folder: no config.json$", tmp_path)
    cat = latent_folder(tmp_path / "cat", tiny_autoencoder())
    refused("did you mean .*vae", cat)
    refused("holds a UNet2DModel, not one of AutoencoderKL, VQModel", cat / "unet")
    weights = cat / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("cannot be read", cat / "vae")
    with pytest.raises(ValueError, match=r"domain: .*vae.* cannot be read"):
        cyclelight.load_domain(cat)
    # As many latent channels as the network has.
    torch.manual_seed(0)
    unet = UNET.build(resolution=8, channels=3)
    wrong = cyclelight.save_domain(
        tmp_path / "wrong", unet, SCHEDULE, card={}, autoencoder=tiny_autoencoder()
    )
    with pytest.raises(ValueError, match=r"3 channels, the latents of its autoencoder 4"):
        cyclelight.load_domain(wrong)
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ValueError, match="is not an autoencoder folder; it is left as it is"):
        cyclelight.save_autoencoder(tmp_path / "thesis", tiny_autoencoder())


def test_float16_is_not_chosen_for_it() -> None:
    """In which published autoencoders overflow; bfloat16 is, where a trainer says so."""
    autoencoder, x = tiny_autoencoder(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        exact = autoencoder.decode(autoencoder.encode(x))
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(autoencoder.decode(autoencoder.encode(x)), exact)
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(autoencoder.decode(autoencoder.encode(x)), exact)
