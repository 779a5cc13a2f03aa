"""Several targets share one encoding; each gets what it would get alone, to the last bit."""

import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import TINY, R, make_run, predict_words
from torch import Tensor

import cyclelight
from cyclelight.cli import main
from cyclelight.diffusion.denoiser import Denoiser, Prediction
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.domain import Domain
from cyclelight.domains.folder import load_domain, save_domain
from cyclelight.methods.base import Method
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.ddcm import DDCM
from cyclelight.methods.ddib import DDIB
from cyclelight.methods.edit_friendly import EditFriendly
from cyclelight.methods.flowedit import FlowEdit
from cyclelight.methods.ilvr import ILVR
from cyclelight.methods.sdedit import SDEdit
from cyclelight.modules.translation import TranslationModule

# Lightning 2.6 with torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

METHODS: list[Method] = [
    CycleDiffusion(steps=12, cleanup=300),
    CycleDiffusion(steps=6, eta=(1.0, 0.0), last_residual="drop", cleanup=0),
    CycleDiffusion(steps=6, parallel=6),
    CycleDiffusion(steps=6, draw="one"),
    EditFriendly(steps=6),
    DDCM(steps=6),
    FlowEdit(steps=6, n_avg=2, n_min=2),
    DDIB(steps=5),
    DDIB(steps=5, inversion="released"),
    SDEdit(steps=6),
    ILVR(steps=6, range_t=2),
]


NETWORK = """
import torch

class Pixels(torch.nn.Module):
    dim = 768
    def forward(self, images):
        return torch.tanh(images.flatten(1) / 255.0)
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, two targets, seven images, and real ones."""
    root = tmp_path_factory.mktemp("targets")
    names = [f"sub/{index}.png" if index % 3 == 2 else f"{index}.png" for index in range(7)]
    make_run(root, {"sources": names, "real": names[:4], "real_wild": names[:3]})
    save(root / "wild", 2)
    (root / "pixels_of_targets.py").write_text(NETWORK)
    sys.path.insert(0, str(root))
    return root


def save(folder: Path, seed: int, side: int = R, name: str | None = None, **schedule: Any) -> None:
    torch.manual_seed(seed)
    card = {"name": name or folder.name}
    unet = TINY.build(resolution=side, channels=3)
    save_domain(folder, unet, NoiseSchedule(**schedule), card=card)


class Counted:
    """A denoiser, and with how many states it was called; `alive` is what it gave and is held."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.schedule, self.states = denoiser, denoiser.schedule, 0
        self._given: list[Callable[[], Tensor | None]] = []

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        self.states += len(x_t)
        prediction = self.denoiser(x_t, t)
        self._given.append(weakref.ref(prediction.eps))
        return prediction

    @property
    def alive(self) -> int:
        return sum(given() is not None for given in self._given)


def counted(folder: Path) -> tuple[Domain, Counted]:
    domain = load_domain(folder)
    denoiser = Counted(domain.denoiser)
    return Domain(denoiser, domain.resolution, name=domain.name), denoiser


CASES = [(m, masked) for m in METHODS for masked in (False, True) if m.masks or not masked]


@pytest.mark.parametrize(("method", "masked"), CASES)
def test_each_target_gets_what_it_gets_alone(here: Path, method: Method, masked: bool) -> None:
    images = torch.rand(3, 3, R, R, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(R, R, dtype=torch.bool)
    mask[4:12, 4:12] = True
    source, calls = counted(here / "cat")
    targets = [load_domain(here / name) for name in ("dog", "wild", "cat")]
    draws: Counter[tuple[str, int]] = Counter()
    keyed = KeyedNoise(3, ["a", "b", "c"])

    def noise(purpose: str, timestep: int, like: Tensor) -> Tensor:
        draws[purpose, timestep] += 1
        return keyed(purpose, timestep, like)

    def run(target: Domain | list[Domain]) -> Tensor:
        calls.states = 0
        draws.clear()
        shown = mask if masked else None
        return cyclelight.translate(source, target, images, method=method, noise=noise, mask=shown)

    together = run(targets)
    states, drawn = calls.states, dict(draws)
    assert together.shape == (3, 3, 3, R, R)
    for made, target in zip(together, targets, strict=True):
        alone = run(target)
        assert torch.equal(made, alone)
        # The source is called, and noise is drawn, as often as for one target.
        assert calls.states == states
        assert dict(draws) == drawn
    assert not torch.equal(together[0], together[1])
    if "source" in method.needs:
        assert states > 0


@pytest.mark.parametrize("steps", [10, 40])
def test_nothing_is_stored_of_the_encoding(here: Path, steps: int) -> None:
    images, held = torch.zeros(2, 3, R, R), []
    source, calls = counted(here / "cat")
    targets = [load_domain(here / name) for name in ("dog", "wild")]
    cyclelight.translate(
        source, targets, images, steps=steps, on_step=lambda _: held.append(calls.alive)
    )
    assert len(held) >= 2 * 0.85 * steps
    assert max(held) <= 2


def test_one_that_looks_elsewhere_is_not_given_what_another_has_seen(here: Path) -> None:
    class Wayward(DDIB):
        """Asks the source about what the target has made."""

        def stream(self, domains: Any, x_0: Tensor, noise: Any) -> Any:
            source, target = domains["source"].denoiser, domains["target"].denoiser
            x = target(x_0, 500).eps
            for t in (500, 200):
                x = source(x, t).eps
                yield x

        def length(self, schedule: NoiseSchedule) -> int:
            return 2

    images = torch.rand(2, 3, R, R) * 2 - 1
    source, *targets = (load_domain(here / name) for name in ("cat", "dog", "wild"))
    together = cyclelight.translate(source, targets, images, method=Wayward())
    for made, target in zip(together, targets, strict=True):
        assert torch.equal(made, cyclelight.translate(source, target, images, method=Wayward()))


def words(here: Path, output: Path, targets: str, references: str, *more: object) -> list[str]:
    own = ("--data.batch_size", 2, "--trainer.precision", "32-true", "--data.reference", references)
    network = ("--scores.network", "pixels_of_targets:Pixels")
    return predict_words(here, output, "--model.target", targets, *own, *network, *more)


def both(here: Path, output: Path, *more: object) -> list[str]:
    targets = f"[{here / 'dog'}, {here / 'wild'}]"
    return words(here, output, targets, f"[{here / 'real'}, {here / 'real_wild'}]", *more)


def files(folder: Path) -> dict[str, bytes]:
    """All files but for the lock and the configuration, which names the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "config.yaml")
    }


