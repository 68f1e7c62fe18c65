"""Perceptual hashes against ImageHash, and against what they promise: small changes, few bits."""

import io
import zlib
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipeline.build.images import phash as p

REALDATA = Path(__file__).parents[3].parent / "shared" / "realdata"


def photos(n: int) -> list[bytes]:
    found = sorted((REALDATA / "coco_cc").glob("*.jpg"))
    if not found:
        pytest.skip(f"no photographs in {REALDATA}")
    return [f.read_bytes() for f in found[:n]]


def picture(seed: int, size: tuple[int, int] = (160, 120), mode: str = "RGB") -> Image.Image:
    """Soft shapes with some grain: no flat surface, no symmetry."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def differing(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_small_pictures_have_the_hash_of_imagehash_bit_for_bit() -> None:
    for seed in range(20):
        image = picture(seed, (100, 90))  # not reduced before the transform: the two must then agree
        assert p.perceptual_hash(image) == int(str(imagehash.phash(image)), 16)


def test_photographs_agree_with_imagehash_within_a_few_bits() -> None:
    bits = [
        differing(p.perceptual_hash(image), int(str(imagehash.phash(image)), 16))
        for image in (Image.open(io.BytesIO(d)) for d in photos(40))
    ]
    assert np.mean(bits) < 2
    assert max(bits) <= 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_has_a_hash(mode: str) -> None:
    image = picture(3).convert("L").convert("I").convert("I;16") if mode == "I;16" else picture(3, mode=mode)
    assert 0 < p.perceptual_hash(image) < 2**64


def test_a_transparent_picture_is_seen_over_white() -> None:
    opaque = picture(1)
    alpha = Image.new("L", opaque.size, 255)
    alpha.paste(0, (0, 0, 80, 120))
    clear = opaque.copy()
    clear.putalpha(alpha)
    white = opaque.copy()
    white.paste("white", (0, 0, 80, 120))
    assert p.perceptual_hash(clear) == p.perceptual_hash(white)


def test_orientation_in_the_header_is_applied() -> None:
    upright = picture(5)
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(out, "PNG", exif=exif)
    turned = p.perceptual_hash(Image.open(io.BytesIO(out.getvalue())))
    assert turned == p.perceptual_hash(upright)


def test_a_plain_surface_has_one_hash_whatever_its_size() -> None:
    found = {p.perceptual_hash(Image.new("RGB", s, "gray")) for s in ((20, 20), (333, 77), (640, 480))}
    assert found == {2**63}
    plain = p.thumbnail(Image.new("RGB", (50, 50), "gray"))
    assert p.similarity(plain.grey, plain.grey) == 0
    assert p.similarity(plain.grey, p.thumbnail(picture(1)).grey) == 0


def test_the_mirrored_hash_is_found_from_the_bits_alone() -> None:
    bits = []
    for data in photos(40):
        image = Image.open(io.BytesIO(data))
        mirror = p.perceptual_hash(ImageOps.mirror(image))
        bits.append(differing(mirror, p.mirrored_phash(p.perceptual_hash(image))))
        array = p.mirrored_phash(np.array([mirror], np.uint64))
        assert int(array[0]) == p.mirrored_phash(mirror)
    assert np.median(bits) <= 4


def test_a_reduced_decode_changes_few_bits_and_scaling_and_encoding_too() -> None:
    for data in photos(12):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        whole = p.perceptual_hash(image)
        small = p.decode_small(data)
        assert min(small.size) < min(image.size)
        assert differing(whole, p.perceptual_hash(small)) <= 6
        assert differing(whole, p.perceptual_hash(image.resize((200, 150)))) <= 8


def test_a_truncated_jpeg_is_noticed_at_reduced_size() -> None:
    data = jpeg(picture(2, (1200, 900)))
    assert p.decode_small(data).size == (150, 113)
    with pytest.raises(OSError, match="truncated"):
        p.decode_small(data[: len(data) * 2 // 3])


def test_too_many_pixels_and_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="160x120 pixels"):
        p.decode_small(jpeg(picture(1)), max_pixels=10_000)
    out = io.BytesIO()
    picture(1).save(out, "BMP")
    with pytest.raises(OSError):
        p.decode_small(out.getvalue())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_altered_bytes_are_an_error_of_two_kinds_or_still_a_picture() -> None:
    rng = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "WEBP", "GIF"):
        out = io.BytesIO()
        picture(1).save(out, form, exif=b"Exif\0\0II*\0broken") if form == "JPEG" else picture(1).save(
            out, form
        )
        whole = out.getvalue()
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(4, len(data), 8):
                data[place] = rng.integers(0, 256)
            try:
                image = p.decode_small(bytes(data))
            except (OSError, ValueError):
                continue
            assert p.perceptual_hash(image) >= 0


def test_a_header_of_absurd_size_is_refused() -> None:
    out = io.BytesIO()
    Image.new("1", (20, 20)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match="pixels"):
        p.decode_small(bytes(data))
