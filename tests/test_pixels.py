import numpy as np
import pytest
import torch
from PIL import Image

from cyclelight.diffusion.pixels import fit_square, to_float, to_uint8


def test_all_256_values_survive_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).expand(16, 16, 3)
    assert torch.equal(to_uint8(to_float(levels)), levels)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_devices_make_the_same_values_to_the_last_bit(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    levels = torch.arange(256, dtype=torch.uint8, device=device).reshape(16, 16, 1)
    # Python's quotient, rounded to float32, is what IEEE division in float32 gives.
    quotients = torch.tensor([level / 127.5 for level in range(256)])
    assert torch.equal(to_float(levels).cpu().flatten(), quotients - 1)


def test_the_range_ends_at_minus_one_and_one() -> None:
    x = to_float(np.array([[[0, 51, 255]]], dtype=np.uint8))
    assert x.shape == (3, 1, 1) and x.dtype == torch.float32
    torch.testing.assert_close(x.flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_channels_move_with_and_without_a_batch() -> None:
    u = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    x = to_float(u)
    assert x.shape == (2, 3, 4, 5)
    assert to_float(u[1])[2, 3, 4] == u[1, 3, 4, 2] / 127.5 - 1
    assert torch.equal(to_uint8(x), u) and torch.equal(to_uint8(x[0]), u[0])


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (-7.0, 0),
        (7.0, 255),
        (0.0, 128),  # 127.5: the tie goes to the even one.
        (0.51 / 127.5 - 1, 1),
        (100.49 / 127.5 - 1, 100),
        (100.51 / 127.5 - 1, 101),
    ],
)
def test_rounding_is_to_the_nearest_and_clamped(value: float, level: int) -> None:
    assert to_uint8(torch.full((3, 1, 1), value)).tolist() == [[[level] * 3]]


def test_bfloat16_is_rounded_in_float32() -> None:
    x = torch.tensor([-1.0, 0.25, 0.99609375, 1.0], dtype=torch.bfloat16).reshape(1, 1, 4)
    assert to_uint8(x).flatten().tolist() == [0, 159, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_image_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        to_uint8(torch.full((3, 2, 2), bad))


def test_wrong_kinds_of_tensors_are_errors() -> None:
    with pytest.raises(ValueError, match="float32"):
        to_float(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="uint8"):
        to_uint8(torch.zeros(3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="shape"):
        to_uint8(torch.zeros(2, 2))


def three_bands() -> Image.Image:
    """24 x 8: red, green, blue squares side by side."""
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    for band in range(3):
        pixels[:, 8 * band : 8 * band + 8, band] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("resolution", [4, 8, 16])
@pytest.mark.parametrize("upright", [False, True])
def test_crop_takes_the_middle_and_nothing_beside_it(resolution: int, upright: bool) -> None:
    image = three_bands()
    if upright:
        image = image.transpose(Image.Transpose.ROTATE_90)
    square = np.asarray(fit_square(image, resolution, "crop"))
    assert square.shape == (resolution, resolution, 3)
    assert (square == [0, 255, 0]).all()


def test_letterbox_keeps_everything_on_white() -> None:
    square = np.asarray(fit_square(three_bands(), 24, "letterbox"))
    np.testing.assert_array_equal(square[8:16], np.asarray(three_bands()))
    assert (square[:8] == 255).all() and (square[16:] == 255).all()
    tiny = np.asarray(fit_square(Image.new("RGB", (1000, 1)), 10, "letterbox"))
    assert (tiny == 0).all(axis=(1, 2)).sum() == 1


def test_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for mode in ("crop", "letterbox"):
        np.testing.assert_array_equal(fit_square(Image.fromarray(pixels), 9, mode), pixels)


def test_shrinking_is_antialiased() -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    square = np.asarray(fit_square(Image.fromarray(checkers), 16))[2:-2, 2:-2]
    assert abs(square.astype(float) - 127.5).max() < 3


def test_bad_settings_are_errors() -> None:
    with pytest.raises(ValueError, match=r"resolution.*0"):
        fit_square(three_bands(), 0)
    with pytest.raises(ValueError, match=r"crop, letterbox.*'stretch'"):
        fit_square(three_bands(), 8, "stretch")  # type: ignore[arg-type]
