"""The recipe obelics-like on a crawl of two files: pages in one, their pictures in the other."""

import base64
import io
from pathlib import Path

import pypdfium2 as pdfium
import pytest
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

GERMAN = """Der alte Turm steht am Fluss, und die Leute im Dorf sagen, dass er schon immer da war. Es gibt
nicht viele, die ihn noch kennen, aber wer ihn sieht, der vergisst ihn nicht. Im Winter ist es dort still."""


def page(*parts: str, head: str = "") -> bytes:
    """Texts, and pictures where a part names one."""
    body = "".join(
        f'<img src="{p}" alt="a view">' if p.startswith(("/", "data:")) else f"<p>{p}</p>" for p in parts
    )
    return f"<html><head><title>t</title>{head}</head><body>{body}</body></html>".encode()


def pdf() -> bytes:
    document = pdfium.PdfDocument.new()
    document.new_page(200, 240)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


class Crawl:
    """A WARC file as it is written: records in order, each a day later than the one before."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("wb")
        self.writer = WARCWriter(self.file, gzip=path.suffix == ".gz")
        self.day = 0

    def add(self, path: str, payload: bytes, media_type: str = "text/html") -> None:
        self.day += 1
        record = self.writer.create_warc_record(
            f"http://site.org{path}",
            "response",
            payload=io.BytesIO(payload),
            http_headers=StatusAndHeaders("200 OK", [("Content-Type", media_type)], protocol="HTTP/1.1"),
            warc_headers_dict={"WARC-Date": f"2024-01-{self.day:02d}T00:00:00Z"},
        )
        self.writer.write_record(record)


@pytest.fixture
def crawl(tmp_path, make) -> Path:
    blank = io.BytesIO()
    Image.new("RGB", (300, 300), "white").save(blank, "PNG")
    one, two = Crawl(tmp_path / "crawl/one.warc.gz"), Crawl(tmp_path / "crawl/deep/two.warc")
    for n in range(1, 16):
        two.add(f"/{n}.png", make.picture(n), "image/png")
    two.add("/banner.jpg", make.picture(99, 400, 210, "JPEG"), "image/jpeg")
    two.add("/small.png", make.picture(98, 120, 120), "image/png")
    two.add("/blank.png", blank.getvalue(), "image/png")
    # Twelve pages show the banner; each has a picture of its own.
    for n in range(1, 13):
        first, *rest = make.prose(n)
        one.add(f"/page{n}", page(first, f"/{n}.png", *rest, "/banner.jpg"))
    first, *rest = make.prose(20)
    cut_off = "data:image/png;base64," + base64.b64encode(make.picture(97)[:300]).decode()
    refused = ("/gone.png", "/small.png", "/blank.png", cut_off)
    one.add("/mixed", page(first, "/13.png", "Read more", *rest, *refused))
    one.add("/copy", page(first, "/13.png", *rest))  # all that the filters leave of the page before
    one.add("/set-early", page(*make.prose(21), "/14.png", "/15.png"))
    one.add("/set-late", page("/15.png", *make.prose(22), "/14.png"))
    near = make.prose(3, 60)
    one.add("/near-1", page(*near, "/1.png"))
    one.add("/near-2", page(*near[:-1], near[-1].replace("the", "a", 1), "/2.png"))
    one.add("/german", page(*3 * [GERMAN], "/1.png"))
    one.add("/kept-out", page(*make.prose(23), "/1.png", head='<meta name="robots" content="noindex">'))
    one.add("/bare", page(*make.prose(24)))
    one.add("/report.pdf", pdf(), "application/pdf")
    one.file.write(b"a record that was cut off")
    one.file.close()
    two.file.close()
    return tmp_path / "crawl"


def test_a_crawl_becomes_clean_documents_and_every_loss_has_its_reason(fovea_build, crawl, make):
    built = fovea_build("obelics-like", crawl, "tasks=3", "--workers", "2")
    shown = {s.url.removeprefix("http://site.org"): s for s in built.samples("pages")}
    assert shown.keys() == {*(f"/page{n}" for n in range(1, 13)), "/mixed", "/set-late", "/near-1"}
    # Text and picture in the order of the page, without the banner that every page has.
    first, *rest = make.prose(5)
    page5 = shown["/page5"]
    assert [s.text for s in page5.segments] == [first, None, *rest]
    (at,) = [s.media for s in page5.segments if s.type == "image"]
    assert page5.media[at].url == "http://site.org/5.png"
    assert page5.image_bytes[at] == make.picture(5)
    assert (page5.domain, page5.date, page5.lang) == ("site.org", "2024-01-05T00:00:00Z", "en")
    assert "Read more" not in shown["/mixed"].text
    samples, images = built.dropped("pages")
    assert samples == {
        "language not wanted": 1,
        "opted out (robots)": 1,
        "too few images": 1,
        "broken record": 1,
    }
    assert images == {
        "image not in the crawl": 1,
        "image too small": 1,
        "blank image": 1,
        "unreadable image": 1,
        "language not wanted": 1,
    }
    assert built.excluded() == {
        "copy of a document": 1,
        "same images as a later document": 1,
        "nearly the text of another document": 1,
        "image address too frequent": 12,
    }
    (sheet,) = built.samples("pdfs")
    assert (sheet.kind, sheet.url) == ("pdf", "http://site.org/report.pdf")
    assert [s.type for s in sheet.segments] == ["image", "page_break"]
