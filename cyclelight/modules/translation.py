"""TranslationModule: translate images by a method (`lightning predict`)."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, get_args

from torch import Tensor, nn

from cyclelight.chains.engine import Engine
from cyclelight.diffusion.denoiser import Variance
from cyclelight.diffusion.pixels import to_float
from cyclelight.domains.domain import Domain
from cyclelight.domains.folder import check_domain_path, fingerprint, load_domain
from cyclelight.domains.variance import check_learned_variance
from cyclelight.errors import BadValue, one_of
from cyclelight.methods.base import Domains, Method, Role
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.translate import check_masks, check_several, translate
from cyclelight.runs.task import Task


def ready_domain(path: str, engine: Engine, precision: str, variance: Variance = "fixed") -> Domain:
    """A domain from its folder, with its network run as the engine says, in a precision."""
    return engine.speed_up(load_domain(path, variance=variance), precision)


class TranslationModule(Task):
    """Translates images by a method, from one domain into another.

    Args:
        source: domain that the images belong to: a domain folder, a checkpoint of `fit`, or
            `owner/name` or `owner/name@revision` on the Hugging Face Hub. Not read where the method
            needs none.
        target: domain to translate into; its schedule, resolution, channels and autoencoder are
            the source's. Or a list of domains, which share the encoding by the source; each has a
            folder of its own name below the output's, with what a run of it alone leaves.
        method: how to translate: CycleDiffusion, SDEdit, EditFriendly, DDCM, FlowEdit, ILVR, EGSDE,
            DDIB, CUT, OneStep, with their settings.
        seed: seed of the noise; an image's result depends on its path in the source and this.
        engine: how the networks are called.
        variance: of the steps: `learned` takes those that the networks have learned, a range (with
            eta 1) or by a covariance head (`CovarianceModule`); `fixed` ignores them, as published.

    Raises:
        ValueError: a setting is out of range, or the domains cannot be paired.
        FileNotFoundError: a domain is not there.
    """

    domains: Domains

    def __init__(
        self,
        source: str | None = None,
        target: list[str] | str | None = None,
        method: Method = CycleDiffusion(),  # noqa: B008 (frozen)
        seed: int = 0,
        engine: Engine = Engine(),  # noqa: B008 (frozen)
        variance: Variance = "fixed",
    ) -> None:
        super().__init__()
        one_of(get_args(Variance), variance=variance)
        self.method, self.seed, self.engine, self.variance = method, seed, engine, variance
        self.load_domain: Callable[[str, Engine, str, Variance], Domain] = ready_domain
        """Gives the domains of a run; several runs may share what it gives."""
        self._parts: dict[str, TranslationModule] = {}
        self._paths: dict[Role, str] = {}
        if isinstance(target, list):
            check_several(method, len(target))
            settings: Any = (method, seed, engine, variance)
            alone = [TranslationModule(source, path, *settings) for path in target]
            self._parts = _by_folder(alone)
            self.domains = alone[0].domains
            return
        paths: dict[Role, str | None] = {"source": source, "target": target}
        self._paths = {role: path for role, path in paths.items() if path and role in method.needs}
        for role, path in self._paths.items():
            check_domain_path(path, role)
        # Without weights first, so that whatever does not fit is said before anything is loaded.
        bare = {role: load_domain(path, device="meta") for role, path in self._paths.items()}
        self.domains = method.choose(bare)
        if variance == "learned":
            _check_learned(method, self.domains, self._paths)

    @property
    def parts(self) -> Mapping[str, "TranslationModule"]:
        return self._parts or {"": self}

    @property
    def resolution(self) -> int:
        return self.method.ends(self.domains)[0].resolution

    @property
    def channels(self) -> int:
        return self.method.ends(self.domains)[0].channels

    @property
    def steps(self) -> int:
        return self.method.count(self.domains) * len(self.parts)

    @property
    def kind(self) -> str | None:
        return None if self._parts else self.method.ends(self.domains)[-1].name

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
        how = self.engine, str(self.trainer.precision), self.variance
        load = cache(lambda path: self.load_domain(path, *how))
        networks: dict[str, Any] = {}
        for number, part in enumerate(self.parts.values()):
            loaded = {role: load(path) for role, path in part._paths.items()}
            part.domains = self.method.choose(loaded)
            named = {f"{role} {number}" if number else role: d for role, d in part.domains.items()}
            networks |= {name: domain.denoiser for name, domain in named.items()}
        self.domains = next(iter(self.parts.values())).domains
        networks |= self.method.networks()
        # As sub-modules, Lightning moves them to its device.
        self.networks = nn.ModuleDict(
            {name: network for name, network in networks.items() if isinstance(network, nn.Module)}
        )

    def make(self, batch: Mapping[str, Any]) -> Tensor:
        """The translated images of a batch, (parts * B, C, R, R), near [-1, 1], not clamped."""
        targets: list[Any] = [part.domains.get("target") for part in self.parts.values()]
        made = translate(
            self.domains.get("source"),
            targets if self._parts else targets[0],
            to_float(batch["image"]),
            method=self.method,
            seed=self.seed,
            keys=batch["key"],
            mask=batch.get("mask"),
            on_step=lambda _: self.on_step(),
        )
        return made.flatten(0, 1) if self._parts else made

    def made_by(self) -> Mapping[str, str]:
        """The SHA-256 of the domains' weights, and of the method's own."""
        found: dict[str, str] = {}
        for name, part in self._parts.items():
            found |= {f"{name}: {option}": value for option, value in part.made_by().items()}
        for role, path in self._paths.items():
            found[role] = fingerprint(check_domain_path(path, role))
        for name, digest in self.method.made_by().items():
            found[f"method.{name}"] = digest
        return found

    def describe(self) -> str:
        """The method and its settings in one line."""
        if self._parts:
            return "; ".join(part.describe() for part in self._parts.values())
        names = " to ".join(d.name for d in self.domains.values()) or self.kind
        to = "to " * (len(self.domains) < 2)
        settings = f"{self.method.describe()}, seed {self.seed}"
        settings += ", learned variance" * (self.variance == "learned")
        return f"{type(self.method).__name__} {to}{names}: {settings}"


def _check_learned(method: Method, domains: Domains, paths: Mapping[Role, str]) -> None:
    """Raises ValueError unless a method can take steps with the domains' learned variances."""
    names = ["eta", *(["cleanup_eta"] if getattr(method, "cleanup", 0) else [])]
    etas = {name: getattr(method, name) for name in names if hasattr(method, name)}
    if not etas:
        raise BadValue(
            "variance",
            f"variance: {type(method).__name__} takes no learned one; a method with an eta does, "
            "such as CycleDiffusion",
        )
    for role, domain in domains.items():
        check_learned_variance(domain, etas, f"{role} {paths[role]}")


def _by_folder(targets: Sequence[TranslationModule]) -> dict[str, TranslationModule]:
    """Translations into several targets, by the folders that these are named after.

    Raises:
        ValueError: a folder cannot have such a name, or two have the same.
    """
    found: dict[str, TranslationModule] = {}
    for one in targets:
        name = one.domains["target"].name
        if not name.strip(". ") or "/" in name:
            raise BadValue("target", f"target: no folder can have the name of domain {name!r}")
        # Some file systems do not tell capital letters from small ones.
        if name.casefold() in map(str.casefold, found):
            raise BadValue(
                "target",
                f"target: two domains are called {name!r}, and would have one folder: name them "
                f"in their domain.json",
            )
        found[name] = one
    return found
