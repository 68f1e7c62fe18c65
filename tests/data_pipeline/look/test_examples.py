"""Examples of what was dropped: few, small, the same every time, and harmless whatever the bytes are."""

import base64
import io
import json

import pytest
from PIL import Image

from data_pipeline.build.look.examples import (
    Example,
    Examples,
    beginning,
    read_examples,
    thumbnail,
    write_examples,
)
from data_pipeline.build.read.reading import Fault
from data_pipeline.sample import Sample, Segment


def fault(reason="image too small", detail="8x8, images.min_side is 16", n=0) -> Fault:
    return Fault(reason=reason, detail=detail, bad=False, file=f"{n}.png", where="record 1")


def decoded(jpeg: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(jpeg)), formats=["JPEG"])


def test_the_first_k_of_each_source_and_reason_are_kept(make):
    examples = Examples(k=2)
    for n in range(5):
        for source in ("a", "b"):
            examples.add_sample(source, fault(n=n), make.caption(n))
            examples.add_image(source, fault(n=n), make.document(n), make.png())
            examples.add_sample(source, fault("not an image", n=n), None)
    lines = list(examples.lines())
    assert [(e["source"], e["part"], e["reason"], e["file"]) for e in lines] == [
        (source, part, reason, f"{n}.png")
        for source in ("a", "b")
        for part, reason in (
            ("image", "image too small"), ("sample", "image too small"), ("sample", "not an image"),
        )
        for n in (0, 1)
    ]  # fmt: skip
    assert lines[2]["id"] == "cap0"
    assert lines[2]["text"] == make.caption(0).text
    assert lines[4]["images"] == []


def test_what_is_written_is_read_back_and_is_the_same_every_time(make, tmp_path):
    for directory in (tmp_path / "a", tmp_path / "b"):
        for task in range(2):
            examples = Examples()
            for n in range(4):
                examples.add_sample("caps", fault(n=n + 10 * task), make.caption(n))
            path = write_examples(directory, task, examples)
            assert path == f"examples/0000{task}.jsonl"
    for name in ("00000.jsonl", "00001.jsonl"):
        assert (tmp_path / "a/examples" / name).read_bytes() == (tmp_path / "b/examples" / name).read_bytes()
    found = read_examples(tmp_path / "a", tasks=2, k=4)
    assert [e.file for e in found] == ["0.png", "1.png", "2.png", "10.png"]
    assert len(read_examples(tmp_path / "a", tasks=1, k=4)) == 3


def test_a_damaged_file_of_examples_costs_only_its_bad_lines(make, tmp_path):
    examples = Examples()
    examples.add_sample("caps", fault(), make.caption(1))
    path = tmp_path / write_examples(tmp_path, 0, examples)
    good = json.loads(path.read_text())
    hostile = {**good, "images": [{"jpeg": '"><script>', "note": ""}]}
    path.write_bytes(path.read_bytes() + b"\xff\xfe{\n" + json.dumps(hostile).encode() + b"\n[1]\n")
    assert read_examples(tmp_path, tasks=1) == [Example(**good)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "I;16", "1", "CMYK"])
@pytest.mark.parametrize("size", [(4000, 100), (3, 5), (640, 480)])
def test_a_thumbnail_is_a_small_jpeg_whatever_the_picture(mode, size):
    out = io.BytesIO()
    picture = Image.new("L", size, 128).convert(mode) if mode != "I;16" else Image.new(mode, size, 128 * 256)
    picture.save(out, "JPEG" if mode == "CMYK" else "PNG")
    found = thumbnail(out.getvalue())
    assert found.jpeg is not None
    small = decoded(found.jpeg)
    assert max(small.size) <= 96
    assert max(small.size) == min(96, max(size))
    assert small.mode == "RGB"
    if mode != "1":
        assert all(abs(v - 128) <= 2 for v in small.resize((1, 1)).getpixel((0, 0)))


def test_transparent_parts_are_shown_over_white():
    out = io.BytesIO()
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(out, "PNG")
    assert decoded(thumbnail(out.getvalue()).jpeg).getpixel((16, 16)) == (255, 255, 255)


def test_a_bomb_is_not_decoded(monkeypatch):
    out = io.BytesIO()
    Image.new("1", (8000, 8000)).save(out, "PNG")  # 64 million pixels in a few kilobytes
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were unpacked"))
    found = thumbnail(out.getvalue())
    assert found.jpeg is None
    assert "8000x8000 pixels" in found.note


@pytest.mark.parametrize("format", ["TIFF", "BMP", "PPM", "ICO"])
def test_other_formats_are_not_decoded(format):
    out = io.BytesIO()
    Image.new("RGB", (32, 32)).save(out, format)
    assert thumbnail(out.getvalue()).jpeg is None


def test_no_bytes_of_an_image_make_a_thumbnail_fail(make):
    whole = make.png(64, 64)
    for n in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[n] ^= 0x55
        for data in (whole[:n], bytes(flipped)):
            found = thumbnail(data)
            assert found.jpeg is not None or found.note


def test_the_beginning_of_a_text_is_that_of_the_whole_text():
    segments = [Segment(type="text", text=f"part {n} " * 9) for n in range(30)]
    sample = Sample(id="s", kind="text", source="t", segments=tuple(segments))
    assert beginning(sample) == sample.text[:300] + "…"
    short = Sample(id="s", kind="text", source="t", segments=(Segment(type="text", text="x" * 300),))
    assert beginning(short) == "x" * 300
