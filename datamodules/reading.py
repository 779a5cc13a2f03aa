"""Image files of any kind to RGB."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE as BITS_PER_SAMPLE,
)
from PIL.TiffImagePlugin import (
    COMPRESSION,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
)
from torch import Tensor

from cyclelight.diffusion.pixels import FitMode, fit_square
from cyclelight.errors import at_least, one_of
from datamodules.colours import to_srgb

OnError = Literal["raise", "skip"]
Image.init()
# Not whatever Pillow knows: for EPS it runs Ghostscript, by any file's name.
FORMATS = [
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "QOI", "JPEG2000"),
    *(("AVIF",) if "AVIF" in Image.OPEN else ()),
]
"""What is read, by Pillow's names (an MPO is a JPEG to it); see `datamodules.listing.SUFFIXES`."""
SCALES = {"1": 255, "L;2": 85, "L;4": 17}
"""What Pillow multiplies grey samples of few bits by."""
SIGNED = 2  # A TIFF's sample format.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"\x00\x00\x00\x00IEND\xaeB`\x82"}
"""The last bytes of a file, by its format."""
SKIP_HINT = "on_error: skip leaves such files out"


@dataclass(frozen=True)
class FileContent:
    """The content of an image file that lies within another; `name` says where."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


def open_image(path: str | Path | FileContent) -> Image.Image:
    """Pillow's image of a file, or of the content of one, in one of `FORMATS`; not yet decoded."""
    source = io.BytesIO(path.content) if isinstance(path, FileContent) else path
    return Image.open(source, formats=FORMATS)


