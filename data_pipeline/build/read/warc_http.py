"""A raw record as what the crawl fetched: kind, address, date, headers, payload unpacked under a cap."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urljoin

from warcio.exceptions import ArchiveLoadFailed
from warcio.recordloader import ArcWarcRecord, ArcWarcRecordLoader
from warcio.statusandheaders import StatusAndHeadersParserException

from data_pipeline.build.read import packed
from data_pipeline.build.read.dom_image import FORMATS, sniff
from data_pipeline.build.read.warc_split import RawRecord

HTML = ("text/html", "application/xhtml+xml")
_UNTOLD = ("", "application/octet-stream", "binary/octet-stream", "text/plain", "unknown/unknown")
_REDIRECTS = (301, 302, 303, 307, 308)
# Those that a page's or an image's use depends on.
_KEPT = ("x-robots-tag", "tdm-reservation", "tdm-policy", "content-language", "content-type", "last-modified")
_LOADER = ArcWarcRecordLoader(verify_http=False, arc2warc=True)


@dataclass(frozen=True)
class WarcRecord:
    """What a record holds. `kind`: html, image, pdf, redirect, or the name of what is not read.

    `location` is where a redirect leads, or which address a revisit repeats; `digest` is the payload's, as
    the crawler gave it. `payload` is None where `problem` says why it cannot be had.
    """

    kind: str
    url: str = ""
    date: str | None = None
    media_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    payload: bytes | None = field(default=None, repr=False)
    problem: tuple[str, str] | None = None  # (reason, detail)
    location: str | None = None
    digest: str | None = None


def parse(raw: RawRecord, max_bytes: int) -> WarcRecord:
    """The record; its payload has at most `max_bytes`, or `problem` says that it has more."""
    try:
        record = _LOADER.parse_record_stream(io.BytesIO(raw.data))
    except (
        ArchiveLoadFailed,
        StatusAndHeadersParserException,
        EOFError,
        ValueError,
        AttributeError,
        IndexError,
    ) as e:  # of heads that break warcio's parser: no address, no status, dates of letters
        return WarcRecord("malformed", problem=("malformed record", str(e)[:120] or type(e).__name__))
    kind = record.rec_type or "malformed"
    said = record.rec_headers.get_header
    digest = (said("WARC-Payload-Digest") or "").strip() or None
    if kind == "revisit":
        repeated = (said("WARC-Refers-To-Target-URI") or "").strip(" <>") or None
        url = (said("WARC-Target-URI") or "").strip()
        return WarcRecord(kind, url, _date(record), location=repeated, digest=digest)
    if kind not in ("response", "resource"):
        return WarcRecord(kind if kind in _KNOWN else "other type of record")
    url = (said("WARC-Target-URI") or "").strip()
    if not url.lower().startswith(("http://", "https://")):
        return WarcRecord("no web address")
    fetched = WarcRecord(kind, url, _date(record), digest=digest)
    if record.http_headers is None:
        return _typed(fetched, record.content_type or "", {}, raw.data[raw.head :], max_bytes)
    status = _status(record)
    headers = {name.lower(): value.strip() for name, value in record.http_headers.headers}
    if status in _REDIRECTS and (location := headers.get("location")):
        return WarcRecord("redirect", url, fetched.date, location=_joined(url, location))
    if status != 200:
        return WarcRecord("status not 200")
    return _typed(
        fetched, headers.get("content-type", ""), headers, record.raw_stream.read(len(raw.data)), max_bytes
    )


_KNOWN = frozenset(
    "warcinfo request metadata revisit conversion continuation arc_header response resource".split()  # noqa: SIM905
)


def _typed(
    record: WarcRecord, content_type: str, headers: dict[str, str], body: bytes, max_bytes: int
) -> WarcRecord:
    """The record with its kind and payload. What is of no kind that is read is not unpacked."""
    media_type = content_type.split(";")[0].strip().lower()
    if media_type not in (*HTML, *FORMATS, "application/pdf", *_UNTOLD):
        return WarcRecord(
            "image of another format" if media_type.startswith("image/") else "other media type"
        )
    payload = unpacked(
        body, headers.get("transfer-encoding", ""), headers.get("content-encoding", ""), max_bytes
    )
    kept = {name: headers[name] for name in _KEPT if name in headers}
    if isinstance(payload, tuple):
        kind, data, problem = _kind(media_type, b""), None, payload
    else:
        kind, data, problem = _kind(media_type, payload), payload, None
    return replace(record, kind=kind, media_type=media_type, headers=kept, payload=data, problem=problem)


def _kind(media_type: str, payload: bytes) -> str:
    if media_type in HTML:
        return "html"
    if media_type in FORMATS:
        return "image"
    if media_type == "application/pdf" or payload.startswith(b"%PDF-"):
        return "pdf"
    if sniff(payload) is not None:
        return "image"
    start = payload[:512].lstrip().lower()
    return "html" if start.startswith((b"<!doctype html", b"<html")) else "other media type"


def unpacked(body: bytes, transfer: str, encoding: str, max_bytes: int) -> bytes | tuple[str, str]:
    """The payload without its transfer and content encodings, or (reason, detail).

    What was cut off in transfer is kept as far as it goes: browsers show it too.
    """
    if "chunked" in transfer.lower():
        body = dechunked(body)
    for name in reversed([e.strip().lower() for e in encoding.split(",")][:4]):
        if name in ("", "identity", "none"):
            continue
        if _is_plain(body):  # the crawler unpacked it and left the header as it was
            continue
        if not packed.is_known(name):
            known = ", ".join(packed.ENCODINGS)
            return "unsupported content encoding", f"{name[:20]!r} is none of {known}"
        try:
            found = packed.unpacked(body, name, max_bytes)
        except packed.Damaged as e:
            return "damaged content encoding", f"{name}: {e}"
        if found is None:
            return "payload too large", f"more than {max_bytes:,} bytes when unpacked"
        body = found
    if len(body) > max_bytes:
        return "payload too large", f"{len(body):,} bytes, at most {max_bytes:,} are read"
    return body


def dechunked(body: bytes) -> bytes:
    """The chunks joined; the body itself where it is not chunked after all."""
    pieces: list[bytes] = []
    at = 0
    while (line := body.find(b"\r\n", at, at + 128)) >= 0:
        try:
            size = int(body[at:line].split(b";")[0].strip(), 16)
        except ValueError:
            break
        if size <= 0:
            return b"".join(pieces)
        pieces.append(body[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
    return b"".join(pieces) if pieces else body


def _is_plain(body: bytes) -> bool:
    """Whether this is text, a PDF file or an image: what is packed holds control characters."""
    start = body[:256]
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"%PDF-")) or sniff(body) is not None:
        return True
    return not any(byte < 32 and byte not in b"\t\n\f\r" for byte in start)


def _status(record: ArcWarcRecord) -> int:
    code = record.http_headers.get_statuscode() or ""
    return int(code) if code.isascii() and code.isdigit() and len(code) == 3 else 0


def _date(record: ArcWarcRecord) -> str | None:
    date = record.rec_headers.get_header("WARC-Date")
    return date.strip()[:40] if date else None


def _joined(url: str, location: str) -> str | None:
    try:
        return urljoin(url, location.strip())
    except ValueError:
        return None
