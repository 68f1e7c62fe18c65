"""Small crawls: pages, pictures and records written with warcio, and what our reader gives of them."""

import io
from collections import Counter
from pathlib import Path

from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.warc import WarcReader, WarcSource

PAGE = "http://h.org/dir/page.html"

MAX_BYTES = 2**20


def png(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "PNG")
    return out.getvalue()


RED, BLUE = png("red"), png("blue")


def page(*images: str, words: str = "Some words of a page that are enough.") -> bytes:
    return f"<html><body><p>{words}</p>{''.join(images)}<p>The end.</p>".encode()


def record(url, payload, media_type="text/html", status="200 OK", headers=(), kind="response"):
    fields = [("Content-Type", media_type), *headers]
    http = StatusAndHeaders(status, fields, protocol="HTTP/1.1") if kind == "response" else None
    return {"uri": url, "record_type": kind, "payload": io.BytesIO(payload), "http_headers": http}


def write(path: Path, *records, packed: bool | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        writer = WARCWriter(f, gzip=path.suffix == ".gz" if packed is None else packed)
        for fields in records:
            writer.write_record(
                writer.create_warc_record(**fields, warc_headers_dict={"WARC-Date": "2024-05-06T07:08:09Z"})
            )
    return path


def reader(folder: Path, keep_missing: bool = False, **source) -> WarcReader:
    source = WarcSource(name="crawl", path=".", license="L", **source)
    return WarcReader(source, Tree.at(folder, max_bytes=MAX_BYTES), folder / "work", keep_missing)


def read(folder: Path, **options):
    crawl = reader(folder, **options)
    return [item for unit in crawl.units() for item in crawl.read(unit)]


def samples(folder: Path, **options):
    return [i.sample for i in read(folder, **options) if i.fault is None]


def reasons(folder: Path, **options) -> Counter:
    items = read(folder, **options)
    return Counter(f.reason for i in items for f in ([i.fault] if i.fault else i.cuts))
