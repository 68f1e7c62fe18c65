"""Pages, crawls and papers that are broken, endless or point outside."""

import functools
import gzip
import zlib

import numpy as np

from hostile.images import ESCAPE, KEPT

WORDS = "A paragraph of a page that is long enough to be kept by itself."


def html(body: str) -> bytes:
    return f"<!DOCTYPE html><title>t</title><p>{WORDS}</p>{body}".encode("utf-8", "surrogatepass")


def pages() -> dict[str | bytes, tuple[bytes, str, list[str]]]:
    return {
        "deep.html": (html("<div>" * 50_000 + "<p>the bottom of it</p>"), KEPT, []),
        "attributes.html": (html("<p " + " ".join(f"a{i}=1" for i in range(100_000)) + ">t</p>"), KEPT, []),
        "nul.html": (b"<p>\0\0\0</p>" + html(""), "unreadable file", []),
        "late-nul.html": (html("<p>" + "x" * 5000 + "\0\0\0</p>"), KEPT, []),
        "binary.html": (bytes(range(256)) * 8, "unreadable file", []),
        "zero-bytes.html": (b"", "unreadable file", []),
        "latin.html": (html("<p>caf\u00e9</p>").decode().encode("latin-1"), KEPT, []),
        "surrogate.html": (html("<p>&#xd800; and \ud800</p>"), KEPT, []),
        "script.html": (
            html("<script>document.write('x')</script><img src=x onerror=alert(1)>"),
            KEPT,
            ["missing image"],
        ),
        "refresh.html": (html("<meta http-equiv=refresh content='0;url=http://127.0.0.1/'>"), KEPT, []),
        "frames.html": (
            html("<iframe src=file:///etc/hostname></iframe><object data=../secret.jpg></object>"),
            KEPT,
            [],
        ),
        "away.html": (
            html("<img src=../secret.jpg><img src=/etc/hostname><img src=link.jpg>"),
            KEPT,
            ["path leaves the source"] * 3,
        ),
        "schemes.html": (
            html("<img src='pipe:id'><img src=file:///etc/hostname><img src=ftp://h/x.png>"),
            KEPT,
            ["remote image"] * 3,
        ),
        "datauri.html": (
            html("<img src='data:image/png;base64,@@@@'><img src='data:text/html,<script>'>"),
            KEPT,
            ["embedded image"] * 2,
        ),
        "broken-image.html": (html("<img src=short.jpg>"), KEPT, ["unreadable image"]),
        "pipe.html": (html("<img src=pipe.jpg>"), KEPT, ["missing image"]),
        f"line\nbreak {ESCAPE}.html": (html(f"<img src='{ESCAPE}.png'>"), KEPT, ["missing image"]),
        b"no-utf8-\xff.html": (html(""), KEPT, []),
    }


def response(
    url: str, payload: bytes, kind: str = "text/html", more: str = "", length: int | None = None
) -> bytes:
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + payload
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http) if length is None else length}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


@functools.cache
def crawls() -> dict[str, tuple[bytes, list[str]]]:
    sound = response("http://h.org/a", html(""))
    z = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([*(z.compress(bytes(2**24)) for _ in range(16)), z.flush()])
    noise = np.random.default_rng(3).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    packed = gzip.compress(sound) + gzip.compress(response("http://h.org/b", html("<p>more</p>" * 500)))
    return {
        "truncated.warc.gz": (packed[:-60], [KEPT, "broken record"]),
        "noise.warc.gz": (noise, ["broken record", "unreadable file"]),
        "noise.warc": (noise, ["broken record", "unreadable file"]),
        "zero-bytes.warc": (b"", ["unreadable file"]),
        "bomb.warc.gz": (bomb, ["broken record", "unreadable file"]),
        "content-bomb.warc": (
            response("http://h.org/c", bomb, more="Content-Encoding: gzip\r\n") + sound,
            ["payload too large", KEPT],
        ),
        "length-lies.warc": (
            response("http://h.org/d", html(""), length=10**15),
            ["broken record", "unreadable file"],
        ),
        # An answer that is none and an address that is none: records of other kinds, and no faults.
        "no-http.warc": (sound.replace(b"HTTP/1.1 200 OK", b"\0\0 garbage \0\0\0\0"), []),
        "url.warc": (response("javascript:alert(1)", html("")), []),
    }


def pdf(box: str = "0 0 612 792", trailer: str = "", text: str = WORDS) -> bytes:
    stream = f"BT /F1 10 Tf 50 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] /Contents 4 0 R ".encode()
        + b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n" % len(stream) + stream + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = b"%PDF-1.7\n"
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % at for at in places)
    end = f"trailer << /Size 6 /Root 1 0 R {trailer} >>\nstartxref\n{len(out)}\n%%EOF".encode()
    return out + b"xref\n0 6\n0000000000 65535 f \n" + table + end


def pdfs() -> dict[str, tuple[bytes, list[str]]]:
    lock = "/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <" + "41" * 32 + "> /U <" + "42" * 32 + "> >>"
    return {
        "sound.pdf": (pdf(), [KEPT]),
        "broken.pdf": (b"%PDF-1.7\nnothing else", ["unreadable file"]),
        "no-pdf.pdf": (b"PK\x03\x04 not a pdf", ["unreadable file"]),
        "zero-bytes.pdf": (b"", ["unreadable file"]),
        "cut.pdf": (pdf()[:250], ["unreadable file"]),
        "encrypted.pdf": (pdf(trailer=lock + " /ID [<41> <41>]"), ["encrypted PDF"]),
        "endless-box.pdf": (pdf("0 0 1e9 1e9"), [KEPT]),
        "no-box.pdf": (pdf("0 0 0 0"), [KEPT]),
        "wild-box.pdf": (pdf("nan -5 x"), [KEPT]),
    }
