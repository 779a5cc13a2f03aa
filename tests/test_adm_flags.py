"""Flags of guided-diffusion's and improved-diffusion's programs, as users have them at hand."""

import json
from pathlib import Path
from typing import Any

import adm_reference
import pytest
import torch
from torch.testing import assert_close

from cyclelight import load_domain
from cyclelight.cli import main
from cyclelight.domains.adapters.adm import load_adm, save_adm
from cyclelight.domains.adapters.adm_flags import PASSED_OVER, ADMFlags
from cyclelight.networks.adm import ADMUNet
from cyclelight.networks.sn import CovarianceNetwork

SHAPE: dict[str, Any] = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (8,),
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "learn_sigma": True,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
}
GIVEN = ["--flags.image_size", "16", "--flags.num_heads", "4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as improved-diffusion makes it, with weights that all count."""
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if name != "image_size"}
    network = ADMUNet(sample_size=16, **shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("adm") / "model.pt"
    save_adm(network, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("rescale", [True, False])
def test_timesteps_are_fed_as_in_the_training(
    checkpoint: Path, tmp_path: Path, rescale: bool
) -> None:
    """improved-diffusion trains with 4000 steps and feeds t * 1000 / 4000, unless told not to."""
    words = [*GIVEN, "--flags.diffusion_steps", "4000", "--flags.noise_schedule", "cosine"]
    words += ["--flags.rescale_timesteps", str(rescale)]
    assert main(["import", str(checkpoint), "--to", str(tmp_path / "domain"), *words]) == 0
    denoiser: Any = load_domain(tmp_path / "domain").denoiser
    assert denoiser.schedule.timesteps == 4000 and denoiser.schedule.kind == "cosine"
    state = torch.load(checkpoint, weights_only=True)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 401, 3999])
    fed = t * 0.25 if rescale else t
    wanted = adm_reference.forward(state, {**SHAPE, "use_new_attention_order": False}, x, fed, None)
    assert_close(denoiser.network(x, t).sample, wanted, rtol=1e-4, atol=1e-4)
    assert_close(denoiser(x[1:2], 401).eps, wanted[1:2, :3], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_covariance_head_sees_the_same_time() -> None:
    body = ADMUNet(16, 3, 32, (1, 2), 1, (8,), 4, -1, learn_sigma=False, timestep_scale=0.25)
    x, t = torch.zeros(2, 3, 16, 16), torch.tensor([400, 3996])
    around = CovarianceNetwork.around(body)
    plain = ADMUNet(16, 3, 32, (1, 2), 1, (8,), 4, -1, learn_sigma=False)
    plain.load_state_dict(body.state_dict())
    assert torch.equal(around.features(x, t)[1], plain.embed(t // 4, torch.float32))


def test_without_the_flag_it_is_asked_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", str(checkpoint), "--to", str(tmp_path / "domain"), *GIVEN]
    assert main([*words, "--flags.diffusion_steps", "4000"]) == 2
    err = capsys.readouterr().err
    assert "give --flags.rescale_timesteps true" in err and err.count("\n") == 1
    assert not (tmp_path / "domain").exists()
    assert main(words) == 0  # With 1000 of them both are one.


def test_the_scale_goes_out_again(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*GIVEN, "--flags.diffusion_steps", "4000", "--flags.rescale_timesteps", "true"]
    assert main(["import", str(checkpoint), "--to", str(tmp_path / "domain"), *words]) == 0
    assert main(["export", str(tmp_path / "domain"), "--to", str(tmp_path / "out.pt")]) == 0
    assert "--rescale_timesteps True" in capsys.readouterr().out
    scheduler = tmp_path / "domain" / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**config, "num_train_timesteps": 2000}))
    assert main(["export", str(tmp_path / "domain"), "--to", str(tmp_path / "other.pt")]) == 2
    assert "only with 4000 timesteps" in capsys.readouterr().err


