"""GuidanceModule: steer a generator by energies of its images (`lightning guide`)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.diffusion.denoiser import Variance
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.diffusion.pixels import to_float
from cyclelight.errors import BadValue, at_least, one_of
from cyclelight.guidance.classifiers import Classified
from cyclelight.guidance.energy import Energy
from cyclelight.guidance.generators import Generator
from cyclelight.guidance.guided import Guided, Keep, guide
from cyclelight.guidance.langevin import CrankNicolson, Sampler
from cyclelight.guidance.load import load_map, map_fingerprint
from cyclelight.guidance.steering import Steering
from cyclelight.runs.task import Task


class GuidanceModule(Task):
    """Samples of a generator, under energies of the images (Wu and De la Torre 2023, sec. 3.5).

    Nothing is trained: Langevin dynamics move the latent z of any generator to where a judge of
    clean images is pleased. Images of the data are begun at: their z, by the generator's encoder.

    Args:
        generator: a domain (folder, checkpoint of `fit`, or `owner/name` on the Hugging Face Hub),
            or the generator folder of a DDGAN or of a diffusion autoencoder with its prior.
        energies: what is wanted, each a class with its settings: ClassEnergy, ClipEnergy,
            FeatureEnergy, DistanceEnergy, CustomEnergy. Their sum counts, by their weights.
        sampler: how z moves: CrankNicolson, Langevin, Adam; or TFG, which moves the clean
            image at each step of one chain.
        steps: timesteps of a domain's chain, by default 50, or of the chains of a diffusion
            autoencoder, by default 20.
        eta: of a domain's chain, 0 (DDIM) .. 1 (DDPM); by default 1.
        variance: of a domain's chain: `learned` for SN-DDPM; by default `fixed`.
        which: the `last` state of a chain, or its `best`, that of least energy.
        way: images on the way that are kept beside the first and the last.
        seed: of all noise; an image depends on its key and this.

    Raises:
        ValueError: a setting is out of range, or is not for this generator.
        FileNotFoundError: the generator is not there.
    """

    def __init__(
        self,
        generator: str,
        energies: list[Energy],
        sampler: Steering = CrankNicolson(),  # noqa: B008 (frozen)
        steps: int | None = None,
        eta: float | None = None,
        variance: Variance | None = None,
        which: Keep = "last",
        way: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        one_of(("last", "best"), which=which)
        at_least(0, way=way)
        if not energies:
            raise BadValue("energies", "energies: give at least one, such as ClassEnergy")
        self.path, self.sampler, self.which, self.way = generator, sampler, which, way
        self.energies = nn.ModuleList(energies)
        self.seed = seed
        self._settings: dict[str, Any] = {"steps": steps, "eta": eta, "variance": variance}
        # Without weights first, so that whatever does not fit is said before anything is loaded.
        # Not a part of the module, which is moved about also where a run ends before `setup`.
        self._bare = [load_map(generator, device="meta", **self._settings)]
        self.loaded: Generator | None = None
        sampler.length(self.generator)
        if which == "best" and not isinstance(sampler, Sampler):
            name = type(sampler).__name__
            raise BadValue("which", f"which: {name} has no states of z to choose the best from")
        self.guided: Guided | None = None
        """Of the last batch."""

    @property
    def names(self) -> list[str]:
        """Of the energies, all different."""
        names: list[str] = []
        for energy in self._energies:
            same = sum(name.split(" ")[0] == energy.name for name in names)
            names.append(f"{energy.name} {same + 1}" if same else energy.name)
        return names

    @property
    def networks(self) -> list[str]:
        """The names of the classifiers that guide."""
        return [energy.network for energy in self._energies if isinstance(energy, Classified)]

    @property
    def _energies(self) -> list[Energy]:
        return [energy for energy in self.energies if isinstance(energy, Energy)]

    @property
    def generator(self) -> Generator:
        """What makes the images, without weights before `setup`."""
        return self._bare[0] if self.loaded is None else self.loaded

    @property
    def resolution(self) -> int:
        return self.generator.resolution

    @property
    def channels(self) -> int:
        return self.generator.channels

    @property
    def steps(self) -> int:
        return self.sampler.length(self.generator)

    @property
    def kind(self) -> str | None:
        return self.generator.name

    @property
    def gradients(self) -> bool:
        return True

    def setup(self, stage: str) -> None:
        """Load the generator and what the energies need."""
        self.loaded = load_map(self.path, **self._settings)
        for energy in self._energies:
            energy.load(self.resolution)

    def make(self, batch: Mapping[str, Any]) -> Tensor:
        """The guided images of a batch, (B, C, R, R), near [-1, 1], not clamped."""
        noise = KeyedNoise(self.seed, batch["key"])
        if "image" in batch:
            # A copy, since autograd takes no tensors of Lightning's inference mode.
            z = self.generator.encode(to_float(batch["image"].clone()), noise)
        else:
            z = self.generator.sample_latent(
                noise, torch.empty(len(batch["key"]), device=self.device)
            )
        self.guided = guide(
            self.generator,
            self._energies,
            self.sampler,
            z,
            noise,
            which=self.which,
            way=self.way,
            on_step=self.on_step,
        )
        return self.guided.end

    @property
    def calls(self) -> int:
        """Calls of the generator's networks for an image, those of backward passes not counted."""
        return self.sampler.calls(self.generator, self.way)

    def made_by(self) -> Mapping[str, str]:
        """The SHA-256 of the generator and of the files of the energies."""
        found = {"generator": map_fingerprint(self.path)}
        for index, energy in enumerate(self._energies):
            found |= {f"energies.{index}.{name}": d for name, d in energy.made_by().items()}
        return found

    def describe(self) -> str:
        """Generator, sampler and energies in one line."""
        weighted = zip(self.names, self._energies, strict=True)
        energies = " + ".join(f"{energy.weight:g} {name}" for name, energy in weighted)
        settings = ", ".join(f"{n} {v}" for n, v in self._settings.items() if v is not None)
        generator = f"{self.generator.name}{f' ({settings})' if settings else ''}"
        return f"{generator} under {energies}: {self.sampler.describe()}, seed {self.seed}"
