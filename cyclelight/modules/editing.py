"""EditingModule: edit images by texts (`lightning edit`)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from cyclelight.chains.engine import Engine
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue, first_line, real
from cyclelight.methods.base import Method, Role
from cyclelight.methods.cyclediffusion import CycleDiffusion
from cyclelight.methods.ddcm import DDCM
from cyclelight.methods.ddib import DDIB
from cyclelight.methods.edit_friendly import EditFriendly
from cyclelight.methods.translate import check_masks, translate
from cyclelight.runs.task import Task
from cyclelight.text.attention import AttentionControl, watch
from cyclelight.text.control import plan_of
from cyclelight.text.load import check_model_path, fingerprint_of, load_text_model
from cyclelight.text.model import TextModel
from datamodules.items import Items
from datamodules.predict_data import predict_data


def ready_model(
    path: str, resolution: int | None, tiled: bool, engine: Engine, precision: str
) -> TextModel:
    """A text model from its folder, with its network run as the engine says, in a precision."""
    model = load_text_model(path, resolution=resolution, tiled=tiled)
    engine.speed_up_network(model.denoiser, precision)
    return model


class EditingModule(Task):
    """Edits each image by two texts: what it shows, and what it is to show.

    Both texts make a domain of one text-to-image model, between which a method translates (Wu and
    De la Torre 2023, Algorithm 1). With equal texts and scales, methods that run both in lockstep
    give the image back, or what the model's autoencoder makes of it.

    Args:
        model: the text-to-image model: a folder, or `owner/name` or `owner/name@revision` on the
            Hugging Face Hub; see `load_text_model`.
        method: how to translate: CycleDiffusion, EditFriendly, DDCM, FlowEdit, or SDEdit, which
            needs no source text. The paper has eta 0.1 and steps 99 for CycleDiffusion.
        scale: of classifier-free guidance by the target's text; a row of the data may have its own.
            1 for none, in half the time. More follows the text, and leaves the image. Where
            guidance is learnt (FLUX.1 dev), what the network is told, such as 3.5.
        source_scale: of that by the source's text; None for the target's. The paper has 1.
        control: what of the source's attention the target takes over, and where the image may
            change by it, with CycleDiffusion, EditFriendly, DDCM or DDIB; None for nothing.
            Networks are not replayed as CUDA graphs then.
        negative: what both are led away from; empty for no text.
        resolution: height and width of the images in pixels; None for the model's.
        tiled: let the model's autoencoder work in less memory, see `load_text_model`.
        seed: seed of the noise; an image's result depends on its key and this.
        engine: how the network is called.

    Raises:
        ValueError: a setting is out of range, or the model cannot be read.
        FileNotFoundError: the model is not there.
    """

    def __init__(
        self,
        model: str,
        method: Method = CycleDiffusion(steps=50, eta=1.0, strength=0.8, cleanup=0),  # noqa: B008 (frozen)
        scale: float = 2.0,
        source_scale: float | None = None,
        control: AttentionControl | None = None,
        negative: str = "",
        resolution: int | None = None,
        tiled: bool = False,
        seed: int = 0,
        engine: Engine = Engine(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.scale = real("scale", scale)
        self.source_scale = None if source_scale is None else real("source_scale", source_scale)
        self.method, self.negative, self.seed, self.engine = method, negative, seed, engine
        self._path, self._side, self._tiled = model, resolution, tiled
        check_model_path(model)
        # Without weights first, so that whatever does not fit is said before anything is loaded.
        bare = load_text_model(model, resolution=resolution, device="meta")
        # Not the model itself, as a sub-module of which Lightning would look for the weights.
        self._resolution, self._name = bare.resolution, bare.name
        self._schedule, self._check = bare.denoiser.schedule, bare.reader.check
        try:
            self._check([negative])
        except ValueError as error:
            raise BadValue("negative", f"negative: {first_line(error)}") from error
        roles: tuple[Role, ...] = ("source", "target")
        if not method.needs:
            name = type(method).__name__
            raise BadValue("method", f"method: {name} heeds no texts; CycleDiffusion does")
        self.method.choose(dict.fromkeys(roles, bare.prompted("", negative, scale=1.0)))
        self.control, self._reader = control, (bare.reader.spell, bare.reader.length)
        self._timesteps: tuple[int, ...] = ()
        if control is not None:
            watch(bare.denoiser.network)  # Told here if there is nothing to control.
            self._timesteps = _controlled_steps(control, method, engine, self._schedule)
            self.engine = replace(engine, graphs=False)
        self.load_model: Callable[[str, int | None, bool, Engine, str], TextModel] = ready_model
        """Gives the model of a run; several runs may share what it gives."""

    @property
    def resolution(self) -> int:
        return self._resolution

    @property
    def steps(self) -> int:
        return self.method.length(self._schedule)

    @property
    def gradients(self) -> bool:
        return self.method.gradients

    def setup(self, stage: str) -> None:
        """Look at the texts, then load the networks, to be run in the trainer's precision.

        Raises:
            ValueError: a text is missing or too long, or there are masks and the method takes none.
        """
        self.check_texts(predict_data(self.trainer).loaded)
        if getattr(predict_data(self.trainer), "masks", None) is not None:
            check_masks(self.method, "data.masks")
        how = self.engine, str(self.trainer.precision)
        self.model = self.load_model(self._path, self._side, self._tiled, *how)
        # As sub-modules, Lightning moves these to its device.
        self.networks = nn.ModuleDict({"model": self.model.denoiser, **self.method.networks()})

    def check_texts(self, items: Items) -> None:
        """Raises ValueError, with the image's key, if a text is missing, too long or not fit."""
        fields = items.fields
        for key in items.keys:
            for name in ("source_text", "target_text"):
                text = fields.get(key, {}).get(name)
                if text is None:
                    told = f"images with texts are edited (EditImages): {key} has no {name}"
                    raise ValueError(told)
                try:
                    self._check([text])
                except ValueError as error:
                    raise ValueError(f"{name} of {key}: {first_line(error)}") from error
            if self.control is not None:
                spell, length = self._reader
                pair = spell(fields[key]["source_text"]), spell(fields[key]["target_text"])
                try:
                    plan_of(self.control, [pair], self._timesteps, length)
                except ValueError as error:
                    raise ValueError(f"control of {key}: {first_line(error)}") from error

    def make(self, batch: Mapping[str, Any]) -> Tensor:
        """The edited images of a batch, (B, C, R, R), near [-1, 1], not clamped."""
        count = len(batch["key"])
        scales = [self.scale if own is None else own for own in batch.get("scale", [None] * count)]
        both = self.source_scale
        source_scales = [
            (scale if both is None else both) if own is None else own
            for own, scale in zip(batch.get("source_scale", [None] * count), scales, strict=True)
        ]
        source, target = self._domains(batch, source_scales, scales)
        return translate(
            source,
            target,
            to_float(batch["image"]),
            method=self.method,
            seed=self.seed,
            keys=batch["key"],
            mask=batch.get("mask"),
            on_step=lambda _: self.on_step(),
        )

    def _domains(
        self, batch: Mapping[str, Any], source_scales: list[float], scales: list[float]
    ) -> tuple[Domain | None, Domain]:
        texts = batch["source_text"], batch["target_text"]
        if self.control is not None:
            return self.model.controlled(
                *texts,
                self.control,
                self._timesteps,
                negative=self.negative,
                source_scale=source_scales,
                scale=scales,
            )
        source = None
        if "source" in self.method.needs:
            source = self.model.prompted(texts[0], self.negative, source_scales)
        return source, self.model.prompted(texts[1], self.negative, scales)

    def made_by(self) -> Mapping[str, str]:
        """The SHA-256 of the model's weights and settings, and of the method's own."""
        own = {f"method.{name}": digest for name, digest in self.method.made_by().items()}
        return {"model": fingerprint_of(check_model_path(self._path)), **own}

    def describe(self) -> str:
        """The model, the method and the settings in one line."""
        both = "as scale" if self.source_scale is None else self.source_scale
        scales = f"scale {self.scale}, source_scale {both}"
        name = type(self.method).__name__
        if self.control is not None:
            scales += f", {self.control}"
        return f"{name} by {self._name}: {self.method.describe()}, {scales}, seed {self.seed}"


def _controlled_steps(
    control: AttentionControl, method: Method, engine: Engine, schedule: NoiseSchedule
) -> tuple[int, ...]:
    """The timesteps at which a method asks source and target, one after the other.

    Raises:
        ValueError: it does not, or not alone, or the network is to be compiled; or a cleanup would
            undo a blend.
    """
    if not isinstance(method, CycleDiffusion | EditFriendly | DDCM | DDIB):
        name = type(method).__name__
        raise BadValue(
            "control",
            f"control: {name} does not run source and target step by step; CycleDiffusion, "
            f"EditFriendly, DDCM and DDIB do",
        )
    if not isinstance(method, DDIB) and method.parallel:
        raise BadValue("control", "control takes one timestep at a time: leave parallel at 0")
    if engine.compile:
        raise BadValue("control", "control does not go with a compiled network")
    if control.blend is not None and isinstance(method, CycleDiffusion) and method.cleanup:
        raise BadValue("cleanup", "cleanup must be 0 with a blend: it changes all of an image")
    return method.grid(schedule).timesteps
