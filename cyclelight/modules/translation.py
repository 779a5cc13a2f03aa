"""TranslationModule: translate images by a method (`lightning predict`)."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from cyclelight.chains.engine import Engine
from cyclelight.diffusion.pixels import to_float
from cyclelight.domains.domain import Domain
from cyclelight.domains.folder import check_domain_path, fingerprint, load_domain
from cyclelight.methods.base import Method, Role
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.translate import check_masks, translate
from cyclelight.runs.task import Task


def ready_domain(path: str, engine: Engine, precision: str) -> Domain:
    """A domain from its folder, with its network run as the engine says, in a precision."""
    return engine.speed_up(load_domain(path), precision)


class TranslationModule(Task):
    """Translates images by a method, from one domain into another.

    Args:
        source: domain that the images belong to: a domain folder, a checkpoint of `fit`, or
            `owner/name` or `owner/name@revision` on the Hugging Face Hub. Not read where the method
            needs none.
        target: domain to translate into; its schedule, resolution, channels and autoencoder are
            the source's.
        method: how to translate: CycleDiffusion, SDEdit, EditFriendly, DDCM, FlowEdit, ILVR, EGSDE,
            DDIB, CUT, OneStep, with their settings.
        seed: seed of the noise; an image's result depends on its path in the source and this.
        engine: how the networks are called.

    Raises:
        ValueError: a setting is out of range, or the domains cannot be paired.
        FileNotFoundError: a domain is not there.
    """

    def __init__(
        self,
        source: str | None = None,
        target: str | None = None,
        method: Method = CycleDiffusion(),  # noqa: B008 (frozen)
        seed: int = 0,
        engine: Engine = Engine(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.method, self.seed, self.engine = method, seed, engine
        paths: dict[Role, str | None] = {"source": source, "target": target}
        self._paths = {role: path for role, path in paths.items() if path and role in method.needs}
        for role, path in self._paths.items():
            check_domain_path(path, role)
        # Without weights first, so that whatever does not fit is said before anything is loaded.
        bare = {role: load_domain(path, device="meta") for role, path in self._paths.items()}
        self.domains = method.choose(bare)
        self.load_domain: Callable[[str, Engine, str], Domain] = ready_domain
        """Gives the domains of a run; several runs may share what it gives."""

    @property
    def resolution(self) -> int:
        return self.method.ends(self.domains)[0].resolution

    @property
    def channels(self) -> int:
        return self.method.ends(self.domains)[0].channels

    @property
    def steps(self) -> int:
        return self.method.count(self.domains)

    @property
    def kind(self) -> str | None:
        return self.method.ends(self.domains)[-1].name

    @property
    def gradients(self) -> bool:
        return self.method.gradients

    def setup(self, stage: str) -> None:
        """Load all networks, to be run in the trainer's precision.

        Raises:
            ValueError: there are masks, and the method takes none.
        """
        if getattr(getattr(self.trainer, "datamodule", None), "masks", None) is not None:
            check_masks(self.method, "data.masks")
        how = self.engine, str(self.trainer.precision)
        loaded = {role: self.load_domain(path, *how) for role, path in self._paths.items()}
        self.domains = self.method.choose(loaded)
        networks: dict[str, Any] = {role: d.denoiser for role, d in self.domains.items()}
        networks |= self.method.networks()
        # As sub-modules, Lightning moves them to its device.
        self.networks = nn.ModuleDict(
            {name: network for name, network in networks.items() if isinstance(network, nn.Module)}
        )

    def make(self, batch: Mapping[str, Any]) -> Tensor:
        """The translated images of a batch, (B, C, R, R), near [-1, 1], not clamped."""
        return translate(
            self.domains.get("source"),
            self.domains.get("target"),
            to_float(batch["image"]),
            method=self.method,
            seed=self.seed,
            keys=batch["key"],
            mask=batch.get("mask"),
            on_step=lambda _: self.on_step(),
        )

    def made_by(self) -> Mapping[str, str]:
        """The SHA-256 of the domains' weights, and of the method's own."""
        found: dict[str, str] = {}
        for role, path in self._paths.items():
            found[role] = fingerprint(check_domain_path(path, role))
        for name, digest in self.method.made_by().items():
            found[f"method.{name}"] = digest
        return found

    def describe(self) -> str:
        """The method and its settings in one line."""
        names = " to ".join(d.name for d in self.domains.values()) or self.kind
        to = "to " * (len(self.domains) < 2)
        settings = f"{self.method.describe()}, seed {self.seed}"
        return f"{type(self.method).__name__} {to}{names}: {settings}"
