"""Files whose samples mean something else than they seem to: by tifffile, by the formats' texts."""

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from datamodules.reading import FileContent, read_image

tifffile = pytest.importorskip("tifffile")
RAMP = np.linspace(0, 1, 16).reshape(4, 4)
PRIMARIES = {  # x and y of red, green and blue; the white of all is D65.
    "sRGB": ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06)),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
}
D65, D50 = np.array([0.95047, 1.0, 1.08883]), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def read(path: Path) -> npt.NDArray[np.int64]:
    return np.asarray(read_image(path)).astype(np.int64)


def tiff(path: Path, stored: npt.NDArray[np.generic], photometric: str, **more: object) -> Path:
    tifffile.imwrite(path, stored, photometric=photometric, **more)
    return path


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_a_tiff_may_be_a_negative(tmp_path: Path, kind: str, compression: str | None) -> None:
    white = {"u1": 255, "u2": 65535, "f4": 1}[kind]
    for photometric, values in (("minisblack", RAMP), ("miniswhite", 1 - RAMP)):
        stored = (np.rint(values * white) if white > 1 else values).astype(kind)
        path = tiff(tmp_path / "a.tif", stored, photometric, compression=compression)
        np.testing.assert_allclose(read(path)[..., 0], RAMP * 255, atol=0.6)


