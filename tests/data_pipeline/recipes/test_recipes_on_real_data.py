"""The shipped recipes on real documents; what they refuse is counted here by other means."""

import io
import json
import mimetypes
from pathlib import Path

import pypdfium2 as pdfium
import pytest
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.view import samples

REAL = Path(__file__).parents[3] / "../shared/realdata"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository")


def test_real_crawls_without_pictures_are_dropped_page_by_page(fovea_build):
    built = fovea_build("obelics-like", REAL / "warc", code=4)  # nothing is kept
    assert built.samples("pages") == []
    assert built.dropped("pages") == ({"broken record": 1, "too few images": 5}, {})


def test_books_out_of_a_crawl_hold_the_pictures_of_the_books_on_disk_in_order(fovea_build, tmp_path):
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    with (crawl / "books.warc.gz").open("wb") as f:
        writer = WARCWriter(f, gzip=True)
        for path in sorted((REAL / "html_gutenberg").rglob("*.*")):
            fields = [("Content-Type", mimetypes.guess_type(path.name)[0] or "application/octet-stream")]
            record = writer.create_warc_record(
                f"http://books.org/{path.relative_to(REAL / 'html_gutenberg').as_posix()}",
                "response",
                payload=io.BytesIO(path.read_bytes()),
                http_headers=StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1"),
                warc_headers_dict={"WARC-Date": "2024-01-01T00:00:00Z"},
            )
            writer.write_record(record)
    # A book has more words than OBELICS takes of one document.
    open_rules = ("filters.preset=none", "images.max_uniform=1", "dedup=null", "heldout=0")
    built = fovea_build("obelics-like", crawl, *open_rules)
    source = {"name": "books", "kind": "html", "path": ".", "max_chars": 8000, "max_images": 8}
    recipe = BuildRecipe(name="books", heldout=0, sources=[source])
    build(recipe, tmp_path / "disk", root=REAL / "html_gutenberg")
    on_disk = pictures(list(samples(tmp_path / "disk")))
    assert sum(map(len, on_disk.values())) > 150
    in_crawl = pictures(built.samples("pages"))
    assert {url.removeprefix("http://books.org/"): found for url, found in in_crawl.items()} == on_disk


def pictures(found) -> dict[str, list[bytes]]:
    """By page, those of each sample in the order of its sequence."""
    of: dict[str, list[bytes]] = {}
    for sample in found:
        shown = [sample.image_bytes[s.media] for s in sample.segments if s.media is not None]
        of.setdefault(sample.url, []).extend(shown)
    return {url: shown for url, shown in of.items() if shown}


def test_real_captions_lose_the_pictures_that_are_small(fovea_build):
    folder = REAL / "openstax_astronomy"
    records = json.loads((folder / "captions.json").read_text())
    names = [r.get("file") or r.get("image") for r in records]
    sides = [min(Image.open(next(folder.rglob(Path(name).name))).size) for name in names]
    small = sum(side < 200 for side in sides)
    assert 0 < small < len(sides)
    built = fovea_build("captions", folder)
    assert built.dropped("pairs")[0] == {"image too small": small}
    shown = len(built.samples("pairs"))
    assert shown + sum(built.excluded().values()) == len(sides) - small


def test_real_photos_keep_all_their_captions(fovea_build):
    built = fovea_build("captions", REAL / "coco_cc")
    found = built.samples("pairs")
    assert len(found) == 40
    assert {sum(s.role == "recaption" for s in f.segments) for f in found} == {5}
    assert all(f.license for f in found)


def test_real_pdf_files_give_every_page(fovea_build):
    built = fovea_build("pdf", REAL / "pdf")
    pages = sum(len(pdfium.PdfDocument(p)) for p in (REAL / "pdf").glob("*.pdf"))
    assert len(built.samples("pages")) == pages
    assert built.dropped("pages")[0] == {}


def test_real_questions_are_all_kept(fovea_build):
    built = fovea_build("instruct", REAL / "vqa_rad")
    asked = json.loads((REAL / "vqa_rad/qa.json").read_text())
    assert len(built.samples("dialogues")) + sum(built.excluded().values()) == len(asked)
