"""Pictures of every kind come out upright, in patches, and what is no picture is refused with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.decode import GREY, DecodeError, Picture, blank, decode

SPEC = ImageSpec(longest_edge=32, patch=8)


def encode(image: Image.Image, format: str = "PNG", **more) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **more)
    return out.getvalue()


def whole(picture: Picture) -> np.ndarray:
    """uint8[H, W, 3] again, patch by patch."""
    rows, columns = picture.grid
    p = picture.patches.shape[-1]
    pixels = np.empty((rows * p, columns * p, 3), np.uint8)
    for n, patch in enumerate(picture.patches):
        y, x = n // columns * p, n % columns * p
        pixels[y : y + p, x : x + p] = patch.transpose(1, 2, 0)
    return pixels


def only(data: bytes | None, spec: ImageSpec = SPEC) -> np.ndarray:
    (picture,) = decode(data, spec)
    return whole(picture)


def color(pixels: np.ndarray, y: int, x: int) -> list[int]:
    return pixels[y, x].tolist()


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((32, 32), (4, 4)),
        ((64, 32), (2, 4)),
        ((32, 64), (4, 2)),
        ((16, 9), (1, 2)),  # not scaled up; the row of pixels below the first patches is left out
        ((1000, 1), (1, 4)),
        ((1, 1000), (4, 1)),
        ((1, 1), (1, 1)),
    ],
)
def test_shape_of_the_patches(size: tuple[int, int], grid: tuple[int, int]) -> None:
    (picture,) = decode(encode(Image.new("RGB", size, "white")), SPEC)
    assert picture.patches.dtype == np.uint8
    assert picture.patches.shape == (grid[0] * grid[1], 3, 8, 8)
    assert picture.grid == SPEC.grid(*size) == grid
    assert picture.patches.max() == 255


def test_a_picture_of_the_models_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    assert (only(encode(Image.fromarray(pixels))) == pixels).all()


def test_a_side_below_one_patch_is_padded_with_grey() -> None:
    pixels = only(encode(Image.new("RGB", (5, 20), "red")))
    assert pixels.shape == (16, 8, 3)
    assert (pixels[:, :5] == [255, 0, 0]).all()
    assert (pixels[:, 5:] == GREY).all()


@pytest.mark.parametrize(
    ("mode", "fill", "format", "expected"),
    [
        ("L", 100, "PNG", [100] * 3),
        ("1", 1, "PNG", [255] * 3),
        ("LA", (0, 0), "PNG", [255] * 3),
        ("RGBA", (255, 0, 0, 0), "PNG", [255] * 3),
        ("RGBA", (255, 0, 0, 255), "WEBP", [255, 0, 0]),
        ("RGB", (0, 0, 255), "GIF", [0, 0, 255]),
        ("CMYK", (0, 255, 255, 0), "JPEG", [255, 0, 0]),
        ("I;16", 32768, "PNG", [128] * 3),
    ],
)
def test_modes(mode: str, fill: object, format: str, expected: list[int]) -> None:
    more = {"lossless": True} if format == "WEBP" else {}
    pixels = only(encode(Image.new(mode, (8, 8), fill), format, **more))
    assert np.abs(np.array(color(pixels, 4, 4)) - expected).max() <= 2


def test_palette_transparency_becomes_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert color(only(encode(image)), 3, 3) == [255, 0, 0]
    assert color(only(encode(image, transparency=0)), 3, 3) == [255] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Rotate a picture away, tag it, and it must come back: red at the top left, blue at the bottom left."""
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste("red", (0, 0, 32, 16))
    upright.paste("blue", (0, 16, 32, 32))
    away = {2: 0, 3: 1 + 2, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each, as Transpose numbers
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(away[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = only(encode(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    assert pixels.shape == (16, 32, 3)
    red, blue, black = color(pixels, 4, 8), color(pixels, 12, 8), color(pixels, 8, 24)
    assert red[0] > 230
    assert red[2] < 30
    assert blue[2] > 230
    assert blue[0] < 30
    assert max(black) < 30


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "lime")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert color(only(data), 0, 0) == [255, 0, 0]


def test_bad_bytes_are_refused_with_a_reason() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    jpeg = encode(noise, "JPEG")
    cases = {
        "no bytes": [b"", None],
        "not an image": [
            b"<!DOCTYPE html><html></html>",
            encode(noise, "TIFF"),
            encode(noise, "BMP"),
            b"\xff\xd8",
        ],
        "broken image": [jpeg[: len(jpeg) // 2], encode(noise)[:200]],
        "too many pixels": [encode(Image.new("1", (1000, 1001)))],
    }
    spec = SPEC.model_copy(update={"max_pixels": 1_000_000})
    for reason, broken in cases.items():
        for data in broken:
            with pytest.raises(DecodeError) as e:
                decode(data, spec)
            assert e.value.reason == reason, data and data[:20]
    decode(encode(Image.new("1", (1000, 1000))), spec)


def test_altered_bytes_raise_nothing_but_decode_errors() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    spec = SPEC.model_copy(update={"max_pixels": 100_000})
    for format in ("JPEG", "PNG", "WEBP", "GIF"):
        good = np.frombuffer(encode(noise, format), dtype=np.uint8)
        for _ in range(150):
            data = good.copy()
            data[rng.integers(0, min(len(data), 300), 4)] = rng.integers(0, 256, 4)
            try:
                decode(data.tobytes(), spec)
            except DecodeError:
                continue


def test_blank_stands_in_with_the_planned_size() -> None:
    picture = blank(SPEC, (3, 2))
    assert picture.grid == (3, 2)
    assert picture.patches.shape == (6, 3, 8, 8)
    assert (picture.patches == GREY).all()