def read_image(path: str | Path | FileContent) -> Image.Image:
    """Any image file, or the content of one => RGB, 8-bit, upright, in sRGB.

    EXIF rotation is applied, and colours are converted, see `to_srgb`; transparency is laid on
    white; grey, palette and CMYK become RGB; 12-bit and 16-bit values are scaled from their whole
    range (16-bit colour by its upper eight bits, as Pillow reads it), float values from [0, 1].
    The first frame of several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or its values have no known range.
    """
    try:
        with open_image(path) as image:
            return prepare(image)
    except (FileNotFoundError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read image {path}: not in an image format known here") from error
    except Exception as error:  # Decoders raise nearly anything on a damaged file.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read image {path}: {reason}") from error


def looks_whole(path: str | Path) -> bool:
    """Whether a file is a JPEG or PNG from its header to its end; nothing in between is read.

    A hundredth of the time of decoding it finds what is no image, cut off, empty or forbidden;
    damage in the middle, colours or values that cannot be used are seen by `read_image` only.
    """
    try:
        with open_image(path) as image, open(path, "rb") as file:
            end = ENDS.get(image.format or "", b"")
            file.seek(-len(end), os.SEEK_END)
            return bool(end) and file.read() == end
    except Exception:  # Which one, `read_image` tells.
        return False


def prepare(image: Image.Image) -> Image.Image:
    """Pillow's image as `read_image` gives those of files: RGB, 8-bit, upright, in sRGB.

    Raises:
        ValueError: its values have no known range.
        OSError: it is one of a file that cannot be decoded.
    """
    storage = Storage.of(image)
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # Lest it be copied for nothing.
        image = ImageOps.exif_transpose(image)
    return _on_white(to_srgb(_eight_bits(image, storage)))


@dataclass(frozen=True)
class Storage:
    """How a file holds its samples, which Pillow's image does not tell.

    Args:
        bits: of a TIFF's sample; 16 of others.
        white_is_zero: whether a TIFF is a negative (PhotometricInterpretation 0).
        signed: whether a TIFF's integers are signed.
        raw: Pillow's name of the samples, such as `L;4`.
    """

    bits: int
    white_is_zero: bool
    signed: bool
    raw: str

    @classmethod
    def of(cls, image: Image.Image) -> "Storage":
        """Of an image that is open and not yet decoded.

        Raises:
            ValueError: Pillow would decode it wrongly.
        """
        tile = getattr(image, "tile", None)
        args = tile[0][3] if tile else ""
        raw = args if isinstance(args, str) else str(args[0]) if isinstance(args, tuple) else ""
        tags: Any = getattr(image, "tag_v2", {})
        bits = max(tags.get(BITS_PER_SAMPLE, (16,)))
        planar = tags.get(PLANAR_CONFIGURATION, 1) == 2 and len(image.getbands()) > 1
        if planar and bits > 8 and tags.get(COMPRESSION, 1) == 1:
            raise ValueError(f"{bits} bits in separate planes; save it with interleaved colours")
        return cls(
            bits,
            white_is_zero=tags.get(PHOTOMETRIC_INTERPRETATION) == 0,
            signed=SIGNED in tags.get(SAMPLEFORMAT, ()),
            raw=raw,
        )


def _eight_bits(image: Image.Image, storage: Storage) -> Image.Image:
    """An image of any mode => L, LA, RGB, RGBA or CMYK; with alpha where something is clear."""
    if storage.signed or (storage.bits == 32 and image.mode == "I"):
        raise ValueError(
            f"{'signed ' * storage.signed}{storage.bits}-bit integers, which say nothing of their "
            f"range; save it in 8 or 16 bits"
        )
    if image.mode == "F":
        return _from_floats(image, storage)
    if image.mode.startswith("I"):
        return _from_integers(image, storage)
    if image.mode in ("RGB", "L", "1") and "transparency" in image.info:
        return _with_clear_colour(image, storage)
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_integers(image: Image.Image, storage: Storage) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    white = 4095 if storage.raw == "I;12" else 65535
    if levels.min() < 0 or levels.max() > white:
        raise ValueError(f"integers from {levels.min()} to {levels.max()}, not of 0..{white}")
    if storage.white_is_zero:
        levels = white - levels
    # To the nearest; Pillow would clip at 255.
    grey = _grey((levels * 510 + white) // (2 * white), image)
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey


def _from_floats(image: Image.Image, storage: Storage) -> Image.Image:
    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= 1):  # So that NaN fails too.
        raise ValueError(
            f"floats from {values.min():g} to {values.max():g}, they must lie in [0, 1]"
        )
    return _grey(np.rint((1 - values if storage.white_is_zero else values) * 255), image)


def _grey(levels: npt.NDArray[np.generic], like: Image.Image) -> Image.Image:
    """(H, W), 0..255, with what the file of `like` says of its colours."""
    grey = Image.fromarray(levels.astype(np.uint8))
    grey.info = {name: value for name, value in like.info.items() if name != "transparency"}
    return grey


def _with_clear_colour(image: Image.Image, storage: Storage) -> Image.Image:
    """One colour of it is clear; Pillow compares it as stored with what it has made of that."""
    clear = image.info["transparency"]
    if storage.raw in SCALES:
        image = image.convert("L")
        image.info["transparency"] = clear * SCALES[storage.raw]
    elif storage.raw.startswith("RGB;16"):
        raise ValueError("16-bit colours of which one is clear; save it with an alpha channel")
    return image.convert("RGBA")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "RGBA"):
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def read_square(
    path: str | Path | FileContent, resolution: int, mode: FitMode, channels: int = 3
) -> Tensor:
    """Any image file => (resolution, resolution, channels), uint8; errors as `read_image`."""
    pixels = np.array(fit_square(read_image(path), resolution, mode, channels))
    return torch.from_numpy(pixels).view(resolution, resolution, channels)


def check_loading(batch_size: int, num_workers: int, fit_mode: str, on_error: str) -> None:
    """ValueError if an argument that all datamodules have is out of range."""
    at_least(1, batch_size=batch_size)
    at_least(0, num_workers=num_workers)
    one_of(get_args(FitMode), fit_mode=fit_mode)
    one_of(get_args(OnError), on_error=on_error)
