"""From 8-bit pixels to what the networks eat, and back. The only file that knows value ranges.

uint8 HWC, [0, 255]  <->  float32 CHW, [-1, 1]
"""

import warnings
from hashlib import blake2b
from math import isfinite
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cyclelight.errors import BadValue, at_least, kind_of, one_of

FitMode = Literal["crop", "letterbox"]

BORDER = "white"
"""As behind transparent images: one background in the whole program."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode of images, by their channels."""


def to_float(image: npt.NDArray[np.uint8] | Tensor) -> Tensor:
    """(B)HWC, uint8 => (B)CHW, float32 [-1, 1]: x / 127.5 - 1.

    Raises:
        ValueError: not uint8, or not three or four dimensions.
    """
    pixels = torch.as_tensor(image)
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4):
        raise ValueError(
            f"to_float takes uint8 images (H, W, C) or (B, H, W, C), "
            f"got {pixels.dtype} of shape {tuple(pixels.shape)}"
        )
    # By a tensor, since GPUs multiply by the reciprocal of a number: other last bits than a CPU's.
    half = torch.full((), 127.5, device=pixels.device)
    return (pixels.float() / half - 1).movedim(-1, -3).contiguous()


def to_uint8(image: Tensor) -> Tensor:
    """(B)CHW, float [-1, 1] => (B)HWC, uint8, on the same device.

    The rounding rule: clamp to [-1, 1], then (x + 1) * 127.5 to the nearest integer, ties to even.
    It inverts `to_float` for all 256 values.

    Raises:
        ValueError: not floating point, not three or four dimensions, or not finite (a diverged
            network must not become a plausible black image).
    """
    if not image.is_floating_point() or image.ndim not in (3, 4):
        raise ValueError(
            f"to_uint8 takes float images (C, H, W) or (B, C, H, W), "
            f"got {image.dtype} of shape {tuple(image.shape)}"
        )
    if not torch.isfinite(image).all():
        raise ValueError("to_uint8 takes finite images, got NaN or infinite values")
    # In float32, since bfloat16 cannot tell neighbouring 8-bit values apart.
    levels = (image.detach().float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).movedim(-3, -1).contiguous()


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B)CHW, float [-1, 1] => one 8-bit image of Pillow each, RGB or grey; rounded as `to_uint8`.

    Raises:
        ValueError: they have not 1 or 3 channels, or as `to_uint8`.
    """
    if not isinstance(images, Tensor):
        raise BadValue("images", f"images must be a tensor, got {kind_of(images)}")
    pixels = to_uint8(images if images.ndim == 4 else images[None])
    if pixels.shape[-1] not in MODES:
        raise BadValue("images", f"images must have 1 or 3 channels, got {pixels.shape[-1]}")
    return [pil_image(each) for each in pixels]


LARGEST = 10.0
"""What images near [-1, 1] do not reach, however poor the model that made them."""


def check_images(name: str, images: object, channels: int, resolution: int, whose: str) -> None:
    """Raises ValueError, with what to do, unless these are images as everything here takes them.

    They are a tensor (B, channels, resolution, resolution), B at least 1, floating point, finite,
    and near [-1, 1]: what a model overshoots is let through, other ranges are not.

    Args:
        name: of the argument.
        images: whatever was given.
        channels: of an image.
        resolution: its side in pixels.
        whose: who takes them, in words.
    """
    wanted = f"(B, {channels}, {resolution}, {resolution})"
    if not isinstance(images, Tensor):
        raise BadValue(
            name,
            f"{name} must be a tensor {wanted} in [-1, 1], got {kind_of(images)}; "
            f"cyclelight.load_images makes one of files, folders and PIL images",
        )
    if not images.is_floating_point():
        raise BadValue(
            name,
            f"{name} must be floating point in [-1, 1], got {images.dtype}: "
            f"8-bit levels x become x / 127.5 - 1",
        )
    _check_shape(name, images, (channels, resolution, resolution), whose)
    if images.is_meta:
        return
    low, high = (float(edge) for edge in images.detach().aminmax())
    if not (isfinite(low) and isfinite(high)):
        raise BadValue(name, f"{name} must be finite, got NaN or infinite values")
    if max(-low, high) > LARGEST or (low >= 0 and high > 2):
        raise BadValue(
            name,
            f"{name} must lie in [-1, 1], got values from {low:.3g} to {high:.3g}; "
            f"8-bit levels x become x / 127.5 - 1",
        )
    if low >= 0 and low < high <= 1 and not _are_levels(images):
        warnings.warn(
            f"{name} have no value below 0: they must lie in [-1, 1]; if they lie in [0, 1], "
            f"x must become 2 x - 1",
            stacklevel=2,
        )


def _are_levels(images: Tensor) -> bool:
    """Whether they are 8-bit levels in [-1, 1], x / 127.5 - 1: 255 times that is odd."""
    halves = (images.detach() * 255 - 1) / 2
    return bool((halves - halves.round()).abs().max() < 0.02)


def check_states(name: str, states: object, shape: tuple[int, ...], whose: str) -> None:
    """Raises ValueError unless these are states of a chain: finite, floating point, (B, *shape)."""
    if not isinstance(states, Tensor) or not states.is_floating_point():
        got = states.dtype if isinstance(states, Tensor) else kind_of(states)
        raise BadValue(name, f"{name} must be a floating-point tensor, got {got}")
    _check_shape(name, states, shape, whose)
    if not states.is_meta and not states.isfinite().all():
        raise BadValue(name, f"{name} must be finite, got NaN or infinite values")


def _check_shape(name: str, values: Tensor, shape: tuple[int, ...], whose: str) -> None:
    if values.ndim != len(shape) + 1 or tuple(values.shape[1:]) != shape:
        hint = f"; of one image, {name}[None]" if tuple(values.shape) == shape else ""
        raise BadValue(
            name,
            f"{name} must have shape (B, {', '.join(map(str, shape))}) for {whose}, "
            f"got {tuple(values.shape)}{hint}",
        )
    if not len(values):
        raise BadValue(name, f"{name} must be at least one, got an empty batch")


def digest(pixels: Tensor) -> str:
    """16 hexadecimal digits of (H, W, C), uint8, by which to see that an image has changed.

    The first 64 bits of BLAKE2b of its bytes, row by row.
    """
    content = np.ascontiguousarray(pixels.cpu().numpy())
    return blake2b(content.data, digest_size=8).hexdigest()


def pil_image(pixels: Tensor) -> Image.Image:
    """(H, W, C), uint8 => Pillow's image: RGB of 3 channels, L of one."""
    squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return Image.fromarray(squeezed.cpu().numpy())


