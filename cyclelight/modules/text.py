"""TextModule: train a small text-to-image diffusion model (`lightning fit --model TextModule`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import CLIPTokenizer

from cyclelight.callbacks.samples import COUNT
from cyclelight.chains.sample import sample
from cyclelight.diffusion.denoiser import NetworkDenoiser, PredictionType
from cyclelight.diffusion.loss import Weighting, denoising_loss, finite
from cyclelight.diffusion.noise import gaussian_like, keyed_generator
from cyclelight.diffusion.pixels import to_float
from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue
from cyclelight.files import whole_folder
from cyclelight.modules.training import TrainingModule
from cyclelight.networks import arrange
from cyclelight.networks.text import Reading, TextEncoderSettings, TextUNetSettings
from cyclelight.text.tokens import token_ids, train_tokenizer

SAMPLE_STEPS = 25
"""Steps of the pictures of a fit."""
LEVELS = 5
"""Validation asks for each image at so many timesteps, evenly spread."""


class TextModule(TrainingModule):
    """A text-to-image diffusion model in pixel space, its text encoder trained along.

    The fit ends by writing `text_model/` into the output folder, laid out like Stable Diffusion
    without an autoencoder: `unet/` and `scheduler/` of diffusers, `text_encoder/` and `tokenizer/`
    of transformers. Its data has captions (`CaptionedImages`), of which the tokenizer is made.

    Args:
        resolution: height and width of the images in pixels.
        network: shape of the UNet.
        encoder: shape of the text encoder.
        schedule: the noise schedule.
        prediction_type: what the network outputs; the loss is on the noise that it implies.
        weighting: weight of the loss over noise levels: uniform, p2 or min_snr.
        empty: share of captions left empty, in [0, 1), for classifier-free guidance (Ho and
            Salimans 2022).
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        flip: mirror training images; not where captions tell left from right.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = "text_model", ("a text model's folder", "model_index.json")

    def __init__(
        self,
        resolution: int = 32,
        network: TextUNetSettings = TextUNetSettings(),  # noqa: B008 (frozen)
        encoder: TextEncoderSettings = TextEncoderSettings(),  # noqa: B008 (frozen)
        schedule: NoiseSchedule = NoiseSchedule(),  # noqa: B008 (frozen)
        prediction_type: PredictionType = "v_prediction",
        weighting: Weighting = "min_snr",
        empty: float = 0.1,
        ema_decay: float = 0.9995,
        flip: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, flip=flip, **training)
        if not 0 <= empty < 1:
            raise BadValue("empty", f"empty must be in [0, 1), got {empty}")
        self.resolution, self.encoder, self.schedule = resolution, encoder, schedule
        self.prediction_type: PredictionType = prediction_type
        self.weighting: Weighting = weighting
        self.empty = empty
        unet = network.build(resolution=resolution, channels=3, text_width=encoder.width)
        arrange(unet)
        self.networks = nn.ModuleDict({"unet": unet, "text_encoder": encoder.build()})
        self.tokenizer: CLIPTokenizer | None = None
        self.val_loss = MeanMetric()
        self._ids: dict[str, Tensor] = {}
        self._shown: dict[str, str] = {}

    @property
    def trained_network(self) -> nn.Module:
        return self.networks

    def setup(self, stage: str) -> None:
        """Make the tokenizer of the captions; one that is too long is told before any training."""
        captions = set(captions_of(self.trainer))
        encoder = self.encoder
        self.tokenizer = train_tokenizer(captions, encoder.vocabulary, encoder.length)
        texts = ["", *sorted(captions)]
        self._ids = dict(zip(texts, token_ids(self.tokenizer, texts), strict=True))

    def ids(self, captions: list[str]) -> Tensor:
        """The tokens of captions, (B, L), on this module's device."""
        return torch.stack([self._ids[caption] for caption in captions]).to(self.device)

    def denoiser(self, ids: Tensor) -> NetworkDenoiser:
        """The network that has read the texts of these tokens, (B, L)."""
        unet: Any = self.networks["unet"]
        states = self.networks["text_encoder"](ids).last_hidden_state
        return NetworkDenoiser(
            Reading(unet, states), self.schedule, prediction_type=self.prediction_type
        )

    def loss(self, x_0: Tensor, ids: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """`denoising_loss` of the network that has read the texts: (B,)."""
        return denoising_loss(self.denoiser(ids), x_0, timesteps, noise, weighting=self.weighting)

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """What it draws for the captions of the real images, by 25 steps of DDIM, unguided."""
        keys = range(first, first + len(real))
        captions = list(self._shown.values())[first : first + len(real)]
        domain = Domain(self.denoiser(self.ids(captions)), self.resolution)
        steps = min(SAMPLE_STEPS, self.schedule.timesteps)
        return sample(domain, len(real), steps=steps, eta=0.0, seed=self.seed, keys=keys)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        if len(self._shown) < COUNT:  # As the pictures take their real images, each once.
            self._shown |= dict(zip(batch["key"], batch["caption"], strict=True))
        x_0, generator = self.training_images(batch, batch_idx)
        left_out = torch.rand(len(x_0), generator=generator) < self.empty
        texts = ["" if out else c for c, out in zip(batch["caption"], left_out, strict=True)]
        timesteps = torch.randint(self.schedule.timesteps, (len(x_0),), generator=generator)
        noise = gaussian_like(x_0, generator)
        losses = self.loss(x_0, self.ids(texts), timesteps.to(x_0.device), noise)
        loss = finite(losses.mean(), self.global_step)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Each image at a few timesteps, with noise that depends on its key alone."""
        if not len(batch["image"]):  # What a process without images gets.
            return
        x_0, ids = to_float(batch["image"]), self.ids(batch["caption"])
        for level in range(LEVELS):
            t = self.schedule.timesteps * (2 * level + 1) // (2 * LEVELS)
            draws = [
                torch.randn(x_0.shape[1:], generator=keyed_generator(self.seed, key, "val", t))
                for key in batch["key"]
            ]
            timesteps = torch.full((len(x_0),), t, device=x_0.device)
            self.val_loss.update(self.loss(x_0, ids, timesteps, torch.stack(draws).to(x_0)))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over images and timesteps."""
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        assert self.tokenizer is not None
        scheduler = DDPMScheduler(
            **self.schedule.to_diffusers(), prediction_type=self.prediction_type
        )
        with whole_folder(folder, *self.mark) as made:
            for name, network in self.networks.items():
                save_half(network, weights, f"{name}.", made / name)
            scheduler.save_pretrained(made / "scheduler")
            self.tokenizer.save_pretrained(made / "tokenizer")
            parts = {
                "unet": ["diffusers", "UNet2DConditionModel"],
                "scheduler": ["diffusers", "DDPMScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "vae": [None, None],
            }
            index = {"_class_name": "StableDiffusionPipeline", **parts}
            (made / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
            (made / "card.json").write_text(json.dumps(self.card(), indent=2) + "\n")
        return folder


def captions_of(trainer: Any) -> list[str]:
    """The captions of the trainer's data.

    Raises:
        ValueError: its data has none.
    """
    data = getattr(trainer, "datamodule", None)
    captions = getattr(data, "captions", None)
    if not captions:
        name = type(data).__name__
        raise ValueError(f"a text model takes images with captions (CaptionedImages), got {name}")
    return list(captions.values())


def save_half(model: Any, weights: Mapping[str, Tensor], prefix: str, folder: Path) -> None:
    """Save a model of diffusers or transformers in half precision, with these weights.

    Args:
        weights: those of `model`, their names beginning with `prefix`; others are passed over.
    """
    own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    copy = type(model).from_config(model.config) if hasattr(model, "from_config") else None
    copy = type(model)(model.config) if copy is None else copy
    copy.load_state_dict(own)
    nn.Module.to(copy, torch.float16).save_pretrained(folder)
