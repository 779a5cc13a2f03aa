"""Image files of any kind to RGB, and folders of them to a dataset."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cyclelight.diffusion.pixels import FitMode, fit_square
from cyclelight.errors import at_least, one_of

OnError = Literal["raise", "skip"]
Files = list[tuple[str, Path]]
"""(key, path) of each image."""

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
)
SKIP_HINT = "on_error: skip leaves such files out"


@dataclass(frozen=True)
class FileContent:
    """The content of an image file that lies within another; `name` says where."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


def is_image_name(path: Path) -> bool:
    """Whether the name has a known suffix, in any case, and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def list_images(root: str | Path) -> Files:
    """The image files below `root` as (key, path), sorted by key.

    The key is the POSIX path relative to `root`, suffix included. Known suffixes in any case;
    hidden files and folders are left out.

    Raises:
        FileNotFoundError: `root` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder of images: {root}")
    relative = (path.relative_to(root) for path in root.rglob("*") if is_image_name(path))
    keys = (path for path in relative if not any(part.startswith(".") for part in path.parts))
    return sorted((key.as_posix(), root / key) for key in keys if (root / key).is_file())


def read_image(path: str | Path | FileContent) -> Image.Image:
    """Any image file, or the content of one => RGB, 8-bit, upright.

    EXIF rotation is applied; transparency is laid on white; grey, palette and CMYK become RGB;
    16-bit values are scaled by 1/257 and float values from [0, 1]. The first frame of several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or its values have no known range.
    """
    try:
        with Image.open(
            io.BytesIO(path.content) if isinstance(path, FileContent) else path
        ) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (FileNotFoundError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read image {path}: not in an image format known here") from error
    except Exception as error:  # Decoders raise nearly anything on a damaged file.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read image {path}: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(
                f"integers from {levels.min()} to {levels.max()}, known are 8-bit and 16-bit images"
            )
        return _grey((levels + 128) // 257)  # To the nearest; Pillow would clip at 255.
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # So that NaN fails too.
            raise ValueError(
                f"floats from {values.min():g} to {values.max():g}, they must lie in [0, 1]"
            )
        return _grey(np.rint(values * 255))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _grey(levels: npt.NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def read_square(path: str | Path | FileContent, resolution: int, mode: FitMode) -> Tensor:
    """Any image file => (resolution, resolution, 3), uint8; errors as `read_image`."""
    return torch.from_numpy(np.array(fit_square(read_image(path), resolution, mode)))


def check_loading(batch_size: int, num_workers: int, fit_mode: str, on_error: str) -> None:
    """ValueError if an argument that all datamodules have is out of range."""
    at_least(1, batch_size=batch_size)
    at_least(0, num_workers=num_workers)
    one_of(get_args(FitMode), fit_mode=fit_mode)
    one_of(get_args(OnError), on_error=on_error)