def three_channels(pixels: Tensor) -> Tensor:
    """(..., C) => (..., 3): grey as three equal channels, colours as they are."""
    return pixels.expand(*pixels.shape[:-1], 3) if pixels.shape[-1] == 1 else pixels


def fit_square(
    image: Image.Image, resolution: int, mode: FitMode = "crop", channels: int = 3
) -> Image.Image:
    """Any size => (resolution, resolution), 8-bit: RGB, or L if `channels` is 1.

    `crop` keeps the largest centred square; `letterbox` keeps the whole image, centred on white
    (`BORDER`). Resized with Pillow's bilinear filter, which is antialiased when it shrinks;
    an image that has the size already keeps its pixels. Grey is the luma of ITU-R 601,
    0.299 R + 0.587 G + 0.114 B, as Pillow reckons it.

    Raises:
        ValueError: `resolution` is not positive, `mode` is unknown, or `channels` neither 1 nor 3.
    """
    at_least(1, resolution=resolution)
    one_of(get_args(FitMode), mode=mode)
    if channels not in MODES:
        raise BadValue("channels", f"channels must be 1 or 3, got {channels}")
    if image.mode != MODES[channels]:  # Else it would be copied; so it would by cropping it whole.
        image = image.convert(MODES[channels])
    width, height = image.size
    if mode == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Cropped before resizing, lest the filter's window reach pixels outside of the square.
        if width != height:
            image = image.crop((left, top, left + side, top + side))
        return _resize(image, resolution, resolution)
    scale = resolution / max(width, height)
    inner = _resize(image, max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new(image.mode, (resolution, resolution), BORDER)
    canvas.paste(inner, ((resolution - inner.width) // 2, (resolution - inner.height) // 2))
    return canvas


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)