def packed(values: npt.NDArray[np.int64], bits: int) -> bytes:
    """Rows of numbers, the first bits highest, each filled up to whole bytes."""
    size = -(-values.shape[1] * bits // 8)
    rows = ("".join(f"{value:0{bits}b}" for value in row).ljust(size * 8, "0") for row in values)
    return b"".join(int(row, 2).to_bytes(size, "big") for row in rows)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_a_tiff_of_few_or_many_bits_has_its_whole_range(
    tmp_path: Path, bits: int, compressed: bool
) -> None:
    levels = np.rint(RAMP * (2**bits - 1)).astype(np.int64)
    data = packed(levels, bits) if bits < 16 else levels.astype("<u2").tobytes()
    data = zlib.compress(data) if compressed else data
    tags = {256: 4, 257: 4, 258: bits, 259: 8 if compressed else 1, 262: 1, 273: 8, 277: 1}
    tags |= {278: 4, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data += b"\0" * (len(data) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path = tmp_path / "a.tif"
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    if bits in (1, 8, 16):  # As another program reads it, which knows the others with a package.
        np.testing.assert_array_equal(tifffile.imread(path), levels)
    np.testing.assert_allclose(read(path)[..., 0], levels / (2**bits - 1) * 255, atol=0.51)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("u4", "32-bit integers"),
        ("i4", "signed 32-bit integers"),
        ("i2", "signed 16-bit integers"),
        ("i1", "signed 8-bit integers"),
    ],
)
def test_integers_without_a_known_range_are_refused(tmp_path: Path, kind: str, reason: str) -> None:
    path = tiff(tmp_path / "a.tif", (RAMP * 127).astype(kind), "minisblack")
    with pytest.raises(ValueError, match=rf"a\.tif: {reason}.*save it in 8 or 16 bits"):
        read_image(path)


def test_deep_colours_in_planes_are_right_or_refused(tmp_path: Path) -> None:
    planes = np.stack([(RAMP * 65535).astype("u2")] * 3)
    how = {"planarconfig": "separate"}
    path = tiff(tmp_path / "zip.tif", planes, "rgb", compression="zlib", **how)
    np.testing.assert_allclose(read(path)[..., 1], RAMP * 255, atol=1)
    path = tiff(tmp_path / "plain.tif", planes, "rgb", **how)
    with pytest.raises(ValueError, match=r"plain\.tif: 16 bits in separate planes"):
        read_image(path)
    path = tiff(tmp_path / "8.tif", (planes >> 8).astype("u1"), "rgb", **how)
    np.testing.assert_allclose(read(path)[..., 1], RAMP * 255, atol=1)


def test_a_deep_portable_grey_map_and_jpeg_2000_have_their_whole_range(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1023\n" + struct.pack(">HHH", 0, 512, 1023))
    assert read(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, round(512 / 1023 * 255), 255]
    Image.fromarray((RAMP * 65535).astype("u2")).save(tmp_path / "a.jp2", irreversible=False)
    np.testing.assert_allclose(read(tmp_path / "a.jp2")[..., 0], RAMP * 255, atol=0.6)


def png(
    depth: int, colour: int, row: bytes, *more: tuple[bytes, bytes], width: int = 2
) -> FileContent:
    """A PNG of one row, made by hand: Pillow writes no such ones."""
    header = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    told = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return FileContent("a.png", b"\x89PNG\r\n\x1a\n" + b"".join(told))


GREY, COLOUR = 0, 2


@pytest.mark.parametrize(
    ("depth", "row", "clear", "levels"),
    [
        (16, struct.pack(">HH", 0x1234, 0xFF00), 0x1234, (255, 254)),
        (16, struct.pack(">HH", 0x1200, 0x1235), 0x1234, (18, 18)),  # Near is not equal.
        (8, bytes([10, 20]), 10, (255, 20)),
        (4, bytes([0x35]), 3, (255, 85)),
        (2, bytes([0b01_10_0000]), 1, (255, 170)),
        (1, bytes([0b01_000000]), 0, (255, 255)),
    ],
)
def test_a_clear_grey_is_white(depth: int, row: bytes, clear: int, levels: tuple[int, int]) -> None:
    image = read_image(png(depth, GREY, row, (b"tRNS", struct.pack(">H", clear))))
    assert np.asarray(image)[0].tolist() == [[level] * 3 for level in levels]


def test_a_clear_colour_is_white_or_refused() -> None:
    row, clear = bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert np.asarray(read_image(png(8, COLOUR, row, clear)))[0].tolist() == [[255] * 3, [4, 5, 6]]
    row, clear = struct.pack(">6H", *[0x1234] * 3, *[0x12FF] * 3), (b"tRNS", b"\x12\x34" * 3)
    with pytest.raises(ValueError, match=r"a\.png: 16-bit colours of which one is clear"):
        read_image(png(16, COLOUR, row, clear))


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> npt.NDArray[np.float64]:
    """The matrix from linear RGB to XYZ, by the primaries and the white of D65."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    scales: npt.NDArray[np.float64] = columns * np.linalg.solve(columns, D65)
    return scales


def expected(space: str, colours: npt.NDArray[np.int64], gamma: float) -> npt.NDArray[np.float64]:
    """sRGB levels of colours in a space with a power for its curve, in closed form."""
    linear = (colours / 255) ** gamma @ to_xyz(PRIMARIES[space]).T
    linear = (linear @ np.linalg.inv(to_xyz(PRIMARIES["sRGB"])).T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    levels: npt.NDArray[np.float64] = 255 * encoded
    return levels


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: str, gamma: float) -> bytes:
    """An ICC profile of version 2, by its specification: a matrix and a power, or a power alone."""
    white = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ D65)) @ BRADFORD
    text = b"test\0"
    tags = {b"cprt": b"text" + bytes(4) + text, b"wtpt": b"XYZ " + bytes(4) + fixed(*D50)}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    if space == "grey":
        tags[b"kTRC"] = curve
    else:
        for name, colour in zip("rgb", (white @ to_xyz(PRIMARIES[space])).T, strict=True):
            tags[name.encode() + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*colour)
            tags[name.encode() + b"TRC"] = curve
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    kind = b"GRAY" if space == "grey" else b"RGB "
    head = struct.pack(">I", start + len(data)) + bytes(4) + b"\x02\x40\0\0mntr" + kind + b"XYZ "
    head += bytes(12) + b"acsp" + bytes(28) + fixed(*D50) + bytes(48)
    return head[:128] + struct.pack(">I", len(tags)) + table + data


COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3))


@pytest.mark.parametrize("space", ["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "avif"])
def test_a_profile_is_converted_to_srgb(tmp_path: Path, space: str, suffix: str) -> None:
    exact = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "avif" else {}
    path = tmp_path / f"a.{suffix}"
    icc = profile(space, 2.2)
    if suffix == "avif":  # Not without loss; one colour is.
        Image.new("RGB", (16, 16), (200, 60, 60)).save(path, icc_profile=icc, **exact)
        wanted = expected(space, np.full((16, 16, 3), (200, 60, 60)), 563 / 256)
        np.testing.assert_allclose(read(path), wanted, atol=4)
        return
    Image.fromarray(COLOURS.astype("u1")).save(path, icc_profile=icc, **exact)
    # The curve of a profile has its gamma in 1/256: 2.2 is 563/256.
    np.testing.assert_allclose(read(path), expected(space, COLOURS, 563 / 256), atol=1.1)
    assert np.abs(read(path) - COLOURS).max() > 20


def test_alpha_and_palettes_keep_theirs(tmp_path: Path) -> None:
    icc = profile("Display P3", 2.2)
    for name, image in (
        ("rgba.png", Image.new("RGBA", (4, 4), (200, 60, 60, 51))),
        ("palette.png", Image.new("RGB", (4, 4), (200, 60, 60)).quantize(2)),
    ):
        image.save(tmp_path / name, icc_profile=icc)
        pure = expected("Display P3", np.array([[[200, 60, 60]]]), 563 / 256)[0, 0]
        share = 0.2 if image.mode == "RGBA" else 1
        wanted = np.broadcast_to(share * pure + (1 - share) * 255, (4, 4, 3))
        np.testing.assert_allclose(read(tmp_path / name), wanted, atol=1.1)


def test_a_profile_of_srgb_changes_nothing(tmp_path: Path) -> None:
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(COLOURS.astype("u1")).save(path, icc_profile=made)
        np.testing.assert_array_equal(read(path), COLOURS)


@pytest.mark.parametrize("deep", [False, True])
def test_greys_have_a_curve_too(tmp_path: Path, deep: bool) -> None:
    levels = np.arange(256, dtype=np.uint16)[None]
    stored = levels * 257 if deep else levels.astype("u1")
    path = tmp_path / "a.tif"
    Image.fromarray(stored).save(path, icc_profile=profile("grey", 1.0))
    linear = levels / 255
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(read(path)[..., 0], encoded * 255, atol=1.1)


@pytest.mark.parametrize(
    ("mode", "icc", "reason"),
    [
        ("RGB", b"no profile at all" * 20, "its colour profile cannot be used"),
        ("RGB", profile("grey", 2.2), "its colour profile is of L images, it is RGB"),
        ("CMYK", profile("Adobe RGB", 2.2), "its colour profile is of RGB images, it is CMYK"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(
    tmp_path: Path, mode: str, icc: bytes, reason: str
) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif", icc_profile=icc)
    with pytest.raises(ValueError, match=rf"a\.tif: {reason}"):
        read_image(tmp_path / "a.tif")


def test_a_grey_image_may_have_a_profile_of_colours(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 128).save(tmp_path / "a.tif", icc_profile=profile("Display P3", 1.0))
    wanted = expected("Display P3", np.full((4, 4, 3), 128), 1.0)
    np.testing.assert_allclose(read(tmp_path / "a.tif"), wanted, atol=1.1)


@pytest.mark.parametrize(("space", "index"), [(2, None), (0xFFFF, "R03")])
def test_a_camera_may_say_adobe_rgb_in_exif_alone(
    tmp_path: Path, space: int, index: str | None
) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0xA001: space} | ({} if index is None else {0xA005: {1: index}})
    Image.fromarray(COLOURS.astype("u1")).save(tmp_path / "a.png", exif=exif)
    wanted = expected("Adobe RGB", COLOURS, 563 / 256)
    np.testing.assert_allclose(read(tmp_path / "a.png"), wanted, atol=1.1)


def test_exif_that_says_srgb_or_nothing_changes_nothing(tmp_path: Path) -> None:
    for space in (1, 0xFFFF):
        exif = Image.Exif()
        exif[0x8769] = {0xA001: space}
        Image.fromarray(COLOURS.astype("u1")).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(read(tmp_path / "a.png"), COLOURS)


@pytest.mark.parametrize(
    ("more", "levels"),
    [
        ([(b"gAMA", struct.pack(">I", 45455))], (60, 128)),
        ([(b"gAMA", struct.pack(">I", 100000))], (132, 186)),  # 255 (v / 255)^(1 / 2.2)
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], (60, 128)),
    ],
)
def test_the_gamma_of_a_png(more: list[tuple[bytes, bytes]], levels: tuple[int, int]) -> None:
    image = read_image(png(8, GREY, bytes([60, 128]), *more))
    assert np.asarray(image)[0, :, 0].tolist() == list(levels)


def test_primaries_alone_are_those_of_srgb_or_refused() -> None:
    def chunk(*values: float) -> tuple[bytes, bytes]:
        return b"cHRM", b"".join(struct.pack(">I", round(value * 100000)) for value in values)

    row, white = bytes([1, 2, 3, 4, 5, 6]), (0.3127, 0.329)
    same = chunk(*white, *[value for xy in PRIMARIES["sRGB"] for value in xy])
    assert np.asarray(read_image(png(8, COLOUR, row, same)))[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    other = chunk(*white, *[value for xy in PRIMARIES["Adobe RGB"] for value in xy])
    with pytest.raises(ValueError, match=r"cHRM.*save it in sRGB"):
        read_image(png(8, COLOUR, row, other))


def test_a_program_in_an_images_clothes_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    ran = list[object]()
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: ran.append(a))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(eps)
    with Image.open(tmp_path / "a.png") as image:  # As Pillow would open it, and then run that.
        assert image.format == "EPS"
    with pytest.raises(ValueError, match=r"a\.png: not in an image format known here"):
        read_image(tmp_path / "a.png")
    assert not ran
