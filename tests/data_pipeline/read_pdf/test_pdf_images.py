"""Pictures of PDF pages by themselves: their own bytes where these show what the page shows, in place."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.build.read.pdf import PdfOptions, read_pdf_bytes
from data_pipeline.build.split import Split, is_heldout, split_of
from data_pipeline.build.steps import Kept

REAL = Path(__file__).parents[3] / "../shared/realdata/pdf"


def read(data: bytes, **options):
    options = PdfOptions(embedded_images=True, **options)
    return list(read_pdf_bytes(data, "a.pdf", source="s", options=options))


def only_picture(pdf, xobject, matrix=b"q 120 0 0 80 50 600 cm /A Do Q", others=()):
    (item,) = read(pdf.file([matrix + pdf.text(50, 500, "words below")], xobjects=[*others, xobject]))
    assert item.cuts == ()
    assert [m.kind for m in item.sample.media] == ["page", "image"]
    return item.sample.image_bytes[1]


def difference(data: bytes, expected: Image.Image) -> float:
    found = Image.open(io.BytesIO(data)).convert("RGB").resize(expected.size)
    return float(np.abs(np.asarray(found, float) - np.asarray(expected.convert("RGB"), float)).mean())


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_given_as_it_lies_in_the_file(pdf, mode):
    data = pdf.encoded(pdf.scene(mode=mode))
    assert only_picture(pdf, pdf.jpeg("A", data)) == data


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_given_without_loss(pdf, mode):
    scene = pdf.scene(mode=mode)
    found = Image.open(io.BytesIO(only_picture(pdf, pdf.pixels("A", scene))))
    assert found.format == "PNG"
    assert found.mode == mode
    assert found.tobytes() == scene.tobytes()


def test_a_jpeg_that_the_page_shows_otherwise_is_given_as_the_page_shows_it(pdf):
    scene = pdf.scene()
    data = pdf.encoded(scene)
    upside_down = only_picture(pdf, pdf.jpeg("A", data), b"q 120 0 0 -80 50 680 cm /A Do Q")
    assert difference(upside_down, scene.transpose(Image.Transpose.FLIP_TOP_BOTTOM)) < 12
    inverted = only_picture(pdf, pdf.jpeg("A", data, "/Decode [1 0 1 0 1 0]"))
    assert difference(inverted, Image.eval(scene, lambda v: 255 - v)) < 12
    turned = only_picture(pdf, pdf.jpeg("A", data), b"q 0 120 -80 0 300 500 cm /A Do Q")
    assert difference(turned, scene.transpose(Image.Transpose.ROTATE_90)) < 12


def test_what_a_mask_hides_is_white_as_on_the_page(pdf):
    mask = Image.new("L", (120, 80), 0)
    mask.paste(255, (0, 0, 60, 80))
    found = only_picture(
        pdf, pdf.jpeg("A", pdf.encoded(pdf.scene()), "/SMask @M"), others=[pdf.pixels("M", mask)]
    )
    expected = pdf.scene()
    expected.paste("white", (60, 0, 120, 80))
    assert difference(found, expected) < 12


def test_four_colours_of_print_become_three(pdf):
    scene = pdf.scene()
    found = only_picture(pdf, pdf.jpeg("A", pdf.encoded(scene.convert("CMYK"))))
    image = Image.open(io.BytesIO(found))
    assert (image.format, image.mode) == ("PNG", "RGB")


def test_pictures_stand_in_the_order_of_the_page_with_their_boxes(pdf):
    a, b = pdf.jpeg("A", pdf.encoded(pdf.scene())), pdf.jpeg("B", pdf.encoded(pdf.scene(shift=200)))
    content = (
        pdf.text(50, 700, "first words") + pdf.text(50, 400, "second words") + pdf.text(50, 100, "last words")
        + pdf.show("B", 50, 200, 120, 80) + pdf.show("A", 50, 500, 120, 80)
    )  # fmt: skip
    (item,) = read(pdf.file([content], xobjects=[a, b]))
    shown = [s.text or item.sample.image_bytes[s.media] for s in item.sample.segments[1:-1]]
    assert shown == ["first words", a[2], "second words", b[2], "last words"]
    box = item.sample.segments[2].bbox
    assert box == pytest.approx([50 / 612, 1 - 580 / 792, 170 / 612, 1 - 500 / 792], abs=0.002)


def test_a_picture_stands_in_its_own_column(pdf):
    def column(x, y, name, lines):
        return b"".join(
            pdf.text(x, y - 14 * i, f"{name} column line {i} which has words enough") for i in range(lines)
        )

    content = column(50, 700, "left", 20) + column(320, 700, "right", 6) + pdf.show("A", 330, 480, 120, 80)
    content += column(320, 450, "below", 6)
    (item,) = read(pdf.file([content], xobjects=[pdf.jpeg("A", pdf.encoded(pdf.scene()))]))
    kinds = [(s.text or "picture").split()[0] for s in item.sample.segments[1:-1]]
    assert kinds == ["left", "right", "picture", "below"]


def test_a_picture_inside_a_form_has_the_box_of_the_page(pdf):
    form = ("F", "/Subtype /Form /BBox [0 0 1 1] /Matrix [2 0 0 2 0 0] /Resources << /XObject << /A @A >> >>",
            b"q 1 0 0 1 0 0 cm /A Do Q")  # fmt: skip
    image = pdf.jpeg("A", pdf.encoded(pdf.scene()))
    (item,) = read(pdf.file([b"q 60 0 0 40 50 600 cm /F Do Q"], xobjects=[image, form]))
    (segment,) = [s for s in item.sample.segments if s.type == "image" and s.bbox]
    assert segment.bbox[0] == pytest.approx(50 / 612, abs=0.01)
    assert segment.bbox[3] == pytest.approx(1 - 600 / 792, abs=0.01)


def test_a_picture_that_comes_again_is_given_once_in_a_document(pdf):
    logo = pdf.jpeg("A", pdf.encoded(pdf.scene()))
    page = pdf.show("A", 50, 700, 60, 40)
    first, second = read(
        pdf.file([page + pdf.text(9, 9, "a") + pdf.show("A", 200, 700, 60, 40), page], xobjects=[logo])
    )
    assert [m.kind for m in first.sample.media] == ["page", "image"]
    assert [m.kind for m in second.sample.media] == ["page"]
    reasons = [c.reason for item in (first, second) for c in item.cuts]
    assert reasons == ["image repeated in the document"] * 2


def test_a_scan_of_the_whole_page_is_the_page_alone(pdf):
    (item,) = read(pdf.file([pdf.show("A", 0, 0, 612, 792)], xobjects=[pdf.pixels("A", pdf.scene())]))
    assert [m.kind for m in item.sample.media] == ["page"]
    assert [c.reason for c in item.cuts] == ["image of the whole page"]


def test_caps_hold_before_a_pixel_is_unpacked(pdf):
    bomb = (
        "A",
        "/Subtype /Image /Width 60000 /Height 60000 /ColorSpace /DeviceRGB /BitsPerComponent 8",
        b"\0",
    )
    (item,) = read(pdf.file([pdf.show("A", 50, 600, 120, 80)], xobjects=[bomb]))
    assert [c.reason for c in item.cuts] == ["embedded image too large"]
    stretched = pdf.pixels("A", pdf.scene(4000, 2))
    (item,) = read(pdf.file([pdf.show("A", 50, 100, 1, 600)], xobjects=[stretched]))
    assert [c.reason for c in item.cuts] == ["embedded image too large"]
    flat = pdf.pixels("A", pdf.scene())
    (item,) = read(pdf.file([pdf.show("A", 50, 100, 0, 0)], xobjects=[flat]))
    assert [c.reason for c in item.cuts] == ["image of no size"]


def test_only_so_many_pictures_are_taken_of_a_page(pdf):
    pictures = [pdf.jpeg(f"I{n}", pdf.encoded(pdf.scene(shift=n * 20))) for n in range(6)]
    content = b"".join(pdf.show(f"I{n}", 20 + 90 * n, 600, 80, 60) for n in range(6))
    (item,) = read(pdf.file([content], xobjects=pictures), max_images=4)
    assert len(item.sample.media) == 5
    assert [c.reason for c in item.cuts] == ["too many images on a page"] * 2


def test_a_broken_picture_is_cut_and_the_page_stays(pdf):
    broken = ("A", "/Subtype /Image /Width 20 /Height 20 /ColorSpace /DeviceRGB /Filter /DCTDecode",
              b"\xff\xd8 no jpeg")  # fmt: skip
    (item,) = read(
        pdf.file([pdf.show("A", 50, 600, 120, 80) + pdf.text(50, 500, "words")], xobjects=[broken])
    )
    assert item.sample.text == "words"
    assert [m.kind for m in item.sample.media] == ["page"]
    assert len(item.cuts) == 1


def test_the_page_decides_the_split_and_the_other_sides_pictures_leave(pdf):
    pictures = [pdf.jpeg(f"I{n}", pdf.encoded(pdf.scene(shift=n * 12))) for n in range(12)]
    content = b"".join(pdf.show(f"I{n}", 20 + 45 * n, 600, 40, 30) for n in range(12))
    (item,) = read(pdf.file([content], xobjects=pictures))
    checked = CheckImages(ImageLimits()).judge(item.sample)
    assert isinstance(checked, Kept)
    sample = checked.sample
    sides = [is_heldout(m.media_id, 0.5) for m in sample.media]
    assert len(sample.media) == 13
    assert len(set(sides)) == 2, "without pictures of both sides this shows nothing"
    kept = Split(0.5).judge(sample)
    assert isinstance(kept, Kept)
    assert [is_heldout(m.media_id, 0.5) for m in kept.sample.media] == [s for s in sides if s == sides[0]]
    assert [c.reason for c in kept.cuts] == ["image of the other split"] * sides.count(not sides[0])
    assert split_of(kept.sample, 0.5) == ("heldout" if sides[0] else "train")
    assert {s.media for s in kept.sample.segments if s.type == "image"} == set(range(len(kept.sample.media)))


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository")
def test_the_picture_of_a_real_page_looks_as_on_the_page():
    (item,) = read((REAL / "pypdfsample_cmyk-image.pdf").read_bytes(), dpi=72)
    page, picture = (Image.open(io.BytesIO(b)).convert("RGB") for b in item.sample.image_bytes)
    box = next(s.bbox for s in item.sample.segments if s.bbox)
    corners = [round(v * side) for v, side in zip(box, (*page.size, *page.size), strict=True)]
    on_page = page.crop(corners).resize((64, 64))
    assert difference(_png(picture.resize((64, 64))), on_page) < 8


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
