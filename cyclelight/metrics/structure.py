"""Structure distance: how far the layout of an image is from its source's, by DINO's keys."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTModel

from cyclelight.diffusion.pixels import three_channels
from cyclelight.domains.hub import display_name, resolve
from cyclelight.domains.model_files import check_loaded, check_weights, without_bars
from cyclelight.errors import BadValue, MissingFile, first_line

FILES = ["config.json", "model.safetensors", "pytorch_model.bin"]
"""What is downloaded."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours."""


class Dino(nn.Module):
    """A vision transformer of transformers, of which the last layer's keys are seen; frozen.

    Args:
        path: a folder, or `owner/name` or `owner/name@revision` on the Hugging Face Hub; PIE-Bench
            has facebook/dino-vitb8.
        argument: what errors are about; their messages begin with it.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is no such network; the message says which part is wrong.
    """

    def __init__(self, path: str, argument: str = "dino") -> None:
        super().__init__()
        folder = resolve(path, FILES, argument)
        if not (folder / "config.json").is_file():
            raise MissingFile(argument, f"{argument}: {folder} is no ViT's: it has no config.json")
        check_weights(folder, argument)
        kind: Any = ViTModel
        try:
            with without_bars():
                self.model, report = kind.from_pretrained(
                    folder,
                    local_files_only=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                    add_pooling_layer=False,
                )
        except Exception as error:  # transformers raises a dozen kinds for a bad folder
            told = f"{argument}: {folder} cannot be read: {first_line(error)}"
            raise BadValue(argument, told) from error
        check_loaded(report, folder, argument)
        self.model.requires_grad_(False).eval()
        self.name, self.side = display_name(path), int(self.model.config.image_size)
        named = [(n.rpartition(".")[2], module) for n, module in self.model.named_modules()]
        self._keys = [module for name, module in named if name in ("k_proj", "key")][-1:]
        if not self._keys:
            raise BadValue(argument, f"{argument}: {folder} has no keys: it is no ViT")

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, C) => the last layer's keys of all tokens, (B, N, D), float32.

        Levels are 0 .. 255 where ImageNet's mean and deviation are of [0, 1]: so has the program
        of PIE-Bench it.
        """
        x = three_channels(images.movedim(-1, 1).float())
        x = F.interpolate(x, (self.side, self.side), mode="bilinear")
        shape = (1, 3, 1, 1)
        x = (x - x.new_tensor(MEAN).view(shape)) / x.new_tensor(STD).view(shape)
        seen: list[Tensor] = []
        hook = self._keys[0].register_forward_hook(lambda module, args, out: seen.append(out))
        try:
            with torch.autocast(x.device.type, enabled=False):
                self.model(pixel_values=x)
        finally:
            hook.remove()
        return seen[0]

    def forward(self, images: Tensor, sources: Tensor) -> Tensor:
        """The structure distance of each image from its source: float64 (B,), >= 0.

        The mean squared difference of both images' cosines between all pairs of keys (Tumanyan et
        al. 2022, Eq. 5), as PIE-Bench (Ju et al. 2024) takes it. Not verified against that program
        with its weights.
        """
        ours, theirs = (F.normalize(self.keys(x).double(), dim=2) for x in (images, sources))
        return (ours @ ours.mT - theirs @ theirs.mT).square().mean((1, 2))
