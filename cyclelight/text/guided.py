"""Guided: texts and their scales closed into a denoiser (classifier-free guidance)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cyclelight.diffusion.denoiser import NetworkDenoiser, Prediction
from cyclelight.diffusion.schedule import NoiseSchedule

Embeddings = tuple[Tensor, ...]
"""What a network is told of B texts: tensors (B, ...), in the order in which it takes them."""


class Guided(nn.Module):
    """A denoiser that has been given a text and a scale for each image of a batch.

        eps = eps(negative) + scale (eps(text) - eps(negative))

    (Ho and Salimans 2022, Eq. 6, whose w is scale - 1.) Both are asked for in one call. An image
    whose scale is 1 needs the first alone, and costs one forward.

    Args:
        denoiser: called as (x_t, t, *embeddings).
        texts: of B texts, or of one that all images of any batch share.
        negatives: of what is led away from, such as the empty text; as many.
        scales: B numbers; 0 follows the negative text, 1 the text.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        texts: Embeddings,
        negatives: Embeddings,
        scales: Sequence[float],
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.texts, self.negatives, self.scales = texts, negatives, tuple(map(float, scales))

    @property
    def schedule(self) -> NoiseSchedule:
        """That of the network."""
        return self.denoiser.schedule

    def forward(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        """The guided prediction (N, C, H, W).

        Args:
            x_t: (N, C, H, W), N a multiple of B: several timesteps of the same images follow one
                another, the images in order.
            t: an integer, or (N,) integers.

        Raises:
            ValueError: N is no multiple of B.
        """
        times, rest = divmod(len(x_t), len(self.scales))
        if rest:
            raise ValueError(
                f"there must be a text for each image: got {len(self.scales)} texts, "
                f"{len(x_t)} images"
            )
        texts = _repeated(self.texts, times, x_t.device)
        scales = self.scales * times
        rows = [row for row, scale in enumerate(scales) if scale != 1]
        if not rows:
            return self.denoiser(x_t, t, *texts)
        negatives = [each[rows] for each in _repeated(self.negatives, times, x_t.device)]
        told = [torch.cat([text, none]) for text, none in zip(texts, negatives, strict=True)]
        t = torch.cat([t, t[rows]]) if isinstance(t, Tensor) else t
        said = self.denoiser(torch.cat([x_t, x_t[rows]]), t, *told).eps
        eps, led_from = said[: len(x_t)].clone(), said[len(x_t) :]
        scale = x_t.new_tensor([scales[row] for row in rows]).view(-1, 1, 1, 1)
        eps[rows] = led_from + scale * (eps[rows] - led_from)
        return Prediction(eps)


def _repeated(embeddings: Embeddings, times: int, device: torch.device) -> Embeddings:
    """Those of the texts, all of them `times` in turn."""
    return tuple(
        each.to(device).repeat(times, *[1] * (each.ndim - 1)) if times != 1 else each.to(device)
        for each in embeddings
    )
