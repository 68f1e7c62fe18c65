"""Limits of images, what is found out about them, and how they leave their samples."""

import dataclasses
import io
import random

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.build.images.check import CheckImages, Facts, Refusal, inspect
from data_pipeline.build.images.header import image_format, orientation, read_header
from data_pipeline.build.images.limits import ImageLimits, tightened
from data_pipeline.build.images.phash import decode_small, perceptual_hash
from data_pipeline.build.images.sight import text_overlay, thumbnail, uniform
from data_pipeline.build.steps import Dropped, Kept
from data_pipeline.sample import Media, Sample, Segment


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 640, height: int = 480, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def realdata(request):
    folder = request.config.rootpath.parent / "shared/realdata"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


LIMITS = {
    "formats": ({"formats": ("JPEG",)}, photo(), {}, "image format not wanted"),
    "min_bytes": ({"min_bytes": 10**7}, photo(), {}, "image file too small"),
    "max_bytes": ({"max_bytes": 1000}, photo(), {}, "image file too large"),
    "max_pixels": ({"max_pixels": 1000}, photo(), {}, "image too large"),
    "max_memory": ({"max_memory": 10**6}, photo(), {}, "image too large"),
    "min_side": ({"min_side": 481}, photo(), {}, "image too small"),
    "min_width": ({"min_width": 641}, photo(), {}, "image too small"),
    "min_height": ({"min_height": 481}, photo(), {}, "image too small"),
    "max_side": ({"max_side": 639}, photo(), {}, "image too large"),
    "max_aspect": ({"max_aspect": 1.3}, photo(), {}, "image too elongated"),
    "animated": (
        {"animated": "drop"},
        photo(),
        {"save_all": True, "append_images": [photo(seed=1)]},
        "animated image",
    ),
    "max_uniform": ({"max_uniform": 0.98}, Image.new("RGB", (99, 99), "white"), {}, "blank image"),
}


@pytest.mark.parametrize("key", LIMITS)
def test_each_limit_refuses_with_its_reason_and_without_it_the_image_stays(key):
    limit, image, options, reason = LIMITS[key]
    data = encoded(image, **options)
    assert isinstance(inspect(data, ImageLimits()), Facts)
    found = inspect(data, ImageLimits(**limit))
    assert isinstance(found, Refusal)
    assert (found.reason, found.bad) == (reason, False)


@pytest.mark.parametrize("key", ["formats", "min_bytes", "min_side", "max_aspect", "animated", "max_uniform"])
def test_a_rendered_page_may_look_like_anything(key):
    limit, image, options, _ = LIMITS[key]
    assert isinstance(inspect(encoded(image, **options), ImageLimits(**limit), page=True), Facts)


@pytest.mark.parametrize("key", ["max_pixels", "max_memory", "max_bytes"])
def test_a_rendered_page_must_not_be_too_large_to_decode(key):
    limit, image, _, reason = LIMITS[key]
    assert inspect(encoded(image), ImageLimits(**limit), page=True).reason == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("size", [(37, 91), (640, 480)])
def test_the_header_is_read_as_pillow_reads_it(kind, size):
    for options in ({}, {"save_all": True, "append_images": [photo(*size, seed=1)]}):
        if kind == "JPEG":
            options = {"progressive": bool(options)}
        if kind == "WEBP" and not options:
            options = {"lossless": True}
        data = encoded(photo(*size), kind, **options)
        header = read_header(data, image_format(data))
        with Image.open(io.BytesIO(data)) as image:
            assert (header.format, header.width, header.height) == (image.format, *image.size)
            assert header.animated == getattr(image, "is_animated", False)


def test_headers_of_all_real_images_agree_with_pillow(realdata):
    files = [p for p in realdata.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif", ".webp")]
    assert len(files) > 200
    for path in files:
        data = path.read_bytes()
        header = read_header(data, image_format(data))
        with Image.open(path) as image:
            assert (header.width, header.height) == image.size, path
        assert isinstance(inspect(data, ImageLimits(min_side=1, max_aspect=100)), Facts), path


def test_the_orientation_is_read_as_pillow_reads_it():
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        exif[0x010E] = "something else"
        assert orientation(exif.tobytes()) == value
    assert orientation(None) == orientation(b"Exif\0\0II*\0\xff\xff\xff\xff") == 1


def test_a_turned_picture_has_the_hash_of_the_upright_one():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = photo()
    lying = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif.tobytes())
    mine = inspect(lying, ImageLimits()).phash
    assert (mine ^ inspect(encoded(upright), ImageLimits()).phash).bit_count() <= 2


def test_the_hash_of_the_thumbnail_is_that_of_the_picture(realdata):
    """Against this project's hash of the small decode (decontamination uses it) and against ImageHash."""
    near, reference = [], []
    for path in sorted((realdata / "coco_cc").glob("*.jpg")):
        data = path.read_bytes()
        mine = inspect(data, ImageLimits()).phash
        near.append((mine ^ perceptual_hash(decode_small(data))).bit_count())
        with Image.open(path) as image:
            bits = imagehash.phash(image).hash.flatten()
        reference.append((mine ^ int("".join("1" if b else "0" for b in bits), 2)).bit_count())
    assert max(near) <= 4
    assert np.mean(reference) <= 2


def test_a_sixteen_bit_picture_is_not_clipped_to_white():
    ramp = np.linspace(0, 65535, 256 * 64).astype(np.uint16).reshape(64, 256)
    with Image.open(io.BytesIO(encoded(Image.fromarray(ramp)))) as image:
        small = np.asarray(thumbnail(image))
    assert small.min() < 8
    assert small.max() > 247
    assert abs(small.mean() - 127) < 4