@pytest.fixture(scope="module")
def alone(here: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each target alone."""
    root = tmp_path_factory.mktemp("alone")
    for name, real in (("dog", "real"), ("wild", "real_wild")):
        assert main(words(here, root / name, str(here / name), str(here / real))) == 0
    return {name: root / name for name in ("dog", "wild")}


def test_each_folder_is_that_of_a_run_of_its_own(
    here: Path, alone: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(both(here, tmp_path / "out")) == 0
    told = capsys.readouterr().out
    assert told.index("dog\n") < told.index("wild\n")
    assert told.count("KID x 100  ") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dog", "wild"}
    for name, folder in alone.items():
        made = tmp_path / "out" / name
        assert files(made) == files(folder)
        assert {"gallery.png", "metrics.json", "images/sub/2.png"} <= set(files(made))
        kept, before = (yaml.safe_load((f / "config.yaml").read_text()) for f in (made, folder))
        assert kept.pop("output") == str(made)
        assert before.pop("output") == str(folder)
        assert kept == before


@pytest.mark.filterwarnings("ignore:3 of 7 images were not made")
def test_a_run_goes_on_in_all_folders(
    here: Path, alone: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(both(here, out, "--trainer.limit_predict_batches", 2)) == 0
    assert len(list(out.rglob("images/**/*.png"))) == 8
    (out / "wild" / "images" / "0.png").unlink()
    assert main(both(here, out)) == 0
    for name, folder in alone.items():
        assert files(out / name) == files(folder)
    # One of them goes on alone, and finds nothing to do.
    image = out / "dog" / "images" / "3.png"
    before = image.stat().st_mtime_ns
    assert main(words(here, out / "dog", str(here / "dog"), str(here / "real"))) == 0
    assert image.stat().st_mtime_ns == before
    assert files(out / "dog") == files(alone["dog"])
    capsys.readouterr()
    assert main(both(here, out, "--model.seed", 1)) == 2
    assert "--model.seed was 0, now 1" in capsys.readouterr().err
    assert main(both(here, out, "--model.seed", 1, "--overwrite")) == 0
    assert files(out / "wild") != files(alone["wild"])


def test_a_target_without_reference_has_no_kid(here: Path, tmp_path: Path) -> None:
    targets, references = f"[{here / 'dog'}, {here / 'wild'}]", f"[null, {here / 'real_wild'}]"
    assert main(words(here, tmp_path / "out", targets, references)) == 0
    said = [(tmp_path / "out" / name / "metrics.json").read_text() for name in ("dog", "wild")]
    assert ["KID" in text for text in said] == [False, True]


def test_what_a_list_cannot_be_is_told(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "other" / "Dog", 3)
    save(tmp_path / "large", 3, side=2 * R)
    save(tmp_path / "short", 3, timesteps=500)
    save(tmp_path / "up", 3, name="..")
    dog, real = here / "dog", str(here / "real")

    def told(targets: str, references: str = "null", *more: object) -> str:
        code = main(words(here, tmp_path / "out", targets, references, *more))
        err = capsys.readouterr().err.strip()
        assert code in (1, 2)
        assert err.count("\n") == 0
        assert not list(tmp_path.glob("out/**/*.png"))
        return err

    assert "two domains are called 'Dog'" in told(f"[{dog}, {tmp_path / 'other' / 'Dog'}]")
    assert "no folder can have the name of domain '..'" in told(f"[{dog}, {tmp_path / 'up'}]")
    assert "differ in resolution: 16 and 32" in told(f"[{dog}, {tmp_path / 'large'}]")
    assert "schedules differ" in told(f"[{dog}, {tmp_path / 'short'}]")
    assert "--model.target: CycleDiffusion needs at least one" in told("[]")
    assert "absent does not exist" in told(f"[{dog}, {here / 'absent'}]")
    pair = f"[{dog}, {here / 'wild'}]"
    assert "the targets need a list of 2, one for each" in told(pair, real)
    assert "got a list of 3" in told(pair, f"[{real}, {real}, {real}]")
    assert "the targets need one folder" in told(str(dog), f"[{real}]")
    truth = ("--data.truth", here / "sources")
    assert "truth: it is that of one target" in told(pair, "null", *truth)


def test_a_method_without_target_takes_no_list() -> None:
    class Still(DDIB):
        needs = ()

    with pytest.raises(ValueError, match="target: Still takes no target, and got a list of 2"):
        TranslationModule(target=["a", "b"], method=Still())
