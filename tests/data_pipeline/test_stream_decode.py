"""Pictures of every kind land upright in the square, and what is no picture is refused with a reason."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.decode import DecodeError, blank, decode

SPEC = ImageSpec(side=32, patch=8)


def encode(image: Image.Image, format: str = "PNG", **more) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **more)
    return out.getvalue()


def color(picture, y: int, x: int) -> list[int]:
    """The pixel as 0..255."""
    return ((picture.pixels[:, y, x] + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize(
    ("size", "patches"),
    [
        ((32, 32), (4, 4)),
        ((64, 32), (2, 4)),
        ((32, 64), (4, 2)),
        ((16, 9), (3, 4)),  # scaled up to 32 x 18: the third row of patches holds two rows of pixels
        ((1000, 1), (1, 4)),
        ((1, 1000), (4, 1)),
        ((1, 1), (4, 4)),
    ],
)
def test_shape_range_and_mask(size: tuple[int, int], patches: tuple[int, int]) -> None:
    picture = decode(encode(Image.new("RGB", size, "white")), SPEC)
    assert picture.pixels.dtype == torch.float32
    assert picture.pixels.shape == (3, 32, 32)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[: patches[0], : patches[1]] = True
    assert torch.equal(picture.patch_mask, expected)
    assert picture.pixels.max() == 1
    covered = expected.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert (picture.pixels[:, ~covered] == 0).all()


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
    picture = decode(encode(Image.new(mode, (8, 8), fill), format, **more), SPEC)
    assert np.abs(np.array(color(picture, 16, 16)) - expected).max() <= 2


def test_palette_transparency_becomes_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert color(decode(encode(image), SPEC), 3, 3) == [255, 0, 0]
    assert color(decode(encode(image, transparency=0), SPEC), 3, 3) == [255] * 3


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
    picture = decode(encode(stored, "JPEG", exif=exif, quality=95, subsampling=0), SPEC)
    assert picture.patch_mask.sum(dim=0).tolist() == [2, 2, 2, 2]
    red, blue, black = color(picture, 4, 8), color(picture, 12, 8), color(picture, 8, 24)
    assert red[0] > 230
    assert red[2] < 30
    assert blue[2] > 230
    assert blue[0] < 30
    assert max(black) < 30


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "lime")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert color(decode(data, SPEC), 0, 0) == [255, 0, 0]


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


def test_blank_stands_in() -> None:
    picture = blank(SPEC)
    assert picture.patch_mask.all()
    assert not picture.pixels.any()
