"""SN-DDPM and NPR-DDPM: a covariance head, its formulas, its training, its checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY, R, make_run, predict_words
from torch import Tensor, nn
from trainings import fit, make_images

from cyclelight import (
    Domain,
    NoiseSchedule,
    TimeGrid,
    decode,
    encode,
    load_domain,
    save_domain,
    translate,
)
from cyclelight.chains.sample import reverse_chain
from cyclelight.chains.source import source_chain
from cyclelight.cli import main
from cyclelight.diffusion.denoiser import NetworkDenoiser, mean_and_sigma
from cyclelight.diffusion.loss import covariance_loss
from cyclelight.diffusion.pixels import to_float, to_uint8
from cyclelight.diffusion.steps import Step
from cyclelight.domains.adapters.adm_flags import ADMFlags
from cyclelight.domains.adapters.sn_ddpm import load_sn_ddpm
from cyclelight.modules.covariance import CovarianceModule
from cyclelight.modules.domain import DomainModule
from cyclelight.networks import resize
from cyclelight.networks.sn import CovarianceNetwork

VECTORS = Path(__file__).parent / "vectors" / "sn_ddpm"
SCHEDULE = NoiseSchedule.linear()
FLAGS = {
    "ddpm_simple": ADMFlags(image_size=8),
    "iddpm_complex": ADMFlags(image_size=8, num_heads=2),
}


def vectors(name: str) -> dict[str, Tensor]:
    return load_file(VECTORS / f"{name}.safetensors")


class Fixed(nn.Module):
    """A network that says the same whatever it is asked."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = nn.Parameter(out)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.out


@pytest.mark.parametrize("name", FLAGS)
def test_published_networks(name: str) -> None:
    network, case = (
        load_sn_ddpm(VECTORS / f"{name}.pt", FLAGS[name], "sn"),
        vectors(f"{name}_forward"),
    )
    out = network(case["x"], case["t"]).sample
    torch.testing.assert_close(out, case["out"], atol=1e-5, rtol=0)


def test_import_is_strict(tmp_path: Path) -> None:
    state = torch.load(VECTORS / "iddpm_complex.pt", weights_only=True)
    with pytest.raises(ValueError, match=r"give --flags\.image_size"):
        load_sn_ddpm(VECTORS / "iddpm_complex.pt", ADMFlags(), "sn")
    del state["out2.3.bias"]
    torch.save({**state, "out2.9.bias": torch.zeros(3)}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"missing: out2\.3\.bias; unexpected: out2\.9\.bias"):
        load_sn_ddpm(tmp_path / "bad.pt", FLAGS["iddpm_complex"], "sn")
    plain = torch.load(VECTORS / "ddpm_simple.pt", weights_only=True)
    torch.save({**plain, "before_out.norm1.weight": torch.zeros(32)}, tmp_path / "complex.pt")
    with pytest.raises(ValueError, match="complex heads are read of improved-diffusion's"):
        load_sn_ddpm(tmp_path / "complex.pt", FLAGS["ddpm_simple"], "sn")


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("kind", "eta"), [("ddpm", 1.0), ("ddim0", 0.0), ("ddim05", 0.5)])
@pytest.mark.parametrize(("head", "typ"), [("sn", "eps_eps2"), ("npr", "eps_epsc")])
def test_published_formulas(head: Any, typ: str, kind: str, eta: float, clip: bool) -> None:
    case = vectors("formulas")
    second = case["eps2_pred" if head == "sn" else "epsc_pred"]
    network = Fixed(torch.cat([case["eps_pred"], second], dim=1))
    denoiser = NetworkDenoiser(
        network, SCHEDULE, variance="learned", clip_x_0=clip, second_head=head, fold=eta == 1
    )
    word = "clip" if clip else "noclip"
    for i, (t, s) in enumerate(zip(case["grid_t"].tolist(), case["grid_s"].tolist(), strict=True)):
        if s == 0:  # The clean end: the mean is taken there.
            continue
        step = Step.between(SCHEDULE, t - 1, s - 1, eta)
        prediction = denoiser(case["x_t"], t - 1)
        mean, sigma = mean_and_sigma(step, case["x_t"], prediction)
        torch.testing.assert_close(mean, case[f"mean.{kind}.{word}"][i], rtol=2e-4, atol=1e-5)
        wanted = case[f"{typ}.{kind}.{word}.sigma2"][i].clamp(min=0)
        assert isinstance(sigma, Tensor)
        torch.testing.assert_close(sigma.square(), wanted, rtol=2e-4, atol=1e-7)
        if kind == "ddpm":
            cov = case[f"{typ}.ddpm.{word}.cov_x0"][i]
            assert prediction.cov_x_0 is not None
            scale = float(cov.abs().max())
            torch.testing.assert_close(prediction.cov_x_0, cov, rtol=2e-4, atol=2e-4 * scale)


