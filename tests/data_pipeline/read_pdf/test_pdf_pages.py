"""Pages of PDF files: text in reading order with boxes, image-only pages, broken and absurd files."""

import resource
import time
from pathlib import Path

import pypdfium2
import pytest

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.pdf import PdfOptions, read_pdf_bytes
from data_pipeline.build.read.pdf_files import PdfReader
from data_pipeline.build.read.pdf_text import reading_order

REAL = Path(__file__).parents[3] / "../shared/realdata/pdf"
real = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository")


def read(data: bytes, **options):
    return list(read_pdf_bytes(data, "a.pdf", source="s", options=PdfOptions(**options)))


def texts(item):
    return [s.text for s in item.sample.segments if s.type == "text"]


def two_columns(pdf, rowwise: bool, lines: int = 12) -> bytes:
    """A title over two columns of prose; `rowwise`: line beside line, as typewriters would."""
    left = [pdf.text(50, 700 - 14 * i, f"left column line {i} which has words enough") for i in range(lines)]
    right = [
        pdf.text(320, 700 - 14 * i, f"right column line {i} which has words enough") for i in range(lines)
    ]
    body = [c for pair in zip(left, right, strict=True) for c in pair] if rowwise else [*left, *right]
    title = pdf.text(50, 750, "A title that stands over both of the columns", 20)
    foot = pdf.text(
        50, 400, "A foot note that goes again across the whole width of the page, from left to right"
    )
    return title + b"".join(body) + foot


@pytest.mark.parametrize("rowwise", [True, False])
def test_columns_are_read_one_after_the_other(pdf, rowwise):
    (item,) = read(pdf.file([two_columns(pdf, rowwise)]))
    title, left, right, foot = texts(item)
    assert title == "A title that stands over both of the columns"
    assert left == " ".join(f"left column line {i} which has words enough" for i in range(12))
    assert right == " ".join(f"right column line {i} which has words enough" for i in range(12))
    assert foot.startswith("A foot note")
    boxes = [s.bbox for s in item.sample.segments if s.type == "text"]
    assert boxes[1][2] < 0.5 < boxes[2][0]
    assert boxes[0][3] < boxes[1][1] < boxes[1][3] < boxes[3][1]


def test_a_table_is_read_row_by_row(pdf):
    rows = b"".join(
        pdf.text(50, 700 - 14 * r, f"state {r}")
        + b"".join(pdf.text(150 + 90 * c, 700 - 14 * r, str(100 * r + c)) for c in range(5))
        for r in range(15)
    )
    (item,) = read(pdf.file([rows]))
    words = " ".join(texts(item)).split()
    expected = [w for r in range(15) for w in ["state", str(r), *(str(100 * r + c) for c in range(5))]]
    assert words == expected


def test_the_order_of_boxes_is_that_of_three_columns():
    boxes = [
        (0.05 + 0.32 * c, 0.2 + 0.02 * r, 0.32 + 0.32 * c, 0.215 + 0.02 * r)
        for r in range(8)
        for c in range(3)
    ]
    order = reading_order(boxes)
    assert order == [3 * r + c for c in range(3) for r in range(8)]
    assert reading_order(boxes[:5]) is None


@pytest.mark.parametrize(
    ("turn", "expected"), [(0, (0.1, 0.1)), (90, (0.9, 0.1)), (180, (0.9, 0.9)), (270, (0.1, 0.9))]
)
def test_boxes_are_those_of_the_page_as_it_is_seen(pdf, turn, expected):
    """A word near the upper left corner of a page whose box does not begin at zero, turned clockwise."""
    file = pdf.file([pdf.text(1060, 1090, "corner")], media="1000 200 1600 1200", extra=f"/Rotate {turn}")
    (item,) = read(file)
    (box,) = [s.bbox for s in item.sample.segments if s.type == "text"]
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    assert middle == pytest.approx(expected, abs=0.06)


def test_a_page_without_text_is_kept_as_its_picture(pdf):
    file = pdf.file([pdf.text(50, 700, "words"), b"1 0 0 rg 100 100 200 200 re f"])
    text, drawn = read(file)
    assert [s.type for s in text.sample.segments] == ["image", "text", "page_break"]
    assert [s.type for s in drawn.sample.segments] == ["image", "page_break"]
    assert [m.kind for m in drawn.sample.media] == ["page"]
    _, dropped = read(file, keep_image_only=False)
    assert dropped.fault.reason == "page without text"


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"PK\x03\x04", "unreadable file", "not a PDF"),
        (b"%PDF-1.7\nnothing else", "unreadable file", "broken"),
        (b"%PDF-1.7\n" + b"\xff" * 5000, "unreadable file", "broken"),
    ],
)
def test_what_is_no_pdf_says_so(data, reason, words):
    (item,) = read(data)
    assert item.fault.reason == reason
    assert words in item.fault.detail
    assert item.fault.bad