def test_every_flag_of_their_scripts_is_taken(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole line of flags as it stands in their README, and all that training and sampling have.

    The names are those of `script_util` and of the scripts' own parsers.
    """
    agreeing = {
        **{"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "num_heads": 4},
        **{"num_heads_upsample": -1, "num_head_channels": -1, "attention_resolutions": "8,2"},
        **{"channel_mult": "1,2", "dropout": 0.1, "class_cond": "False", "learn_sigma": "True"},
        **{"use_scale_shift_norm": "yes", "resblock_updown": 0, "diffusion_steps": 1000},
        **{"use_new_attention_order": "f", "noise_schedule": "linear", "predict_xstart": "False"},
        **{"rescale_timesteps": "True"},
    }
    ignored = dict.fromkeys(sorted(PASSED_OVER), "250")
    words = [
        word
        for name, value in {**agreeing, **ignored}.items()
        for word in (f"--flags.{name}", str(value))
    ]
    assert main(["import", str(checkpoint), "--to", str(tmp_path / "a"), *words]) == 0
    out = capsys.readouterr().out
    assert "Not needed here: --flags.anneal_lr, --flags.batch_size" in out
    joined = [f"{a}={b}" for a, b in zip(words[::2], words[1::2], strict=True)]
    assert main(["import", str(checkpoint), "--to", str(tmp_path / "b"), *joined]) == 0
    network: Any = load_domain(tmp_path / "b").denoiser
    assert network.network.config.dropout == 0.1


@pytest.mark.parametrize(
    ("flag", "value", "read"),
    [
        ("num_channels", "128", "32"),
        ("num_res_blocks", "2", "1"),
        ("channel_mult", "1,2,3,4", "1,2"),
        ("attention_resolutions", "16,8", "8"),
        ("attention_resolutions", "16", "8"),
        ("use_scale_shift_norm", "False", "True"),
        ("resblock_updown", "True", "False"),
        ("learn_sigma", "False", "True"),
        ("class_cond", "True", "False"),
    ],
)
def test_a_flag_that_contradicts_the_tensors_is_an_error(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    value: str,
    read: str,
) -> None:
    words = ["import", str(checkpoint), "--to", str(tmp_path / "domain"), *GIVEN]
    assert main([*words, f"--flags.{flag}", value]) == 2
    err = capsys.readouterr().err
    assert f"--flags.{flag} " in err and f"contradicts the tensors, which say {read}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"image_size": "-16"}, "image_size must be at least 1"),
        ({"num_heads": "0"}, "num_heads must be at least 1"),
        ({"diffusion_steps": "0"}, "diffusion_steps must be at least 1"),
        ({"channel_mult": "a,b"}, "must be numbers with commas"),
        ({"learn_sigma": "perhaps"}, "learn_sigma"),
        ({"large_size": "256"}, "--flags.large_size is not an option"),
    ],
)
def test_wrong_values(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: dict[str, str],
    told: str,
) -> None:
    words = [word for name, value in flags.items() for word in (f"--flags.{name}", value)]
    words = ["import", str(checkpoint), "--to", str(tmp_path / "domain"), *GIVEN, *words]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


def test_a_network_of_clean_images(checkpoint: Path, tmp_path: Path) -> None:
    words = ["import", str(checkpoint), "--to", str(tmp_path / "domain"), *GIVEN]
    assert main([*words, "--flags.predict_xstart", "True"]) == 0
    denoiser: Any = load_domain(tmp_path / "domain").denoiser
    assert denoiser.prediction_type == "sample"


def test_what_takes_a_second_image_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of super-resolution: it imported as a domain of six channels, which did not load."""
    network = ADMUNet(16, 6, 32, (1, 2), 1, (8,), 4, -1, learn_sigma=False)
    save_adm(network, tmp_path / "m.pt")
    assert main(["import", str(tmp_path / "m.pt"), "--to", str(tmp_path / "d"), *GIVEN]) == 2
    assert "takes 6 channels: images have 1 or 3" in capsys.readouterr().err


def test_sizes_by_the_levels(tmp_path: Path) -> None:
    """improved-diffusion's network of CIFAR-10 has 32 pixels."""
    network = ADMUNet(32, 3, 32, (1, 2, 2, 2), 1, (16, 8), 4, -1, learn_sigma=True)
    save_adm(network, tmp_path / "m.pt")
    loaded = load_adm(tmp_path / "m.pt", ADMFlags(num_heads=4))
    assert (loaded.config.sample_size, set(loaded.config.attention_resolutions)) == (32, {16, 8})
