"""Image files of any kind to RGB, and folders of them to a dataset."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cyclelight.diffusion.pixels import FitMode, digest, fit_square, to_float

OnError = Literal["raise", "skip"]
Files = list[tuple[str, Path]]
"""(key, path) of each image."""

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
)
MEMORY_LIMIT = 512 * 2**20
"""Bytes of decoded 8-bit pixels up to which a dataset stays in memory."""
PIECE = 1024
"""Images that are looked at between two looks at what was found."""
SKIP_HINT = "on_error: skip leaves such files out"


@dataclass(frozen=True)
class Encoded:
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


def read_image(path: str | Path | Encoded) -> Image.Image:
    """Any image file, or the content of one => RGB, 8-bit, upright.

    EXIF rotation is applied; transparency is laid on white; grey, palette and CMYK become RGB;
    16-bit values are scaled by 1/257 and float values from [0, 1]. The first frame of several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or its values have no known range.
    """
    try:
        with Image.open(io.BytesIO(path.content) if isinstance(path, Encoded) else path) as image:
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


def read_square(path: str | Path | Encoded, resolution: int, mode: FitMode) -> Tensor:
    """Any image file => (resolution, resolution, 3), uint8; errors as `read_image`."""
    return torch.from_numpy(np.array(fit_square(read_image(path), resolution, mode)))


class ImageItem(TypedDict):
    """image: (3, R, R), float32 [-1, 1]; key: names the image in the run; path: where it was."""

    image: Tensor
    key: str
    path: str


class SquareImages(Dataset[ImageItem]):
    """Image files as squares of one resolution.

    Every file is decoded once when the dataset is made: an unreadable one stops a run before it
    starts rather than hours later, and batches have no holes. That takes milliseconds per image,
    in threads; training or translating takes far longer. Up to `MEMORY_LIMIT` the decoded pixels
    stay in memory (3 R^2 bytes per image, in each process). Otherwise files are read anew when they
    are needed, and several processes share the first look at them: all must make the dataset.

    Args:
        files: (key, path) of each image, as from `list_images`, or its content in place of the
            path. Contents are let go once the pixels are in memory.
        resolution: side R in pixels.
        fit_mode: see `cyclelight.diffusion.pixels.fit_square`.
        on_error: `raise` a ValueError on an unreadable file, or `skip` it: then `skipped` lists
            (path, reason), and one warning tells.
        keep: whether pixels may stay in memory.
        hint: how to go on without an unreadable file; the error's end.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, Path | Encoded]],
        resolution: int,
        fit_mode: FitMode = "crop",
        on_error: OnError = "raise",
        *,
        keep: bool = True,
        hint: str = f" ({SKIP_HINT})",
    ) -> None:
        self.resolution, self.fit_mode = resolution, fit_mode
        shape = (len(files), resolution, resolution, 3)
        small = len(files) * 3 * resolution**2 <= MEMORY_LIMIT
        pixels = torch.empty(shape, dtype=torch.uint8) if keep and small else None
        digests = np.full(len(files), "", "S16")  # Of those that this process looks at.

        def decode(index: int) -> str | None:
            """The reason why the file cannot be read, if so."""
            try:
                square = read_square(files[index][1], resolution, fit_mode)
            except (ValueError, FileNotFoundError) as error:
                return str(error)
            digests[index] = digest(square)
            if pixels is not None:
                pixels[index] = square
            return None

        rank, processes = _process() if pixels is None else (0, 1)
        mine = range(rank, len(files), processes)
        reasons = _look(mine, decode, stop=on_error == "raise")
        if processes > 1:
            reasons = _pooled(reasons)
        if reasons and on_error == "raise":
            raise ValueError(f"{reasons[min(reasons)]}{hint}")
        good = [index for index in range(len(files)) if index not in reasons]
        self.files = [files[index] for index in good]
        if pixels is not None:
            self.files = [(key, _emptied(source)) for key, source in self.files]
        self._digests = digests[good]
        self.skipped = [(str(files[i][1]), reason) for i, reason in sorted(reasons.items())]
        self._pixels = pixels[good] if pixels is not None and self.skipped else pixels
        if self.skipped:
            told = "; ".join(reason for _, reason in self.skipped[:10])
            more = f"; and {len(self.skipped) - 10} more" if len(self.skipped) > 10 else ""
            rank_zero_warn(f"skipped {len(self.skipped)} of {len(files)} images: {told}{more}")

    @property
    def in_memory(self) -> bool:
        return self._pixels is not None

    def __len__(self) -> int:
        return len(self.files)

    def changed(self, known: Mapping[str, str]) -> set[str]:
        """The keys of images whose pixels have another digest than `known` has for their key.

        Of several processes all must ask, since each knows what it has looked at.
        """
        found = {
            index: key
            for index, (key, _) in enumerate(self.files)
            if self._digests[index] and known.get(key, now := self._digests[index].decode()) != now
        }
        return set((_pooled(found) if _process()[1] > 1 else found).values())

    def pixels(self, index: int) -> Tensor:
        """(R, R, 3), uint8."""
        if self._pixels is not None:
            return self._pixels[index]
        return read_square(self.files[index][1], self.resolution, self.fit_mode)

    def __getitem__(self, index: int) -> ImageItem:
        key, source = self.files[index]
        return {"image": to_float(self.pixels(index)), "key": key, "path": str(source)}


def _look(
    indices: Sequence[int], decode: Callable[[int], str | None], *, stop: bool
) -> dict[int, str]:
    """Why files cannot be read, by index; with `stop` no further than the first few found."""
    reasons: dict[int, str] = {}
    # In pieces, since a pool holds all that it was given.
    pieces = [indices[start : start + PIECE] for start in range(0, len(indices), PIECE)]
    hidden = None if _process()[0] == 0 else True  # None hides it where there is no terminal.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        bar = tqdm(pieces, "reading images", unit_scale=PIECE, delay=3, leave=False, disable=hidden)
        for piece in bar:
            found = zip(piece, pool.map(decode, piece), strict=True)
            reasons |= {index: reason for index, reason in found if reason is not None}
            if reasons and stop:
                break
    return reasons


def _emptied(source: Path | Encoded) -> Path | Encoded:
    """Where an image came from, without its content."""
    return Encoded(source.name, b"") if isinstance(source, Encoded) else source


def _process() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _pooled(found: dict[int, str]) -> dict[int, str]:
    """What all processes found, by index."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, found)
    return {index: text for part in parts for index, text in part.items()}


def check_loading(batch_size: int, num_workers: int, fit_mode: str, on_error: str) -> None:
    """ValueError if an argument that all datamodules have is out of range."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}")
    if fit_mode not in get_args(FitMode):
        raise ValueError(
            f"fit_mode must be one of {', '.join(get_args(FitMode))}, got {fit_mode!r}"
        )
    if on_error not in get_args(OnError):
        raise ValueError(
            f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}"
        )