def test_a_pdf_that_asks_for_a_password_says_so(pdf):
    lock = (
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{'12' * 32}> /U <{'34' * 32}> >> /ID [<00> <00>]"
    )
    (item,) = read(pdf.file([b""], trailer=lock))
    assert (item.fault.reason, item.fault.bad) == ("encrypted PDF", True)


def test_every_truncation_of_a_pdf_is_a_page_or_a_reason(pdf):
    file = pdf.file([two_columns(pdf, True), pdf.text(9, 9, "x")], xobjects=[pdf.pixels("A", pdf.scene())])
    for end in range(0, len(file), 97):
        for item in read(file[:end], embedded_images=True):
            assert (item.sample is None) != (item.fault is None)
    changed = bytearray(file)
    for at in range(9, len(file), 61):
        changed[at] ^= 0x24
        for item in read(bytes(changed), embedded_images=True):
            assert (item.sample is None) != (item.fault is None)


@pytest.mark.parametrize(
    "media", ["0 0 2000000000 2000000000", "0 0 1e30 1e30", "0 0 100000 1", "0 0 0.001 0.001"]
)
def test_a_page_of_absurd_size_costs_no_memory(pdf, media):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (item,) = read(pdf.file([pdf.text(1, 1, "hello")], media=media), dpi=600)
    if item.fault is None:
        assert item.sample.media[0].nbytes < 4_000_000
    else:
        assert item.fault.reason in ("page of absurd size", "unreadable file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_ten_thousand_pages_are_read_or_counted_and_memory_does_not_grow(pdf):
    file = pdf.file([pdf.text(50, 700, "the same words")] * 10_000)
    begin = time.process_time()
    kept = refused = 0
    for item in read_pdf_bytes(file, "a.pdf", source="s", options=PdfOptions(max_pages=60, dpi=18)):
        kept += item.sample is not None
        refused += item.fault is not None and item.fault.reason == "beyond max_pages"
    assert (kept, refused) == (60, 9940)
    assert time.process_time() - begin < 100


def test_pages_are_read_the_same_every_time(pdf):
    file = pdf.file([two_columns(pdf, True)], xobjects=[pdf.pixels("A", pdf.scene())])
    assert read(file, embedded_images=True) == read(file, embedded_images=True)


def test_the_reader_names_files_below_its_root(tmp_path, pdf):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.PDF").write_bytes(pdf.file([pdf.text(50, 700, "words")]))
    (tmp_path / "b.txt").write_text("no")
    reader = PdfReader("p", "CC0", Tree.at(tmp_path), PdfOptions())
    assert reader.units() == ["deep/a.PDF"]
    assert [s.name for s in reader.inputs()] == ["deep/a.PDF"]
    (item,) = reader.read("deep/a.PDF")
    assert (item.sample.url, item.sample.license, item.where) == ("deep/a.PDF", "CC0", "page 1")


@real
def test_a_real_paper_of_two_columns_reads_column_after_column():
    """Nothing of the text is lost or repeated, and no paragraph reaches across the page."""
    data = (REAL / "pypdfsample_pdflatex-4-pages.pdf").read_bytes()
    items = read(data, dpi=36)
    assert len(items) == 4
    document = pypdfium2.PdfDocument(data)
    for item, page in zip(items, document, strict=True):
        found = " ".join(texts(item)).split()
        layer = page.get_textpage().get_text_range().replace("\ufffe", "-").replace("\x00", "").split()
        assert sorted(found) == sorted(layer)


@real
def test_real_tables_and_turned_pages_keep_their_rows():
    (item,) = read((REAL / "usgov_senate-expenditures.pdf").read_bytes(), dpi=36)
    wide = [s.bbox for s in item.sample.segments if s.type == "text"]
    assert all(x1 > x0 and y1 > y0 for x0, y0, x1, y1 in wide)
    assert sum((b[2] - b[0]) > 3 * (b[3] - b[1]) for b in wide) > len(wide) / 2, (
        "lines lie flat as they are seen"
    )


@real
@pytest.mark.parametrize("name", ["cmyk", "grayscale"])
def test_real_scans_are_kept_as_pages(name):
    (item,) = read((REAL / f"pypdfsample_{name}-image.pdf").read_bytes())
    assert [s.type for s in item.sample.segments] == ["image", "page_break"]