def published(model: str, head: Any, *, fold: bool = True, pixels: float | None = 2.0) -> Any:
    return NetworkDenoiser(
        load_sn_ddpm(VECTORS / f"{model}.pt", FLAGS[model], head),
        SCHEDULE,
        variance="learned",
        clip_x_0=True,
        second_head=head,
        fold=fold,
        last_pixels=pixels,
    )


@pytest.mark.parametrize(
    ("name", "model", "head", "eta", "pixels"),
    [
        ("sn_ddpm", "ddpm_simple", "sn", 1.0, 2.0),
        ("npr_ddpm", "ddpm_simple", "npr", 1.0, 2.0),
        ("sn_ddim", "ddpm_simple", "sn", 0.0, 1.0),
        ("sn_ddpm_noclip", "ddpm_simple", "sn", 1.0, None),
        ("sn_iddpm", "iddpm_complex", "sn", 1.0, 2.0),
    ],
)
@torch.no_grad()
def test_published_samplers(
    name: str, model: str, head: str, eta: float, pixels: float | None
) -> None:
    case = vectors(f"sampler_{name}")
    denoiser = published(model, head, fold=eta == 1, pixels=pixels)
    grid = TimeGrid(tuple(t - 1 for t in case["timesteps"].tolist()[:0:-1]))
    for i, (t, s) in enumerate(grid.pairs):
        step = Step.between(SCHEDULE, t, s, eta)
        mean, _ = mean_and_sigma(step, case["x_t"][i], denoiser(case["x_t"][i], t))
        torch.testing.assert_close(mean, case["mean"][i], atol=1e-4, rtol=0)
    noises = iter(case["noise"])
    states = reverse_chain(
        denoiser,
        case["x_T"],
        grid=grid,
        eta=eta,
        noise=lambda purpose, t, like: next(noises),
        purpose="sample",
    )
    found = list(states)
    torch.testing.assert_close(torch.stack(found[:-1]), case["x_t"][1:], atol=5e-4, rtol=0)
    torch.testing.assert_close(found[-1], case["x_0"], atol=5e-4, rtol=0)


@pytest.mark.parametrize(("name", "pixels"), [("sn_ddpm", None), ("sn_ddpm_clip", 2.0)])
@torch.no_grad()
def test_published_encoder(name: str, pixels: float | None) -> None:
    case = vectors(f"encoder_{name}")
    denoiser, noises = published("ddpm_simple", "sn", pixels=pixels), iter(case["noise_encode"])
    # Its 0-based steps are 999, 749, ...: those of the samplers.
    timesteps = vectors("sampler_sn_ddpm")["timesteps"].tolist()[:0:-1]
    chain = source_chain(
        denoiser,
        case["x_0"],
        grid=TimeGrid(tuple(t - 1 for t in timesteps)),
        eta=1.0,
        noise=lambda purpose, t, like: next(noises),
    )
    steps = list(chain)
    z = case["z"].transpose(0, 1)
    ours = torch.stack([steps[0].x_t, *(step.noise for step in steps)])[: len(z)]
    torch.testing.assert_close(ours, z, rtol=0, atol=1e-4 * float(z.abs().max()))


