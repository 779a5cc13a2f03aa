"""Colours as an image file means them => sRGB, in which everything else here is reckoned.

What says nothing of its colours is taken as sRGB, as browsers take it.
"""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms

SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour spaces of ICC profiles, and the mode of the images that they are of."""
PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""Chromaticities of sRGB: x and y of white, red, green and blue."""
UNSEEN = 1
"""Levels of 255 by which a profile's colours may differ from sRGB's and be taken for the same."""
GAMMA_UNSEEN = 0.05
"""The same of a PNG's gamma, as a share; libpng's own threshold."""
# From linear Adobe RGB (1998) to linear sRGB; both have the white of D65.
ADOBE_TO_SRGB = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])
ADOBE_GAMMA = 563 / 256
NOT_SRGB = "; save it in sRGB"


def to_srgb(image: Image.Image) -> Image.Image:
    """L, LA, RGB, RGBA or CMYK in the colours that its file names => L, LA, RGB or RGBA in sRGB.

    Of what a file says, the first of these counts: its ICC profile; that it is sRGB; in Exif, that
    it is Adobe RGB; a PNG's gamma. Alpha stays as it is.

    Raises:
        ValueError: the profile cannot be used, or the colours are told by primaries alone.
    """
    info = image.info
    if info.get("icc_profile"):
        change: Callable[[Image.Image], Image.Image] = lambda i: _by_profile(i, info["icc_profile"])  # noqa: E731
    elif "srgb" in info:
        return image
    elif _is_adobe_rgb(image):
        change = _from_adobe_rgb
    elif "gamma" in info or "chromaticity" in info:
        _check_primaries(image)
        change = lambda i: _by_gamma(i, info.get("gamma", 1 / 2.2))  # noqa: E731
    else:
        return image
    if image.mode not in ("LA", "RGBA"):
        return change(image)
    alpha = image.getchannel("A")
    changed = change(image.convert(image.mode[:-1]))
    changed.putalpha(alpha)
    return changed


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        transform, mode = _transform(profile)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ValueError(f"its colour profile cannot be used: {error}{NOT_SRGB}") from error
    if image.mode != mode:
        if (image.mode, mode) != ("L", "RGB"):
            raise ValueError(f"its colour profile is of {mode} images, it is {image.mode}")
        image = image.convert("RGB")
    if transform is None:
        return image
    return transform.apply(image)


@lru_cache(maxsize=64)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """(what takes a profile's colours to sRGB, None if they are the same; the images' mode)."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in SPACES:
        raise ValueError(f"it is of {space} colours")
    mode = SPACES[space]
    transform = ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        # The cache of one pixel is not made for several threads, and a grey curve is "optimized"
        # to straight pieces, up to ten levels off.
        flags=ImageCms.Flags.NOCACHE | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else 0),
    )
    if mode == "CMYK":
        return transform, mode
    some = _some_colours(mode)
    there, here = (np.asarray(i, np.int16) for i in (transform.apply(some), some.convert("RGB")))
    # So that an image which says that it is sRGB keeps its very pixels.
    same = int(np.abs(there - here).max()) <= UNSEEN
    return None if same else transform, mode


def _some_colours(mode: str) -> Image.Image:
    """All greys, or a lattice of colours."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), -1)
    return Image.fromarray(lattice.reshape(1, -1, 3))


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether a camera's Exif says so: colour space 2, or unknown and the index R03 (DCF 2.0)."""
    if image.mode not in ("RGB", "RGBA") or "exif" not in image.info:
        return False
    exif = image.getexif()
    space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
    try:
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except KeyError:  # Of Pillow before 13, where there is none.
        index = None
    return space == 2 or (space == 0xFFFF and str(index).startswith("R03"))


def _from_adobe_rgb(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    linear = (np.arange(256, dtype=np.float32) / 255) ** np.float32(ADOBE_GAMMA)
    mixed = (linear[levels] @ ADOBE_TO_SRGB.T.astype(np.float32)).clip(0, 1)
    encoded = np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055)
    return Image.fromarray(_rounded(encoded * 255))


def _by_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """A PNG's samples are its light to the power of `gamma`; a screen's, to that of 1 / 2.2."""
    if not gamma > 0:
        raise ValueError(f"its gamma is {gamma}")
    exponent = 1 / (2.2 * gamma)
    if abs(exponent - 1) <= GAMMA_UNSEEN:
        return image
    table = _rounded(255 * (np.arange(256) / 255) ** exponent)
    return image.point(table.tolist() * len(image.getbands()))


def _check_primaries(image: Image.Image) -> None:
    """Raises ValueError if a colour image tells its colours by other primaries than sRGB's."""
    given = image.info.get("chromaticity")
    if given is None or image.mode in ("L", "LA"):
        return
    if max(abs(a - b) for a, b in zip(given, PRIMARIES, strict=True)) > 0.01:
        raise ValueError(f"its colours are told by primaries (cHRM) that are not sRGB's{NOT_SRGB}")


def _rounded(levels: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    return np.rint(levels).astype(np.uint8)
