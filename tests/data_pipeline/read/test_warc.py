"""Crawls give their pages with their images, whatever file an image is in; copies, PDF records, opt-outs."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from warcio.archiveiterator import ArchiveIterator

from crawls import BLUE, PAGE, RED, page, read, reader, reasons, record, samples, write
from data_pipeline.build.read import warc_index
from data_pipeline.build.read.files import NOT_FETCHED, Tree
from data_pipeline.build.read.pdf import read_pdf_bytes
from data_pipeline.build.read.warc import WarcReader, WarcSource
from data_pipeline.build.scenes.documents import write_documents

REAL = Path(__file__).parents[3] / "../shared/realdata/warc"


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository")
@pytest.mark.parametrize("name", sorted(p.name for p in REAL.glob("*")) if REAL.is_dir() else [])
def test_real_files_give_what_warcio_counts(name, tmp_path):
    kinds, pages = Counter(), []
    with (REAL / name).open("rb") as f:
        for r in ArchiveIterator(f, arc2warc=True):
            mime = r.http_headers.get_header("content-type", "") if r.http_headers else ""
            is_page = r.rec_type == "response" and mime.startswith("text/html")
            other = "other media type" if r.rec_type == "response" else r.rec_type
            kinds["html" if is_page else other] += 1
            if is_page:
                url = r.rec_headers.get_header("WARC-Target-URI")
                pages.append((url, r.rec_headers.get_header("WARC-Date"), r.content_stream().read()))
    source = WarcSource(name="crawl", path=".")
    crawl = WarcReader(source, Tree.at(REAL / name), tmp_path)
    found = [(raw, r) for raw, r in crawl.web_records(name)]
    assert [(r.url, r.date, r.payload) for _, r in found if r.kind == "html"] == pages
    crawl.records.clear()
    items = list(crawl.read(name))
    broken = crawl.records.pop("broken", 0)
    assert broken == (1 if "trunc" in name else 0), "the one file whose Content-Length is wrong"
    assert crawl.records == kinds
    assert [i.sample.url for i in items if i.sample] == [url for url, _, _ in pages]
    assert Counter(crawl.records_by_kind()) == kinds + Counter(broken=broken)


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz"])
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")], ids=["page first", "images first"])
def test_a_page_gets_its_images_from_any_file_of_the_crawl(tmp_path, suffix, order):
    pages, pictures = (tmp_path / f"{name}{suffix}" for name in order)
    body = page(
        "<img src=red.png alt=R>",
        "<img src='https://c.net/b%20l.png#x'>",
        "<img src=/moved.png>",
        "<img src=gone.png>",
        "<img src=red.png>",
    )
    write(pages, record(PAGE, body))
    write(
        pictures,
        record("http://h.org/dir/red.png", RED, "image/png"),
        record("https://c.net:443/b%20l.png", BLUE, "image/png; x=1"),
        record("http://h.org/moved.png", b"", "text/html", "301 Moved", [("Location", "/moved2.png")]),
        record("http://h.org/moved2.png", b"", "", "302 Found", [("Location", "https://h.org/dir/red.png")]),
    )
    crawl = reader(tmp_path)
    (item,) = [i for unit in crawl.units() for i in crawl.read(unit)]
    sample = item.sample
    assert item.fault is None
    assert (sample.url, sample.domain, sample.date) == (PAGE, "h.org", "2024-05-06T07:08:09Z")
    shape = [s.text or s.media for s in sample.segments]
    assert shape == ["Some words of a page that are enough.", 0, 1, 0, 0, "The end."]
    assert sample.image_bytes == (RED, BLUE)
    assert [m.alt for m in sample.media] == ["R", None]
    assert [m.source_ref["path"] for m in sample.media] == [pictures.name] * 2
    assert [c.reason for c in item.cuts] == ["image not in the crawl"]
    assert sample.lineage[0]["reason"] == "image not in the crawl"
    assert crawl.records_by_kind() == {"html": 1, "image": 2, "redirect": 2}


def test_a_missing_image_can_stay_as_a_reference_to_be_fetched(tmp_path):
    write(tmp_path / "a.warc", record(PAGE, page("<img src=x.png alt=A>", "<img src=y.svg>")))
    (sample,) = samples(tmp_path, keep_missing=True)
    (media,) = sample.media
    assert (media.url, media.alt, media.error) == ("http://h.org/dir/x.png", "A", NOT_FETCHED)
    assert sample.image_bytes == (None,)
    assert [s.type for s in sample.segments] == ["text", "image", "text"]


def revisit(url: str, digest: str | None = None, refers_to: str | None = None) -> bytes:
    """A record as a crawler writes it that saw these bytes before (WARC 1.1, section 6.7)."""
    said = {"WARC-Payload-Digest": digest, "WARC-Refers-To-Target-URI": refers_to}
    lines = [f"{name}: {value}" for name, value in said.items() if value]
    profile = "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest"
    block = "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n"
    head = [
        "WARC/1.1",
        "WARC-Type: revisit",
        "WARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789012>",
        "WARC-Date: 2024-06-06T00:00:00Z",
        f"WARC-Target-URI: {url}",
        f"WARC-Profile: {profile}",
        *lines,
        "Content-Type: application/http; msgtype=response",
        f"Content-Length: {len(block)}",
    ]
    return ("\r\n".join(head) + "\r\n\r\n" + block + "\r\n\r\n").encode()


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz"])
def test_a_revisit_stands_for_the_image_that_it_repeats(tmp_path, suffix):
    names = ["by-digest", "by-address", "by-both", "digest-first", "gone", "nothing", "itself"]
    images = "".join(f"<img src=/{name}.png>" for name in names)
    write(
        tmp_path / f"a{suffix}",
        record(PAGE, page(images)),
        record("http://h.org/red.png", RED, "image/png"),
        record("http://h.org/blue.png", BLUE, "image/png"),
    )
    with (tmp_path / f"a{suffix}").open("rb") as f:
        of = {
            r.rec_headers.get_header("WARC-Target-URI"): r.rec_headers.get_header("WARC-Payload-Digest")
            for r in ArchiveIterator(f)
        }
    red, blue = of["http://h.org/red.png"], of["http://h.org/blue.png"]
    assert red != blue
    lost = "sha1:" + "A" * 32
    records = [
        revisit("http://h.org/by-digest.png", blue),
        revisit("http://h.org/by-address.png", None, "<http://h.org/red.png>"),
        revisit("http://h.org/by-both.png", lost, "http://h.org/blue.png"),
        revisit("http://h.org/digest-first.png", blue, "http://h.org/red.png"),
        revisit("http://h.org/gone.png", lost, "http://h.org/gone2.png"),
        revisit("http://h.org/nothing.png"),
        revisit("http://h.org/itself.png", lost, "http://h.org/itself.png"),
    ]
    (tmp_path / "b.warc").write_bytes(b"".join(records))
    crawl = reader(tmp_path)
    (item,) = [i for unit in crawl.units() for i in crawl.read(unit)]
    shown = [item.sample.image_bytes[s.media] for s in item.sample.segments if s.type == "image"]
    assert shown == [BLUE, RED, BLUE, BLUE]
    assert [c.reason for c in item.cuts] == ["image not in the crawl"] * 3
    assert crawl.records_by_kind() == {"html": 1, "image": 2, "revisit": 7}


def test_redirects_in_a_circle_end(tmp_path):
    circle = [("a", "b"), ("b", "a")]
    moved = (record(f"http://h.org/{x}", b"", "", "302 F", [("Location", f"/{y}")]) for x, y in circle)
    write(tmp_path / "a.warc", record(PAGE, page("<img src=/a>")), *moved)
    assert reasons(tmp_path) == {"image not in the crawl": 1}


def test_robots_and_tdm_keep_pages_and_images_out_and_are_noted_where_not_honoured(tmp_path):
    write(
        tmp_path / "a.warc",
        record(PAGE + "1", page(), headers=[("X-Robots-Tag", "googlebot: noindex, nofollow")]),
        record(PAGE + "2", b"<meta name=robots content=noai>" + page()),
        record(PAGE + "3", page(), headers=[("TDM-Reservation", "1")]),
        record(PAGE + "4", b"<meta name=robots content=noimageai>" + page("<img src=/r.png>")),
        record(PAGE + "5", page("<img src=/secret.png>", "<img src=/reserved.png>")),
        record(PAGE + "6", page("<img src=/r.png>"), headers=[("X-Robots-Tag", "nofollow")]),
        record("http://h.org/r.png", RED, "image/png"),
        record("http://h.org/secret.png", RED, "image/png", headers=[("X-Robots-Tag", "noai")]),
        record("http://h.org/reserved.png", RED, "image/png", headers=[("tdm-reservation", "1")]),
    )
    assert reasons(tmp_path) == {"opted out (robots)": 4, "opted out (TDM)": 2}
    assert [len(s.media) for s in samples(tmp_path)] == [0, 0, 1]
    kept = samples(tmp_path, honour_robots=False)
    assert [len(s.media) for s in kept] == [0, 0, 0, 1, 1, 1]
    said = [json.loads(s.general_metadata or "{}") for s in kept]
    assert [s.get("robots") for s in said] == [["noindex"], ["noai"], None, ["noimageai"], None, None]
    assert said[2]["tdm_reservation"] == 1


def test_records_of_other_kinds_are_counted_and_are_no_faults(tmp_path):
    write(
        tmp_path / "a.warc",
        record(PAGE, page()),
        record(PAGE, b"", status="404 Not Found"),
        record(PAGE, b"x", "image/svg+xml"),
        record(PAGE, b"%PDF-1.4", "application/octet-stream"),
        record(PAGE, b"%PDF-1.7", "application/pdf"),
        record(PAGE, RED, ""),
        record("dns:h.org", b"x", kind="resource"),
        record(PAGE, b"x", kind="metadata"),
    )
    crawl = reader(tmp_path)
    assert [i.fault for i in crawl.read("a.warc")] == [None]
    assert crawl.records == {
        "html": 1, "status not 200": 1, "image of another format": 1, "pdf": 2, "image": 1,
        "no web address": 1, "metadata": 1,
    }  # fmt: skip
    pdfs = [(r.url, r.payload) for _, r in crawl.web_records("a.warc") if r.kind == "pdf"]
    assert pdfs == [(PAGE, b"%PDF-1.4"), (PAGE, b"%PDF-1.7")]


def test_an_arc_file_gives_its_page_with_its_image(tmp_path):
    def arc(url: str, mime: str, body: bytes) -> bytes:
        block = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n%s" % (mime.encode(), body)
        return f"{url} 1.2.3.4 20080430204825 {mime} {len(block)}\n".encode() + block + b"\n"

    version = b"1 0 x\nURL IP-address Archive-date Content-type Archive-length\n\n"
    head = b"filedesc://a.arc 0.0.0.0 20080430204825 text/plain %d\n" % len(version) + version
    parts = [
        head,
        arc(PAGE, "text/html", page("<img src=r.png>")),
        arc("http://h.org/dir/r.png", "image/png", RED),
    ]
    (tmp_path / "plain.arc").write_bytes(b"".join(parts))
    (sample,) = samples(tmp_path)
    assert (sample.url, sample.date, sample.image_bytes) == (PAGE, "2008-04-30T20:48:25Z", (RED,))
    (tmp_path / "plain.arc").unlink()
    (tmp_path / "packed.arc.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    assert [s.image_bytes for s in samples(tmp_path)] == [(RED,)]


def test_the_index_is_taken_as_it_is_until_a_file_changes(tmp_path, monkeypatch):
    read_files = []
    original = warc_index._index_file
    monkeypatch.setattr(warc_index, "_index_file", lambda *a: (read_files.append(a[2].name), original(*a)))
    write(tmp_path / "a.warc", record("http://h.org/r.png", RED, "image/png"))
    write(tmp_path / "b.warc", record(PAGE, page("<img src=/r.png>")))
    assert [s.image_bytes for s in samples(tmp_path)] == [(RED,)]
    before = (tmp_path / "work/crawl" / warc_index.NAME).read_bytes()
    assert [s.image_bytes for s in samples(tmp_path)] == [(RED,)]
    assert read_files == ["a.warc", "b.warc"]
    assert (tmp_path / "work/crawl" / warc_index.NAME).read_bytes() == before
    write(tmp_path / "0.warc", record("http://h.org/r.png", BLUE, "image/png"))
    assert [s.image_bytes for s in samples(tmp_path)] == [(BLUE,)], "the first file that holds it"
    assert read_files == ["a.warc", "b.warc", "0.warc"], "what did not change is taken over"
    (tmp_path / "0.warc").unlink()
    assert [s.image_bytes for s in samples(tmp_path)] == [(RED,)]
    (tmp_path / "work/crawl" / warc_index.NAME).write_bytes(b"no database at all" * 999)
    assert [s.image_bytes for s in samples(tmp_path)] == [(RED,)]
    assert [p.name for p in (tmp_path / "work/crawl").iterdir()] == [warc_index.NAME]


def test_an_index_that_is_not_finished_does_not_exist(tmp_path, monkeypatch):
    write(tmp_path / "a.warc", record("http://h.org/r.png", RED, "image/png"), record(PAGE, page()))

    def die(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(warc_index.os, "fsync", die)
    (item,) = read(tmp_path)
    assert item.fault.reason == "unreadable file"
    assert list((tmp_path / "work/crawl").iterdir()) == []


def test_bytes_of_another_kind_under_an_image_address_are_cut(tmp_path):
    write(
        tmp_path / "a.warc",
        record(PAGE, page("<img src=/r.png>", "<img src='data:image/png;base64,AA'>")),
        record("http://h.org/r.png", b"<html>", "image/png"),
    )
    assert reasons(tmp_path) == {"not an image": 1, "embedded image": 1}


def pdf(tmp_path: Path) -> bytes:
    _, folder = write_documents(tmp_path / "raw", pages=0, pdfs=1, seed=0)
    return next(folder.glob("*.pdf")).read_bytes()


def test_pdf_records_are_pages_where_they_are_asked_for_and_no_index_is_built(tmp_path):
    data, where = pdf(tmp_path), tmp_path / "crawl"
    write(
        where / "a.warc.gz",
        record("http://h.org/a.pdf", data, "application/pdf"),
        record(PAGE, page()),
        record("http://h.org/b.pdf", data, "application/octet-stream"),
        record("http://h.org/a.pdf", data, "application/pdf"),
        record("http://h.org/cut.pdf", data[:60], "application/pdf"),
        record("http://h.org/no.pdf", data, "application/pdf", headers=[("X-Robots-Tag", "noai")]),
    )
    truth = [i.sample for i in read_pdf_bytes(data, "f", source="crawl")]
    items = read(where, records=("pdf",))
    found = [i.sample for i in items if i.fault is None]
    assert [s.url for s in found] == [
        u for u in ("a", "b", "a") for u in [f"http://h.org/{u}.pdf"] * len(truth)
    ]
    assert [(s.segments, s.image_bytes) for s in found] == 3 * [(s.segments, s.image_bytes) for s in truth]
    assert {(s.kind, s.domain, s.date) for s in found} == {("pdf", "h.org", "2024-05-06T07:08:09Z")}
    assert len({s.id for s in found}) == len(found)
    assert [(i.fault.reason, i.fault.bad) for i in items if i.fault] == [
        ("unreadable file", False), ("opted out (robots)", False)
    ]  # fmt: skip
    assert not (where / "work").exists()
    both = [i.sample.kind for i in read(where, records=("html", "pdf")) if i.sample]
    assert Counter(both) == {"text": 1, "pdf": len(found)}
    assert [s.kind for s in samples(where)] == ["text"]


def test_copies_of_a_record_in_two_files_have_ids_of_their_own(tmp_path):
    for name in ("a.warc", "b.warc.gz"):
        write(tmp_path / name, record(PAGE, page()))
    first, second = samples(tmp_path)
    assert (first.url, first.segments) == (second.url, second.segments)
    assert first.id != second.id
