"""Clip: images and texts in one space (Radford et al. 2021), by a CLIPModel of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from cyclelight.domains.hub import display_name, resolve
from cyclelight.domains.model_files import check_loaded, check_weights, without_bars
from cyclelight.errors import BadValue, MissingFile, first_line
from cyclelight.text.tokens import check_length, token_ids

FILES = [
    *("config.json", "preprocessor_config.json", "merges.txt"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json"),
    *("model.safetensors", "pytorch_model.bin"),
]
"""What is downloaded."""


class Clip(nn.Module):
    """A CLIP in float32, frozen.

    Args:
        path: a folder of transformers, such as CLIPModule's `clip/`, or `owner/name` or
            `owner/name@revision` on the Hugging Face Hub.
        argument: what errors are about; their messages begin with it.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is no CLIP; the message says which part is wrong.
    """

    def __init__(self, path: str, argument: str = "clip") -> None:
        super().__init__()
        folder = resolve(path, FILES, argument)
        for file in ("config.json", "preprocessor_config.json"):
            if not (folder / file).is_file():
                told = f"{argument}: {folder} is not a CLIP's folder: it has no {file}"
                raise MissingFile(argument, told)
        check_weights(folder, argument)
        self.name = display_name(path)
        self.model, tokenizer, processor = _load(folder, argument)
        self.tokenizer: CLIPTokenizer = tokenizer
        self.processor: Any = processor
        self.length = min(
            tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings
        )

    def check(self, texts: Sequence[str]) -> None:
        """Raises ValueError, with the text, if one is too long."""
        check_length(self.tokenizer, texts, self.length)

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) => unit vectors (B, D), float32, on the images' device."""
        batch = self.processor(images=images.movedim(-1, 1), return_tensors="pt")
        pixels = batch["pixel_values"].to(self.model.device)
        with torch.autocast(pixels.device.type, enabled=False):
            out = self.model.vision_model(pixel_values=pixels).pooler_output
            return F.normalize(self.model.visual_projection(out), dim=1).to(images.device)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """B texts => unit vectors (B, D), float32, on the CLIP's device.

        Raises:
            ValueError: one is too long.
        """
        ids = token_ids(self.tokenizer, texts, self.length).to(self.model.device)
        # What fills up follows the end, where the text is read off; nothing looks ahead.
        with torch.autocast(ids.device.type, enabled=False):
            out = self.model.text_model(input_ids=ids).pooler_output
            return F.normalize(self.model.text_projection(out), dim=1)


def _load(folder: Path, argument: str) -> tuple[Any, Any, Any]:
    """(model, tokenizer, image processor)."""
    kind: Any = CLIPModel
    try:
        with without_bars():
            model, report = kind.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises a dozen kinds for a bad folder
        told = f"{argument}: {folder} cannot be read: {first_line(error)}"
        raise BadValue(argument, told) from error
    check_loaded(report, folder, argument)
    return model.requires_grad_(False).eval(), tokenizer, processor
