"""CLIPModule: train a small CLIP on captioned images (`lightning fit --model CLIPModule`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from transformers import CLIPImageProcessor, CLIPTokenizer

from cyclelight.callbacks.samples import COUNT
from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.pixels import to_float
from cyclelight.files import whole_folder
from cyclelight.modules.text import captions_of, save_half
from cyclelight.modules.training import TrainingModule
from cyclelight.networks.text import TextEncoderSettings, VisionSettings, build_clip
from cyclelight.text.tokens import token_ids, train_tokenizer

HARDEST = 100.0
"""What the scale of the logits may grow to, as in the paper (Radford et al. 2021, sec. 2.5)."""


class CLIPModule(TrainingModule):
    """Images and captions in one space, by the contrastive loss (Radford et al. 2021, Fig. 3).

    The fit ends by writing `clip/` into the output folder: a `CLIPModel` of transformers with its
    tokenizer and image processor, which expects pixels in [-1, 1]. Its data has captions
    (`CaptionedImages`), of which the tokenizer is made. Images with the same caption, such as two
    drawings of one thing, are each right for it.

    Args:
        resolution: height and width of the images in pixels.
        vision: shape of the vision transformer.
        text: shape of the text transformer.
        projection: size of the embeddings.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        flip: mirror training images; not where captions tell left from right.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = "clip", ("a CLIP's folder", "config.json")

    def __init__(
        self,
        resolution: int = 32,
        vision: VisionSettings = VisionSettings(),  # noqa: B008 (frozen)
        text: TextEncoderSettings = TextEncoderSettings(width=192, layers=3),  # noqa: B008 (frozen)
        projection: int = 128,
        ema_decay: float = 0.999,
        flip: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, flip=flip, **training)
        self.resolution, self.text = resolution, text
        self.clip = build_clip(vision, text, resolution=resolution, projection=projection)
        self.tokenizer: CLIPTokenizer | None = None
        self.val_loss, self.val_accuracy = MeanMetric(), MeanMetric()
        self._ids: dict[str, Tensor] = {}
        self._shown: dict[str, tuple[Tensor, str]] = {}

    @property
    def trained_network(self) -> nn.Module:
        network: nn.Module = self.clip
        return network

    def setup(self, stage: str) -> None:
        """Make the tokenizer of the captions; one that is too long is told before any training."""
        captions = set(captions_of(self.trainer))
        self.tokenizer = train_tokenizer(captions, self.text.vocabulary, self.text.length)
        texts = sorted(captions)
        self._ids = dict(zip(texts, token_ids(self.tokenizer, texts), strict=True))

    def logits(self, x: Tensor, captions: list[str]) -> Tensor:
        """Scaled cosines of each image (B, 3, R, R) in [-1, 1] with each caption: (B, B)."""
        ids = torch.stack([self._ids[caption] for caption in captions]).to(self.device)
        out = self.clip(input_ids=ids, pixel_values=x)
        scale = self.clip.logit_scale.exp().clamp(max=HARDEST)
        return scale * out.image_embeds @ out.text_embeds.T

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """Of the images of the first batches, which the caption of each real one finds."""
        images, captions = zip(*self._shown.values(), strict=True)
        pool = to_float(torch.stack(images)).to(real)
        nearest = self.logits(pool, list(captions)).argmax(dim=0)
        return pool[nearest[first : first + len(real)]]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        if len(self._shown) < COUNT:  # As the pictures take their real images, each once.
            pairs = zip(batch["image"].cpu(), batch["caption"], strict=True)
            self._shown |= dict(zip(batch["key"], pairs, strict=True))
        x, _ = self.training_images(batch, batch_idx)
        loss = contrastive_loss(self.logits(x, batch["caption"]), batch["caption"])
        self.log("train/loss", loss, prog_bar=True)
        return finite(loss, self.global_step)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss, and how often the caption of an image is the nearest of the batch."""
        if not len(batch["image"]):  # What a process without images gets.
            return
        captions = batch["caption"]
        logits = self.logits(to_float(batch["image"]), captions)
        self.val_loss.update(contrastive_loss(logits, captions), len(captions))
        nearest = [captions[index] for index in logits.argmax(dim=1).tolist()]
        right = [a == b for a, b in zip(nearest, captions, strict=True)]
        self.val_accuracy.update(torch.tensor(right, dtype=torch.float32))

    def on_validation_epoch_end(self) -> None:
        """Log the means over all images."""
        for name, metric in (("val/loss", self.val_loss), ("val/accuracy", self.val_accuracy)):
            self.log(name, metric.compute(), prog_bar=True)
            metric.reset()

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        assert self.tokenizer is not None
        side = {"height": self.resolution, "width": self.resolution}
        processor = CLIPImageProcessor(
            size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        with whole_folder(folder, *self.mark) as made:
            save_half(self.clip, weights, "", made)
            self.tokenizer.save_pretrained(made)
            processor.save_pretrained(made)
            (made / "card.json").write_text(json.dumps(self.card(), indent=2) + "\n")
        return folder


def contrastive_loss(logits: Tensor, captions: list[str]) -> Tensor:
    """Cross-entropy of images against captions and of captions against images, their mean.

    Captions that occur several times share the target evenly (Radford et al. 2021, Fig. 3, has
    each once).

    Args:
        logits: (B, B), of each image with each caption.
        captions: B texts.
    """
    numbers = {caption: index for index, caption in enumerate(captions)}
    which = torch.tensor([numbers[caption] for caption in captions], device=logits.device)
    target = (which[:, None] == which[None, :]).float()
    target = target / target.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