def test_black_letters_on_nothing_are_seen_over_white():
    logo = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    ImageDraw.Draw(logo).rectangle([20, 20, 120, 80], fill="black")
    assert uniform(thumbnail(logo)) == pytest.approx(1 - 61 * 101 / 20_000, abs=0.02)
    assert uniform(thumbnail(Image.new("RGBA", (200, 100), (0, 0, 0, 0)))) == 1.0


def test_uniform_is_the_share_of_the_median_colour():
    image = Image.new("RGB", (100, 100), (200, 100, 50))
    image.paste((200, 100, 80), (0, 0, 100, 30))
    assert uniform(image) == pytest.approx(0.7)
    grain = np.random.default_rng(0).integers(120, 129, (100, 100, 3)).astype(np.uint8)
    assert uniform(Image.fromarray(grain)) == 1.0


WORDS = "sale order now free shipping new arrivals visit our store best price preview sample limited".split()  # noqa: SIM905


def overlaid(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture with two to six lines of text, in one of the usual styles."""
    image = image.copy()
    draw, size = ImageDraw.Draw(image), rng.randint(image.height // 20, image.height // 9)
    font, light = ImageFont.load_default(size), rng.random() < 0.6
    colour, other = ("white", "black") if light else ("black", "white")
    lines, top = rng.randint(2, 6), rng.randint(0, image.height // 3)
    if style := rng.randint(0, 1):
        draw.rectangle([0, top, image.width, top + int(lines * size * 1.3)], fill=other)
    for k in range(lines):
        line = " ".join(rng.choices(WORDS, k=10))[: max(8, int(1.5 * image.width / size))]
        where = (image.width // 20, top + int(k * size * 1.3))
        draw.text(where, line, fill=colour, font=font, stroke_width=0 if style else 2, stroke_fill=other)
    return image


def test_text_over_photographs_is_found_and_photographs_stay(realdata):
    """At 0.7: at least 95 % of the photographs stay, and at least 70 % of those with text are found."""
    files = [*(realdata / "coco_cc").glob("*.jpg"), *(realdata / "vqa_rad/images").glob("*")]
    rng = random.Random(5)
    plain, written = [], []
    for path in sorted(files):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        plain.append(text_overlay(thumbnail(picture)))
        written.append(text_overlay(thumbnail(overlaid(picture, rng))))
    assert len(plain) > 80
    assert np.mean([s <= 0.7 for s in plain]) >= 0.95
    assert np.mean([s > 0.7 for s in written]) >= 0.70


def test_an_image_of_text_is_refused_where_the_limit_says_so():
    page = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(page)
    for y in range(10, 280, 24):
        draw.text(
            (10, y), "best price limited offer order now free shipping", "black", ImageFont.load_default(16)
        )
    assert inspect(encoded(page), ImageLimits(max_text_overlay=0.7)).reason == "text over the image"
    assert isinstance(inspect(encoded(photo()), ImageLimits(max_text_overlay=0.7)), Facts)


def test_both_limits_at_once_are_the_stricter_of_each():
    base = ImageLimits(min_side=100, max_aspect=4, animated="drop", formats=("JPEG", "GIF"))
    other = ImageLimits(min_side=50, max_aspect=2, max_side=999, formats=("PNG", "JPEG"))
    found = tightened(base, other)
    assert (found.min_side, found.max_aspect, found.max_side) == (100, 2, 999)
    assert (found.animated, found.formats) == ("drop", ("JPEG",))


def document(kind: str, *pictures: bytes) -> Sample:
    segments = [Segment(type="text", text="before")]
    segments += [Segment(type="image", media=i) for i in range(len(pictures))]
    return Sample(
        id="d",
        kind=kind,
        source="s",
        segments=(*segments, Segment(type="text", text="after")),
        media=tuple(Media(media_id=f"m{i}", scores={"clip": 0.3}) for i in range(len(pictures))),
        image_bytes=pictures,
    )


GOOD, BAD = encoded(photo()), b"<html>"


@pytest.mark.parametrize("kind", ["interleaved", "pdf"])
def test_a_document_loses_the_image_alone_and_its_segments_point_right(kind):
    sample = document(kind, BAD, GOOD, BAD)
    found = CheckImages(ImageLimits()).judge(sample)
    assert isinstance(found, Kept)
    assert [c.media for c in found.cuts] == [0, 2]
    assert [(s.type, s.text, s.media) for s in found.sample.segments] == [
        ("text", "before", None),
        ("image", None, 0),
        ("text", "after", None),
    ]
    (media,) = found.sample.media
    assert (media.media_id, media.mime, media.width, media.height) == ("m1", "image/png", 640, 480)
    assert set(media.scores) == {"clip", "text_overlay", "uniform"}
    assert media.phash == perceptual_hash(thumbnail(photo()))
    assert found.sample.image_bytes == (GOOD,)
    assert found.sample.lineage[-1]["action"] == "drop 2 image(s)"


@pytest.mark.parametrize("kind", ["caption", "instruct"])
def test_a_caption_or_dialogue_goes_with_its_image(kind):
    found = CheckImages(ImageLimits()).judge(document(kind, GOOD, BAD))
    assert isinstance(found, Dropped)
    assert (found.reason, found.bad, found.media) == ("not an image", True, 1)


def test_a_document_of_nothing_but_bad_images_is_dropped():
    only = dataclasses.replace(document("interleaved", BAD), segments=(Segment(type="image", media=0),))
    assert CheckImages(ImageLimits()).judge(only).reason == "no image left"


def test_a_source_can_have_limits_of_its_own():
    step = CheckImages(ImageLimits(), of_source={"s": ImageLimits(min_side=600)})
    assert [c.reason for c in step.judge(document("interleaved", GOOD)).cuts] == ["image too small"]
    other = dataclasses.replace(document("interleaved", GOOD), source="t")
    assert step.judge(other).cuts == ()