def test_published_losses() -> None:
    case = vectors("loss")
    for head, name in (("sn", "sn.ddm"), ("npr", "npr.ddm")):
        network = Fixed(torch.cat([case["eps_pred"], case["head_pred"]], dim=1))
        denoiser = NetworkDenoiser(network, SCHEDULE, second_head=head)  # type: ignore[arg-type]
        loss = covariance_loss(denoiser, case["x_0"], case["n"] - 1, case["eps"])
        # Theirs are sums over pixels.
        torch.testing.assert_close(loss * case["x_0"][0].numel(), case[name], rtol=1e-5, atol=0)
        loss.sum().backward()
        assert network.out.grad is not None
        assert not network.out.grad[:, :3].any(), "the body's prediction learns from nothing"


class Exact(nn.Module):
    """What a perfect network says of pixels that are N(0, std^2) each: E[eps], E[eps^2]."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std, self.unused = std, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        a = SCHEDULE.alpha_bars(t).to(x_t)
        total = a * self.std**2 + 1 - a
        eps = (1 - a).sqrt() * x_t / total
        # Var[eps | x_t] of jointly Gaussian eps and x_t.
        return torch.cat([eps, eps.square() + a * self.std**2 / total], dim=1)


def test_gaussian_covariance_and_samples() -> None:
    """With the optimal variance, few steps already give the right spread; without, too little."""
    std, denoiser = 0.5, NetworkDenoiser(Exact(0.5), SCHEDULE, variance="learned", second_head="sn")
    x_t = torch.linspace(-3, 3, 12, dtype=torch.float64).view(1, 3, 2, 2)
    for t in (3, 400, 990):
        a = SCHEDULE.alpha_bar(t)
        cov = denoiser(x_t, t).cov_x_0
        # Of x_0 given x_t: 1 / (1 / std^2 + a / (1 - a)).
        wanted = torch.full_like(x_t, 1 / (1 / std**2 + a / (1 - a)))
        torch.testing.assert_close(cov, wanted, rtol=1e-9, atol=1e-12)

    def spread(variance: Any) -> float:
        chosen = NetworkDenoiser(Exact(std), SCHEDULE, variance=variance, second_head="sn")
        generator = torch.Generator().manual_seed(0)
        x_T = torch.randn(64, 3, 16, 16, generator=generator)
        states = reverse_chain(
            chosen,
            x_T,
            grid=TimeGrid.whole(SCHEDULE, 4),
            eta=1.0,
            noise=lambda purpose, t, like: torch.randn(like.shape, generator=generator),
            purpose="sample",
        )
        return float(list(states)[-2].std())  # x_0 plus the noise of level 0, 0.01

    # 64 * 768 numbers: the standard error of their spread is 0.0016.
    assert abs(spread("learned") - (0.9999 * std**2 + 1e-4) ** 0.5) < 0.006
    assert spread("fixed") < 0.9 * std


def tiny_domain(folder: Path) -> Path:
    torch.manual_seed(0)
    unet = TINY.build(resolution=R, channels=3)
    return save_domain(folder, unet, SCHEDULE, card={"name": "cat"})


@pytest.mark.parametrize("head", ["simple", "complex"])
def test_folder_round_trip(tmp_path: Path, head: Any) -> None:
    """A domain with a head is a domain: it loads, its variance is used, its body is the same."""
    plain = load_domain(tiny_domain(tmp_path / "plain"))
    assert isinstance(plain.denoiser, NetworkDenoiser)
    body: Any = plain.denoiser.network
    network = CovarianceNetwork.around(body, "npr", head)
    save_domain(tmp_path / "head", network, SCHEDULE, card={"name": "cat"})
    loaded = load_domain(tmp_path / "head", variance="learned")
    x, t = torch.randn(2, 3, R, R), torch.tensor([3, 800])
    prediction, there = loaded.denoiser(x, t), plain.denoiser(x, t)
    torch.testing.assert_close(prediction.eps, there.eps, rtol=0, atol=0)
    assert isinstance(loaded.denoiser, NetworkDenoiser)
    second = loaded.denoiser.network(x, t).sample[:, 3:]
    a = SCHEDULE.alpha_bars(t).to(x)
    torch.testing.assert_close(prediction.cov_x_0, (1 - a) / a * second)
    fixed = load_domain(tmp_path / "head").denoiser(x, t)
    assert fixed.cov_x_0 is None
    resize(network, 2 * R)
    assert CovarianceNetwork.from_config(network.config).trunk.config.sample_size == 2 * R


def test_encode_and_decode_use_it(tmp_path: Path) -> None:
    tiny_domain(tmp_path / "plain")
    plain = load_domain(tmp_path / "plain")
    assert isinstance(plain.denoiser, NetworkDenoiser)
    body: Any = plain.denoiser.network
    save_domain(tmp_path / "head", CovarianceNetwork.around(body), SCHEDULE, card={})
    domain = load_domain(tmp_path / "head", variance="learned", clip_x_0=True)
    for one in (domain, plain):
        one.to(dtype=torch.float64)
    images = torch.rand(2, 3, R, R, dtype=torch.float64) * 2 - 1
    code, other = (encode(d, images, steps=6, eta=1.0) for d in (domain, plain))
    assert not torch.allclose(code.noises[0], other.noises[0])
    torch.testing.assert_close(decode(domain, code), images, atol=1e-9, rtol=0)
    same = translate(domain, domain, images, steps=6, eta=1.0, cleanup=0)
    torch.testing.assert_close(same, images, atol=1e-9, rtol=0)
    moved, fixed = (
        translate(d, plain, images, steps=6, eta=1.0, cleanup=0) for d in (domain, plain)
    )
    assert not torch.allclose(moved, fixed, atol=1e-2)


def test_codes_are_finite_where_a_head_says_that_nothing_is_open() -> None:
    """There a code has the residual itself, and a translation leaves it as it is."""

    class Split(Exact):
        """As a perfect network, but of the left half it is too sure."""

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            out = super().forward(x_t, t)
            out[:, 3:, :, : x_t.shape[-1] // 2] = -1e9
            return out

    sure, right = (
        Domain(NetworkDenoiser(kind(0.5), SCHEDULE, variance="learned", second_head="sn"), 4)
        for kind in (Split, Exact)
    )
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 2 - 1
    code = encode(sure, images, steps=6, eta=1.0)
    assert code.noises.isfinite().all() and code.noises[..., :2].abs().max() < 3
    torch.testing.assert_close(decode(sure, code), images, atol=1e-9, rtol=0)
    settings: Any = {"steps": 6, "eta": 1.0, "cleanup": 0}
    torch.testing.assert_close(translate(sure, sure, images, **settings), images)
    # Both have the same means, so that nothing but residuals could differ.
    moved = translate(sure, right, images, **settings)
    torch.testing.assert_close(moved[..., 2:], images[..., 2:], atol=1e-9, rtol=0)
    torch.testing.assert_close(moved[..., :2], images[..., :2], atol=1e-9, rtol=0)


def test_head_learns_the_covariance() -> None:
    """Trained on Gaussian pixels, the head comes to the analytic E[eps^2 | x_t]."""
    torch.manual_seed(0)
    std, t = 0.5, 300
    a = SCHEDULE.alpha_bar(t)
    head = nn.Conv2d(3, 3, 1)

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
            eps = (1 - a) ** 0.5 * x_t / (a * std**2 + 1 - a)
            # E[eps^2] is a square of x_t and a constant.
            return torch.cat([eps, self.head(x_t.square())], dim=1)

    denoiser = NetworkDenoiser(Body(), SCHEDULE, second_head="sn", variance="learned")
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    generator = torch.Generator().manual_seed(0)
    for step in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 600)
        x_0, noise = (torch.randn(64, 3, 8, 8, generator=generator) for _ in range(2))
        loss = covariance_loss(denoiser, std * x_0, torch.full((64,), t), noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x_t = torch.randn(256, 3, 8, 8, generator=generator) * (a * std**2 + 1 - a) ** 0.5
    with torch.no_grad():
        cov = denoiser(x_t, t).cov_x_0
    assert cov is not None
    wanted = 1 / (1 / std**2 + a / (1 - a))
    assert abs(float(cov.mean()) / wanted - 1) < 0.05
    assert float((cov / wanted - 1).abs().median()) < 0.1


def test_module_refuses(tmp_path: Path) -> None:
    tiny_domain(tmp_path / "plain")
    module = CovarianceModule(str(tmp_path / "plain"))
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("denoiser.network.out2.") for name in trained)
    network: Any = module.trained_network
    save_domain(tmp_path / "head", network, SCHEDULE, card={})
    with pytest.raises(ValueError, match="has a learned variance already"):
        CovarianceModule(str(tmp_path / "head"))
    with pytest.raises(ValueError, match="start from the domain that the head was put on"):
        DomainModule(resolution=R, init_from=str(tmp_path / "head"))
    with pytest.raises(ValueError, match="covariance must be one of sn, npr"):
        CovarianceModule(str(tmp_path / "plain"), covariance="both")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
def test_training(tmp_path: Path) -> None:
    """The head learns, the body does not, and the folder holds both."""
    plain = load_domain(tiny_domain(tmp_path / "plain"))
    module = CovarianceModule(
        str(tmp_path / "plain"), learning_rate=1e-2, warmup_steps=0, ema_decay=0.9, seed=1
    )
    images = make_images(tmp_path / "images")
    trainer = fit(module, images, tmp_path / "fit", 100, check_val_every_n_epoch=50)
    # eps^2 has variance 2: the error of a head that knows but its mean; untrained, 3 and more.
    assert float(trainer.callback_metrics["val/loss"]) < 2.6
    learned = load_domain(tmp_path / "fit" / "domain", variance="learned")
    x, t = torch.randn(2, 3, R, R), torch.tensor([3, 800])
    with torch.no_grad():
        torch.testing.assert_close(learned.denoiser(x, t).eps, plain.denoiser(x, t).eps)
    assert learned.card["covariance"] == "sn"
    assert learned.card["body"] == {"name": "cat"}


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """Cats and dogs with covariance heads, and two sources."""
    make_run(tmp_path, {"sources": ["a.png", "b.png"]})
    for name in ("cat", "dog"):
        body: Any = load_domain(tmp_path / name).denoiser.network
        torch.manual_seed(7)
        network = CovarianceNetwork.around(body, "npr")
        torch.nn.init.normal_(network.out2[-1].weight, std=0.1)
        save_domain(tmp_path / f"{name}_head", network, SCHEDULE, card={"name": name})
    return tmp_path


def test_predict_takes_them(heads: Path) -> None:
    """As `translate` does with domains that were loaded so."""
    more = ("--data.reference", "null", "--model.variance", "learned")
    ends = ("--model.source", heads / "cat_head", "--model.target", heads / "dog_head")
    assert main(predict_words(heads, heads / "out", *more, *ends)) == 0
    pair = [load_domain(heads / f"{name}_head", variance="learned") for name in ("cat", "dog")]
    fixed = [load_domain(heads / f"{name}_head") for name in ("cat", "dog")]
    for name in ("a.png", "b.png"):
        x = to_float(torch.from_numpy(np.array(Image.open(heads / "sources" / name)))[None])
        made, plain = (
            to_uint8(translate(*each, x, keys=[name], steps=4))[0] for each in (pair, fixed)
        )
        got = torch.from_numpy(np.array(Image.open(heads / "out" / "images" / name)))
        assert (got.int() - made.int()).abs().max() <= 1
        assert (got.int() - plain.int()).abs().max() > 8
    assert "variance: learned" in (heads / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.source", "cat"), "variance: source cat has learned none; CovarianceModule"),
        (("--model.method", "DDIB"), "variance: DDIB takes no learned one"),
        (
            ("--model.source", "range", "--model.method.eta", "0.5"),
            "variance: the range that source range has learned goes with eta 1, got 0.5",
        ),
        (("--model.variance", "both"), "variance"),
    ],
)
def test_what_predict_refuses_of_them(
    heads: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    """In one line, and nothing is written."""
    monkeypatch.chdir(heads)
    ranged = replace(TINY, learned_variance=True).build(resolution=R, channels=3)
    save_domain("range", ranged, SCHEDULE, card={"name": "range"})
    learned = ("--model.source", "cat_head", "--model.target", "dog_head")
    learned += ("--model.variance", "learned")
    assert main(predict_words(heads, heads / "out", *learned, *words)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (heads / "out").exists()
