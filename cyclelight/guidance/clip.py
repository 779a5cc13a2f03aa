"""The energy of a text, by a CLIP."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from cyclelight.diffusion.noise import Noise
from cyclelight.domains.model_files import without_bars
from cyclelight.errors import BadValue, MissingFile, at_least, first_line
from cyclelight.guidance.augment import augment
from cyclelight.guidance.energy import Energy, file_digest


class ClipEnergy(Energy):
    """1 - the cosine of an image with a text by a CLIP, the mean over augmented copies.

    Args:
        clip: folder of a `CLIPModel` of transformers with its tokenizer and image processor, such
            as CLIPModule's `clip/`.
        prompt: the text.
        copies: augmented copies of each image, L; 0 judges the image itself.
        weight: by which it is multiplied in the sum; the published programs have 500.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a setting is out of range.
    """

    def __init__(self, clip: str, prompt: str, copies: int = 8, weight: float = 500.0) -> None:
        super().__init__(weight)
        at_least(0, copies=copies)
        if not (Path(clip) / "config.json").is_file():
            raise MissingFile("clip", f"clip: {clip} is not a CLIP's folder: it has no config.json")
        if not prompt.strip():
            raise BadValue("prompt", "prompt: the text is empty")
        self.clip, self.prompt, self.copies = clip, prompt, copies

    def load(self, resolution: int) -> None:
        try:
            with without_bars():
                model: Any = CLIPModel.from_pretrained(self.clip, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(self.clip, local_files_only=True)
            processor: Any = CLIPImageProcessor.from_pretrained(self.clip, local_files_only=True)
        except Exception as error:  # transformers raises a dozen kinds for a bad folder
            raise BadValue(
                "clip", f"clip: {self.clip} cannot be read: {first_line(error)}"
            ) from error
        self.model = model.float().requires_grad_(False)
        ids = tokenizer([self.prompt], return_tensors="pt", padding="max_length")["input_ids"]
        most = model.config.text_config.max_position_embeddings
        if ids.shape[1] > most:
            raise BadValue("prompt", f"prompt: {self.clip} takes {most} tokens, got {ids.shape[1]}")
        with torch.no_grad():
            text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        self.register_buffer("text", text, persistent=False)
        size = model.config.vision_config.image_size
        self.side = size
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std)
        )
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor, noise: Noise, step: int) -> Tensor:
        x = augment(images, self.copies, noise, step) if self.copies else images
        x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        pixels = ((x + 1) / 2 - self.mean) / self.std  # type: ignore[operator]
        out = self.model.vision_model(pixel_values=pixels).pooler_output
        cosine = F.cosine_similarity(self.model.visual_projection(out), self.text, dim=1)  # type: ignore[arg-type]
        return 1 - cosine.view(len(images), -1).mean(dim=1)

    def made_by(self) -> Mapping[str, str]:
        files = sorted(Path(self.clip).glob("*.safetensors"))
        return {"clip": " ".join(file_digest(file, "clip") for file in files)}
