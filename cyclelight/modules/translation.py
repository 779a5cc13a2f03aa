"""TranslationModule: translate images between two domains (`lightning predict`)."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cyclelight.chains.encode import LastResidual
from cyclelight.diffusion.noise import KeyedNoise
from cyclelight.domains.folder import check_domain_path, load_domain
from cyclelight.methods import METHODS
from cyclelight.methods.base import Method


class TranslationModule(LightningModule):
    """Pairs two domains and translates images from the first into the second.

    Args:
        source: domain that the images belong to: a domain folder, a checkpoint of `fit`, or
            `owner/name` or `owner/name@revision` on the Hugging Face Hub.
        target: domain to translate into; its schedule, resolution, channels and autoencoder are
            the source's.
        method: how to translate: CycleDiffusion.
        steps: timesteps of the whole grid, 1 to the schedule's length (1000).
        eta: 0 to 1: how stochastic the chain is. Small keeps more of the image, 1 makes a code that
            is truly Gaussian. The paper uses 0.1; the default is the better of a sweep
            (docs/sweep_cat.csv), with demo domains of 48 pixels.
        strength: share of the grid that is run, above 0 and at most 1. Less keeps more.
        cleanup: SDEdit on the target afterwards: steps of a training schedule of 1000 to go back;
            0 for none. More is more realistic and less faithful.
        cleanup_eta: eta of the cleanup.
        last_residual: keep, so that equal models give the image back, or drop, as the authors'
            program does.
        seed: seed of the noise; an image's result depends on its path in the source and this.

    Raises:
        ValueError: a setting is out of range, or the domains cannot be paired.
        FileNotFoundError: a domain is not there.
    """

    def __init__(
        self,
        source: str,
        target: str,
        method: str = "CycleDiffusion",
        steps: int = 50,
        eta: float = 1.0,
        strength: float = 0.85,
        cleanup: int = 100,
        cleanup_eta: float = 1.0,
        last_residual: LastResidual = "keep",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method}")
        self.seed = seed
        self._method, self._source, self._target = METHODS[method], source, target
        self._settings: dict[str, Any] = {
            "steps": steps,
            "eta": eta,
            "strength": strength,
            "cleanup": cleanup,
            "cleanup_eta": cleanup_eta,
            "last_residual": last_residual,
            "seed": seed,
        }
        # Without weights first, so that whatever does not fit is said before anything is loaded.
        self.method = self._make("meta")
        self.on_state: Callable[[], None] = lambda: None
        """Called after each step of a batch; a progress bar sets it."""

    def _make(self, device: str) -> Method:
        check_domain_path(self._source, "source")
        check_domain_path(self._target, "target")
        source = load_domain(self._source, device=device)
        target = load_domain(self._target, device=device)
        return self._method(source, target, **self._settings)

    @property
    def resolution(self) -> int:
        """Height and width of the images in pixels."""
        return self.method.source.resolution

    def setup(self, stage: str) -> None:
        """Load both networks."""
        self.method = self._make("cpu")
        # As sub-modules, Lightning moves them to its device.
        self.denoisers = nn.ModuleList(
            [
                domain.denoiser
                for domain in (self.method.source, self.method.target)
                if isinstance(domain.denoiser, nn.Module)
            ]
        )

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The translated images of a batch, (B, C, R, R), near [-1, 1], not clamped."""
        if not len(batch["image"]):  # What a process without work gets.
            return batch["image"]
        source, target = self.method.source, self.method.target
        y = source.to_states(batch["image"])
        noise = KeyedNoise(self.seed, batch["key"])
        for state in self.method.stream(y, noise):
            y = state
            self.on_state()
        return target.to_images(y)

    def describe(self) -> str:
        """The method and its settings in one line."""
        settings = ", ".join(f"{name} {value}" for name, value in self._settings.items())
        source, target = self.method.source.name, self.method.target.name
        return f"{self._method.__name__} {source} to {target}: {settings}"
