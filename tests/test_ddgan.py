"""DDGAN: the generator, its schedule, its training, its checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run
from safetensors.torch import load_file
from torch import Tensor
from trainings import fit, make_images

from cyclelight import load_domain
from cyclelight.chains.ddgan import generate
from cyclelight.cli import main
from cyclelight.diffusion.ddgan import DDGANSchedule
from cyclelight.diffusion.pixels import to_float
from cyclelight.domains.adapters.ddgan import load_ddgan
from cyclelight.domains.generator_folder import load_generator, save_generator
from cyclelight.modules.ddgan import DDGANModule
from cyclelight.networks.ddgan import DDGANSettings
from cyclelight.networks.discriminator import Discriminator
from cyclelight.networks.fir import halved, stretched

VECTORS = Path(__file__).parent / "vectors" / "ddgan"
CASES = {"biggan_residual": 4, "t2_two_resblocks": 2}
TINY = DDGANSettings(8, (1, 2), 1, (8,), 4, 8, 1)


def vectors(name: str) -> dict[str, Tensor]:
    return load_file(VECTORS / f"{name}.safetensors")


def published(name: str) -> Any:
    return load_ddgan(VECTORS / f"{name}.pt", image_size=16, timesteps=CASES[name])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_published_generator(name: str) -> None:
    network, case = published(name), vectors(name)
    embedded = network.z_transform(case["z"])
    torch.testing.assert_close(embedded, case["z_emb"], atol=1e-4, rtol=0)
    x_0 = network(case["x_t"], case["t"], case["z"])
    torch.testing.assert_close(x_0, case["x_0"], atol=1e-4, rtol=0)
    told = json.loads((VECTORS / "config.json").read_text())[name]
    assert sum(p.numel() for p in network.parameters()) == told["params"]


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_published_chain(name: str) -> None:
    case = vectors(name)
    states = generate(
        published(name),
        DDGANSchedule(CASES[name]),
        case["chain_xT"],
        case["chain_z"],
        case["chain_noise"],
    )
    said, found = zip(*states, strict=True)
    torch.testing.assert_close(torch.stack(said), case["chain_x0"], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack(found), case["chain_x"][1:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_states_stay_in_float32() -> None:
    """Whatever the network computes in, as under autocast."""
    size = 8
    x_T, latents, noise = (
        torch.randn(1, 3, size, size),
        torch.randn(4, 1, 2),
        torch.randn(3, 1, 3, 8, 8),
    )
    half = [*generate(lambda x, t, z: x.bfloat16(), DDGANSchedule(4), x_T, latents, noise)]
    assert all(x.dtype == torch.float32 for pair in half for x in pair)


@pytest.mark.parametrize("name", CASES)
def test_published_schedule(name: str) -> None:
    case, schedule = vectors(name), DDGANSchedule(CASES[name])
    a = schedule.alphas_cumprod
    betas = 1 - a[1:] / a[:-1]
    torch.testing.assert_close(betas, case["coef.betas"].double(), rtol=1e-6, atol=0)
    # Their products are of float32, in which 1 - beta is rounded to 6e-8.
    theirs = case["coef.alphas_cumprod"].double()
    torch.testing.assert_close(a[1:], theirs, rtol=0, atol=6e-8)
    for ours, theirs in zip(
        schedule.posterior_coefficients,
        ("posterior_mean_coef1", "posterior_mean_coef2"),
        strict=False,
    ):
        torch.testing.assert_close(ours, case[f"coef.{theirs}"].double(), rtol=0, atol=2e-6)
    out = schedule.posterior(case["post_x0"], case["post_xt"], case["post_t"], case["post_noise"])
    torch.testing.assert_close(out, case["post_out"], atol=1e-5, rtol=0)
    x_t = schedule.add_noise(case["post_x0"], case["pair_t"], case["pair_noise_xt"])
    x_next = schedule.forward_step(x_t, case["pair_t"], case["pair_noise_step"])
    # At t = 0 their float32 tables are off by what the README tells.
    torch.testing.assert_close(x_t, case["pair_xt"], atol=5e-4, rtol=0)
    torch.testing.assert_close(x_next, case["pair_xtp1"], atol=5e-4, rtol=0)


def test_import_is_strict(tmp_path: Path) -> None:
    state = torch.load(VECTORS / "biggan_residual.pt", weights_only=True)
    del state["module.all_modules.3.Conv_1.bias"]
    state["module.all_modules.99.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "bad.pt")
    told = r"missing: all_modules\.3\.Conv_1\.bias; unexpected: all_modules\.99\.weight"
    with pytest.raises(ValueError, match=told):
        load_ddgan(tmp_path / "bad.pt", image_size=16)
    torch.save({"module.conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not the tensors of a DDGAN generator"):
        load_ddgan(tmp_path / "other.pt", image_size=16)


def test_filter() -> None:
    """Constants stay, a checkerboard vanishes, and what is stretched and halved is smoothed."""
    x = torch.full((1, 2, 8, 8), 0.7, dtype=torch.float64)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(halved(x)[inner], x[..., :4, :4][inner])
    torch.testing.assert_close(stretched(x)[inner], torch.full((1, 2, 14, 14), 0.7).double())
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    torch.testing.assert_close(halved(board[None, None])[inner], torch.zeros(1, 1, 2, 2))


def test_folder_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TINY.build(resolution=16, channels=3)
    save_generator(tmp_path / "generator", network, {"name": "cats"})
    loaded, card = load_generator(tmp_path / "generator")
    assert card == {"name": "cats"}
    given = torch.randn(2, 3, 16, 16), torch.tensor([0, 3]), torch.randn(2, 4)
    torch.testing.assert_close(loaded(*given), network.eval()(*given), rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match=r"generator: .*nowhere does not exist"):
        load_generator(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"it has no generator\.json; did you mean"):
        load_generator(tmp_path)
    shutil.rmtree(tmp_path / "generator" / "network")
    with pytest.raises(ValueError, match=r"it has no network/config\.json"):
        load_generator(tmp_path / "generator")


def test_discriminator_sees_all_that_it_is_given() -> None:
    torch.manual_seed(0)
    judge = Discriminator(3, 8)
    for layer in (judge.mixed, *(block.second for block in judge.blocks)):
        torch.nn.init.normal_(layer.weight, std=0.1)  # They begin at next to nothing.
    x, y, t = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    logits = judge(x, t, y)
    assert logits.shape == (4,)
    for other in (judge(x, t.flip(0), y), judge(y, t, y), judge(x, t, x)):
        assert not torch.allclose(logits, other)


def test_layers_begin_as_published() -> None:
    """Variances of the weights by the rules of the program of DDGAN.

    dense_layer.py there asks for the mean of both fans, but divides by the outgoing one:
    discriminator, `z_transform`, norms; layers.py divides by the mean: all else of NCSN++, its
    attention with a tenth. With PyTorch's own, the latent and the verdict vanish on their way.
    """
    torch.manual_seed(0)
    judge = Discriminator(3, 64)
    generator: Any = DDGANSettings(64, (1, 2), 1, (16,), 64).build(resolution=16, channels=3)
    parts = generator.all_modules
    block, attention = parts[3], parts[4]
    for weight, variance in (
        (judge.embedding[0].weight, 1 / 128),
        (judge.stem.weight, 1 / 64),
        (judge.blocks[2].first.weight, 1 / (9 * 256)),
        (judge.blocks[2].skip.weight, 1 / 256),
        (judge.blocks[2].dense.weight, 1 / 256),
        (parts[0].weight, 2 / (64 + 256)),
        (parts[2].weight, 2 / (9 * (3 + 64))),
        (block.Conv_0.weight, 1 / (9 * 64)),
        (block.Dense_0.weight, 2 / (256 + 64)),
        (block.GroupNorm_1.style.weight, 1 / 128),
        (generator.z_transform[1].weight, 1 / 256),
        (attention.NIN_0.W, 0.1 / 64),
    ):
        assert float(weight.detach().var()) == pytest.approx(variance, rel=0.15)
    for layer in (judge.blocks[2].second, judge.mixed, block.Conv_1, parts[-1]):
        assert float(layer.weight.detach().abs().max()) < 1e-4
    bias = block.GroupNorm_1.style.bias.detach()
    torch.testing.assert_close(bias, torch.tensor([1.0] * 64 + [0.0] * 64))
    biased = [p for name, p in judge.named_parameters() if name.endswith("bias")]
    assert all(not bool(bias.any()) for bias in biased)


def trained(root: Path, name: str, steps: int, **settings: Any) -> DDGANModule:
    torch.manual_seed(0)
    module = DDGANModule(16, network=TINY, discriminator_width=8, seed=1, **settings)
    fit(module, make_images(root / "images"), root / name, steps)
    return module


def test_training(tmp_path: Path) -> None:
    """Both learn; a batch is two steps; the folder holds the average; the same twice."""
    settings: Any = {"ema_decay": 0.0, "warmup_steps": 0, "r1_every": 2}
    first, again = (trained(tmp_path, name, 12, **settings) for name in ("a", "b"))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)
    torch.manual_seed(0)
    untrained = DDGANModule(16, network=TINY, discriminator_width=8, seed=1)
    assert first.global_step == 12
    for part in ("generator", "discriminator"):
        moved = [
            not torch.equal(a, b)
            for a, b in zip(
                getattr(first, part).parameters(),
                getattr(untrained, part).parameters(),
                strict=True,
            )
        ]
        assert any(moved)
    network, card = load_generator(tmp_path / "a" / "generator")
    assert card["steps"] == 12
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, first.generator.state_dict()[name], rtol=0, atol=0)
    real = torch.zeros(3, 3, 16, 16)
    with torch.no_grad():
        made, two = first.pictures(real, 0), first.pictures(real[:2], 1)
    torch.testing.assert_close(two, made[1:], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_each_loss_falls_while_the_other_network_is_at_rest(tmp_path: Path) -> None:
    """Together they need not fall. A judge that knows nothing has 2 log 2, 1.39."""
    torch.manual_seed(0)
    module = DDGANModule(
        16,
        network=TINY,
        discriminator_width=16,
        learning_rate=1e-12,
        discriminator_rate=1e-3,
        r1_weight=0.0,
        warmup_steps=0,
        seed=1,
    )
    images = make_images(tmp_path / "images")
    fit(module, images, tmp_path / "one", 400)
    judging, fooled = losses(module, images)
    assert judging < 0.7
    module.learning_rate, module.discriminator_rate = 1e-3, 1e-12
    fit(module, images, tmp_path / "two", 80)
    assert losses(module, images)[1] < 0.5 * fooled


@torch.no_grad()
def losses(module: DDGANModule, folder: Path) -> tuple[float, float]:
    """(discriminator's, generator's) over many draws of noise: of one batch they jump about."""
    files = [np.array(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    x_0 = to_float(torch.from_numpy(np.stack(files))).repeat(16, 1, 1, 1)
    random = torch.Generator().manual_seed(0)
    t, x_t, x_next = module._pair(x_0, random)
    real = module.discriminator(x_t, t, x_next)
    fake = module.discriminator(module._fake(x_next, t, random), t, x_next)
    by_generator = torch.nn.functional.softplus(-fake).mean()
    by_judge = (
        torch.nn.functional.softplus(-real).mean() + torch.nn.functional.softplus(fake).mean()
    )
    return float(by_judge), float(by_generator)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """They see different images, and end with the weights that both have learned."""
    make_images(tmp_path / "images", 8)
    given = ["--model", "DDGANModule", "--model.resolution", "16"]
    for name, value in {"num_channels": 8, "num_res_blocks": 1, "latent_size": 4}.items():
        given += [f"--model.network.{name}", str(value)]
    given += ["--model.discriminator_width", "8", "--data", "DomainImages"]
    given += ["--data.root", str(tmp_path / "images"), "--data.batch_size", "2"]
    given += ["--trainer.max_steps", "8", "--trainer.accelerator", "cpu"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true"]
    for name, more in (("one", []), ("two", two)):
        words = ["fit", *given, "--output", str(tmp_path / name), *more]
        code, told = run(words, 2 if more else 1)
        assert code == 0, told
    one, both = (
        load_generator(tmp_path / name / "generator")[0].state_dict() for name in ("one", "two")
    )
    assert all(torch.isfinite(value).all() for value in both.values())
    assert any(not torch.equal(one[name], both[name]) for name in one)


def test_rates_follow_the_settings(tmp_path: Path) -> None:
    settings: Any = {"learning_rate": 1e-3, "discriminator_rate": 2e-3, "warmup_steps": 0}
    module = trained(tmp_path, "a", 8, lr_schedule="cosine", **settings)
    optimizers: Any = module.optimizers()
    rates = [group["lr"] for o in optimizers for group in o.optimizer.param_groups]
    # The last batch began at step 6 of 8.
    wanted = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 6 / 8)).item())
    assert rates == pytest.approx([1e-3 * wanted, 2e-3 * wanted])


def test_bad_settings() -> None:
    for settings, told in (
        ({"resolution": 30}, "resolution must be a multiple of 4"),
        ({"r1_every": 0}, "r1_every must be at least 1"),
        ({"discriminator_rate": 0}, "discriminator_rate must be"),
        ({"network": DDGANSettings(attention_resolutions=(7,))}, "attention_resolutions must be"),
        ({"network": DDGANSettings(timesteps=0)}, "timesteps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=told):
            DDGANModule(**settings)  # type: ignore[arg-type]


def test_import_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`lightning import` makes folders of DDGAN's, DiffAE's and SN-DDPM's checkpoints."""
    root = VECTORS.parent
    size = "--flags.image_size"
    words = [str(VECTORS / "t2_two_resblocks.pt"), size, "16", "--generator.timesteps", "2"]
    assert main(["import", *words, "--to", str(tmp_path / "ddgan")]) == 0
    network, card = load_generator(tmp_path / "ddgan")
    assert network.config.timesteps == 2 and card["flags"] == {"timesteps": 2}
    diffae = root / "diffae"
    words = [str(diffae / "last.ckpt"), size, "16", "--generator.codes", str(diffae / "latent.pkl")]
    assert main(["import", *words, "--to", str(tmp_path / "diffae")]) == 0
    assert load_generator(tmp_path / "diffae")[1]["latent_prior"] is True
    words = [str(root / "sn_ddpm" / "ddpm_simple.pt"), size, "8", "--covariance", "npr"]
    assert main(["import", *words, "--to", str(tmp_path / "sn")]) == 0
    domain = load_domain(tmp_path / "sn", variance="learned")
    assert domain.denoiser(torch.randn(1, 3, 8, 8), 5).cov_x_0 is not None
    capsys.readouterr()
    for given, told in (
        (words[:3], "give --covariance sn or --covariance npr"),
        ([str(VECTORS / "biggan_residual.pt")], "give --flags.image_size"),
        ([*words, "--generator.timesteps", "3"], "--generator.timesteps is not for"),
    ):
        assert main(["import", *given, "--to", str(tmp_path / "no")]) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
