"""The recipe pdf on files with text and pictures, a scan, a repeated letterhead, and damaged ones."""

import io

import pypdfium2 as pdfium
import pytest
from PIL import Image

from data_pipeline.build.scenes.documents import write_documents
from data_pipeline.cli import main


def scan(picture: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(out, "PDF", resolution=100)
    return out.getvalue()


def letter(logo: bytes, n: int) -> bytes:
    """A page with the logo, each time at another place, so that no two pages look alike."""
    document = pdfium.PdfDocument.new()
    sheet = document.new_page(300, 400)
    image = pdfium.PdfImage.new(document)
    image.set_bitmap(pdfium.PdfBitmap.from_pil(Image.open(io.BytesIO(logo)).convert("RGB")))
    image.set_matrix(pdfium.PdfMatrix().scale(90, 75).translate(20 + 10 * n, 300 - 15 * n))
    sheet.insert_obj(image)
    sheet.gen_content()
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_every_page_is_a_sample_with_its_pictures_and_the_letterhead_leaves(fovea_build, tmp_path, make):
    inputs = tmp_path / "papers"
    _, sheets = write_documents(inputs, pages=0, pdfs=3, seed=1)
    truth = {
        p.name: [(page.get_textpage().get_text_range(), page.get_size()) for page in pdfium.PdfDocument(p)]
        for p in sheets.glob("*.pdf")
    }
    (inputs / "copy.pdf").write_bytes((sheets / "sheet-0000.pdf").read_bytes())
    (inputs / "scan.pdf").write_bytes(scan(make.picture(1, 600, 800)))
    for n in range(11):
        (inputs / f"letter-{n:02d}.pdf").write_bytes(letter(make.picture(2), n))

    built = fovea_build("pdf", inputs, "tasks=2")
    shown = built.samples("pages")
    by_file: dict[str, list] = {}
    for s in shown:
        by_file.setdefault(s.url.rpartition("/")[2], []).append(s)
    # Copies: the earlier one in the order of the files stays.
    assert {name: len(found) for name, found in by_file.items()} == {
        "copy.pdf": len(truth["sheet-0000.pdf"]),
        **{n: len(pages) for n, pages in truth.items() if n != "sheet-0000.pdf"},
        "scan.pdf": 1,
        **{f"letter-{n:02d}.pdf": 1 for n in range(11)},
    }
    for name, pages in truth.items():
        found = sorted(
            by_file["copy.pdf" if name == "sheet-0000.pdf" else name], key=lambda s: s.media[0].page
        )
        for sample, (text, (width, height)) in zip(found, pages, strict=True):
            assert sample.text.split() == text.split()
            rendered = Image.open(io.BytesIO(sample.image_bytes[0]))
            assert rendered.size == pytest.approx((width * 150 / 72, height * 150 / 72), abs=1)
            kinds = [m.kind for m in sample.media]
            assert kinds == ["page", "image"]
            assert all(s.bbox for s in sample.segments if s.text)
    (scanned,) = by_file["scan.pdf"]
    assert [s.type for s in scanned.segments] == ["image", "page_break"]
    for n in range(11):
        (sample,) = by_file[f"letter-{n:02d}.pdf"]
        assert [s.type for s in sample.segments] == ["image", "page_break"]
        assert sample.media[sample.segments[0].media].kind == "page"
    assert built.dropped("pages") == ({}, {"image of the whole page": 1})
    assert built.excluded() == {
        "copy of a document": len(truth["sheet-0000.pdf"]), "image too frequent": 11
    }  # fmt: skip


def test_damaged_files_stop_the_build_and_are_counted_when_they_are_left_out(fovea_build, tmp_path, capsys):
    _, sheets = write_documents(tmp_path / "papers", pages=0, pdfs=2, seed=2)
    (sheets / "sheet-0000.pdf").write_bytes((sheets / "sheet-0000.pdf").read_bytes()[:200])
    command = ["data", "build", "pdf", "--inputs", str(sheets), "--out", str(tmp_path / "stopped")]
    assert main(command) == 4
    assert "sheet-0000.pdf" in capsys.readouterr().err
    built = fovea_build("pdf", sheets, "--bad-inputs", "drop")
    assert built.dropped("pages") == ({"unreadable file": 1}, {})
    assert {s.url for s in built.samples("pages")} == {"sheet-0001.pdf"}
