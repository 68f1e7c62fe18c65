"""One build of everything hostile: every input ends with its own counted reason or is kept, and nothing runs.

The real command line, in a process of limited address space and time, over sources of every kind.
"""

import functools
import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.verify import verify
from data_pipeline.manifest import read_manifest
from data_pipeline.view import samples

KEPT = "kept"
ADDRESS_SPACE = 3 * 2**30
PEAK = 2**30
SECONDS = 300  # until a process counts as hanging
CPU_SECONDS = 60
REPOSITORY = Path(__file__).parents[2]
ESCAPE = "\x1b]0;owned\x07\x1b[31m"

# Limits are set in a small process between: a child's peak counts from the process that starts it.
_LIMITED = """
import json, resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
done = subprocess.run(sys.argv[3:], capture_output=True, timeout=float(sys.argv[2]))
used = resource.getrusage(resource.RUSAGE_CHILDREN)
used = {"peak": used.ru_maxrss * 1024, "cpu": used.ru_utime + used.ru_stime}
print(json.dumps([done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1"), used]))
"""


class Program:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def fovea(*arguments: object) -> tuple[int, str, str, dict[str, float]]:
    """Exit code, stdout, stderr, and the peak bytes and CPU seconds that `fovea data ...` used."""
    command = [sys.executable, "-m", "data_pipeline.cli", "data", *map(str, arguments)]
    limited = [sys.executable, "-c", _LIMITED, str(ADDRESS_SPACE), str(SECONDS), *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, f"it hangs, or its limits cannot be set: {done.stderr[-2000:]}"
    return tuple(json.loads(done.stdout))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(seed: int = 0, mode: str = "RGB", width: int = 96, height: int = 64) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA")
    return small.resize((width, height)).convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb_png(side: int) -> bytes:
    """Sound, one bit a pixel, black: some kilobytes that become side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def many_scans(scans: int) -> bytes:
    jpeg = encoded(Image.new("L", (2000, 2000), 99), "JPEG", progressive=True)
    last, end = jpeg.rfind(b"\xff\xda"), jpeg.rfind(b"\xff\xd9")
    return jpeg[:end] + jpeg[last:end] * scans + jpeg[end:]


def animation(frames: int) -> bytes:
    gif = encoded(photo(mode="P"), "GIF")
    at = gif.index(b"\x2c", 13 + (3 << (gif[10] & 7) + 1))
    return gif[:at] + gif[at:-1] * frames + b";"


def exif(**tags: object) -> bytes:
    block = Image.Exif()
    for tag, value in tags.items():
        block[int(tag[1:])] = value
    return block.tobytes()


JPEG = encoded(photo(1), "JPEG", quality=90)

# ---- images: one row of captions each, so that a row is kept or dropped with its picture ----
IMAGES: dict[str, tuple[bytes, str]] = {
    f"a{ESCAPE}\n.jpg": (JPEG[: len(JPEG) // 3], "unreadable image"),
    "bomb-144-megapixels.png": (bomb_png(12_000), "image too large"),
    "strip-1x65500.jpg": (encoded(Image.new("L", (1, 65_500)), "JPEG"), "image too small"),
    "band-65500x20.jpg": (encoded(Image.new("L", (65_500, 20)), "JPEG"), "image too elongated"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "unreadable image"),
    "html.jpg": (b"<!DOCTYPE html><html><script>x()</script>404</html>", "not an image"),
    "zero-bytes.jpg": (b"", "not an image"),
    "svg.png": (b"<svg onload='x()'/>", "not an image"),
    "pickle.png": (b"", "not an image"),  # filled in with the canary
    "tiff.jpg": (encoded(photo(2), "TIFF"), "not an image"),
    "scans-2000.jpg": (many_scans(2000), "image too costly"),
    "frames-5000.gif": (animation(5000), KEPT),
    "cmyk.jpg": (encoded(photo(3, "CMYK"), "JPEG"), KEPT),
    "grey-16-bit.png": (encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))), KEPT),
    "palette-alpha.png": (encoded(photo(4, "P"), transparency=bytes(range(256))), KEPT),
    "huge-exif.jpg": (encoded(photo(5), "JPEG", exif=exif(x37510="x" * 60_000)), KEPT),
    "turned.jpg": (encoded(photo(6), "JPEG", exif=exif(x274=6)), KEPT),
    "broken-exif.jpg": (encoded(photo(7), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), KEPT),
    "jpeg-then-zip.jpg": (encoded(photo(8), "JPEG") + b"PK\x03\x04" + bytes(500), KEPT),
}
# ---- what a row may call its picture instead of a file ----
REFERENCES: dict[str, str] = {
    "pipe:touch {canary}": "remote image",
    "|touch {canary}": "missing image",
    "file:///etc/hostname": "remote image",
    "memory://x.jpg": "remote image",
    "ftp://127.0.0.1/x.jpg": "remote image",
    "http://169.254.169.254/latest/meta-data": "remote image",
    "//127.0.0.1/x.jpg": "remote image",
    "http://[broken/x.jpg": "remote image",
    "/etc/hostname": "path leaves the source",
    "../secret.jpg": "path leaves the source",
    "link-to-secret.jpg": "path leaves the source",
    "pipe.jpg": "missing image",
    "gone\0.jpg": "missing image",
    "\ud800.jpg": "invalid text",
    f"{ESCAPE}.jpg": "missing image",
    "data:image/png;base64,@@@@": "unreadable image",
    "data:text/html,<script>x()</script>": "unreadable image",
    "": "invalid record",
}


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, end: bool = True) -> bytes:
    out = io.BytesIO()
    for member in members:
        info, data = (
            (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
        )
        if data:
            info.size = len(data)
        out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024) * end


def special(name: str, kind: bytes, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, "/etc/hostname", size
    return info


@functools.cache
def tars(canary: Path) -> dict[str, tuple[bytes, list[str]]]:
    """name: bytes, and the reasons in it; a sound pair comes first in each and is kept."""
    a = (("a.jpg", JPEG), ("a.txt", b"a sound caption"))
    b = (("b.jpg", encoded(photo(9), "JPEG")), ("b.txt", b"another caption"))
    whole = tar_of(*a, *b)
    first = 1024 + len(JPEG) + -len(JPEG) % 512 + 512  # bytes of the first pair
    program = pickle.dumps(Program(canary))
    return {
        "cut-at-member.tar": (whole[:first], [KEPT, "broken tar"]),
        "cut-in-header.tar": (whole[: first + 100], [KEPT, "broken tar"]),
        "cut-in-payload.tar": (whole[: first + 700], [KEPT, "broken tar"]),
        "zero-byte.tar": (b"", ["broken tar"]),
        "no-tar.tar": (b"hello " * 300, ["broken tar"]),
        "duplicate-key.tar": (tar_of(*a, *b, a[1]), [KEPT, KEPT, "duplicate key"]),
        "missing-member.tar": (tar_of(*a, b[1]), [KEPT, "invalid record"]),
        "absolute-name.tar": (tar_of(*a, ("/tmp/c.jpg", JPEG)), [KEPT, "refused member"]),
        "dot-dot-name.tar": (tar_of(*a, ("../c.jpg", JPEG)), [KEPT, "refused member"]),
        "symlink.tar": (tar_of(*a, special("c.jpg", tarfile.SYMTYPE)), [KEPT, "refused member"]),
        "hardlink.tar": (tar_of(*a, special("c.jpg", tarfile.LNKTYPE)), [KEPT, "refused member"]),
        "device.tar": (tar_of(*a, special("c.jpg", tarfile.CHRTYPE)), [KEPT, "refused member"]),
        "fifo.tar": (tar_of(*a, special("c.jpg", tarfile.FIFOTYPE)), [KEPT, "refused member"]),
        **{
            f"pickle-{ending}.tar": (
                tar_of(*a, (f"c.{ending}", program), ("c.txt", b"c")),
                [KEPT, "refused member"],
            )
            for ending in ("pkl", "pth", "npy", "pyd")
        },
        "pickle-as-text.tar": (tar_of(*a, ("c.jpg", JPEG), ("c.txt", program)), [KEPT, "invalid record"]),
        "pickle-as-json.tar": (tar_of(*a, ("c.jpg", JPEG), ("c.json", program)), [KEPT, "invalid record"]),
        "huge-member.tar": (
            tar_of(*a, special("c.jpg", tarfile.REGTYPE, 2**40), end=False),
            [KEPT, "broken tar"],
        ),
        "bomb.tar.gz": (
            gzip.compress(tar_of(*a, ("c.jpg", bytes(100 * 2**20)), ("c.txt", b"c")), 1),
            [KEPT, "image file too large"],
        ),
        "nested.tar": (tar_of(*a, ("c.tar", whole), ("c.txt", b"c")), [KEPT, "invalid record"]),
    }


# ---- rows: reasons in the order of the rows; {name} is a sound picture ----
def good_rows(n: int) -> list[dict[str, str]]:
    return [{"image": "good.jpg", "caption": f"a caption number {i} of a row"} for i in range(n)]


@functools.cache
def rows() -> dict[str, tuple[bytes, list[str]]]:
    lines = [json.dumps(r) for r in good_rows(2)]
    jsonl = [
        lines[0].encode(),
        b'{"image": "good.jpg", "caption": ',
        b'{"image": "good.jpg", "caption": "\xff\xfe"}',
        b'{"image": "good.jpg", "caption": NaN}',
        b'{"image": "good.jpg", "caption": "a lone \\ud800 surrogate"}',
        b'{"image": "good.jpg", "caption": ["a", "list"]}',
        b'{"image": 3, "caption": "a picture that is a number"}',
        b'{"image": "good.jpg", "caption": "deep", "more": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'"text"',
        b"[" * 200_000,
        lines[1].encode(),
    ]
    faults = ["invalid record"] * 3 + ["invalid text"] * 2 + ["missing image"] + ["invalid record"] * 3
    table = pa.Table.from_pylist(good_rows(400))
    out = io.BytesIO()
    pq.write_table(
        table, out, row_group_size=100, compression="NONE", use_dictionary=False, write_page_checksum=True
    )
    parquet = out.getvalue()
    flipped = parquet.replace(b"a caption number 150", b"a caption number 159")  # told by its checksum alone
    out = io.BytesIO()
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2**30, 6)))
    wild = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abcdef")])
    with pa.ipc.new_file(out, pa.schema([("caption", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([wild], ["caption"]))
    csv = b'image,caption\ngood.jpg,"quoted, with a comma"\ngood.jpg,one,too many\ngood.jpg\ngood.jpg,last\n'
    return {
        "captions-lines.jsonl": (b"\n".join(jsonl), [KEPT, *faults, KEPT]),
        "half.parquet": (parquet[: len(parquet) // 2], ["unreadable file"]),
        "page.parquet": (flipped, [KEPT] * 300 + ["unreadable file"]),
        "offsets.arrow": (out.getvalue(), ["unreadable file"]),
        "zero-byte.parquet": (b"", ["unreadable file"]),
        "table.csv": (csv, [KEPT, KEPT, "invalid record", "invalid record"]),
        "open-quote.csv": (
            b'image,caption\ngood.jpg,kept\ngood.jpg,"' + b"x" * 200_000,
            [KEPT, "invalid record"],
        ),
        "captions-bomb.jsonl.gz": (
            gzip.compress(lines[0].encode() + b"\n" + b"x" * 2**27 + b"\n", 1),
            [KEPT, "row too large"],
        ),
    }


# ---- pages: the reasons of the page itself, then those of its pictures; a name may be bytes ----
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


RECIPE = """
name: hostile
heldout: 0
tasks: 2
formats: [arrow, webdataset, parquet]
sources:
  - {name: images, kind: captions, path: images}
  - {name: references, kind: captions, path: references}
  - {name: tars, kind: captions, path: tars}
  - {name: rows, kind: captions, path: rows}
  - {name: pages, kind: html, path: pages}
  - {name: crawl, kind: warc, path: crawl}
  - {name: pdf, kind: pdf, path: pdf}
"""


def write_all(root: Path, canary: Path) -> None:
    for folder in ("images", "references", "tars", "rows", "pages", "crawl", "pdf"):
        (root / folder).mkdir(parents=True)
    (root.parent / "secret.jpg").write_bytes(JPEG)
    (root / "secret.jpg").write_bytes(JPEG)
    for name, (data, _) in IMAGES.items():
        (root / "images" / name).write_bytes(pickle.dumps(Program(canary)) if name == "pickle.png" else data)
    listed = [{"file": name, "caption": f"the caption of {name}"} for name in IMAGES]
    (root / "images/captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in listed))
    (root / "references/link-to-secret.jpg").symlink_to("../secret.jpg")
    os.mkfifo(root / "references/pipe.jpg")
    named = [{"image": r.replace("{canary}", str(canary)), "caption": "c"} for r in REFERENCES]
    (root / "references/captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in named))
    for name, (data, _) in tars(canary).items():
        (root / "tars" / name).write_bytes(data)
    (root / "rows/good.jpg").write_bytes(JPEG)
    for name, (data, _) in rows().items():
        (root / "rows" / name).write_bytes(data)
    os.mkfifo(root / "rows/pipe.jsonl")
    for page, (data, *_) in pages().items():
        Path(os.fsdecode(os.fsencode(root / "pages") + b"/" + os.fsencode(page))).write_bytes(data)
    (root / "pages/link.jpg").symlink_to("../../secret.jpg")
    (root / "pages/link.html").symlink_to("/etc/hostname")
    (root / "pages/short.jpg").write_bytes(JPEG[: len(JPEG) // 2])
    os.mkfifo(root / "pages/pipe.jpg")
    os.mkfifo(root / "pages/fifo.html")
    for folder, files in (("crawl", crawls()), ("pdf", pdfs())):
        for name, (data, _) in files.items():
            (root / folder / name).write_bytes(data)


class Built:
    """The finished build and what it said."""

    def __init__(self, folder: Path):
        self.canary, self.directory, self.recipe = folder / "ran", folder / "out", folder / "in/hostile.yaml"
        write_all(folder / "in", self.canary)
        self.recipe.write_text(RECIPE)
        arguments = ("build", self.recipe, "--out", self.directory, "--bad-inputs", "drop", "--workers", 2)
        self.code, self.out, self.err, self.used = fovea(*arguments)
        assert self.code == 0, self.err
        self.manifest = read_manifest(self.directory)
        self.samples = list(samples(self.directory))
        listed = [p.read_text().splitlines() for p in (self.directory / "dropped").glob("*.jsonl")]
        self.dropped = [json.loads(line) for lines in listed for line in lines]

    def reasons(self, source: str, part: str = "sample") -> dict[str, list[str]]:
        """By file, the sorted reasons for what was left out."""
        found: dict[str, list[str]] = {}
        for d in self.dropped:
            if (d["source"], d["part"]) == (source, part):
                found.setdefault(d["file"], []).append(d["class"])
        return {file: sorted(reasons) for file, reasons in found.items()}

    def kept(self, source: str) -> list[str]:
        """The address (a file, where it has no other) of each sample that was kept, sorted."""
        return sorted(s.url or "" for s in self.samples if s.source == source)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    return Built(tmp_path_factory.mktemp("hostile"))


def told(table: dict[str, list[str]]) -> dict[str, list[str]]:
    """What a table of files says is left out."""
    left_out = {file: sorted(r for r in reasons if r != KEPT) for file, reasons in table.items()}
    return {file: reasons for file, reasons in left_out.items() if reasons}


def test_the_corpus_has_far_more_than_thirty_kinds():
    tables = IMAGES, REFERENCES, tars(Path("x")), rows(), pages(), crawls(), pdfs()
    assert sum(map(len, tables)) > 90


def test_every_image_ends_with_its_reason_or_is_kept(built):
    assert built.reasons("images") == told({name: [reason] for name, (_, reason) in IMAGES.items()})
    kept = {s.media[0].url: s for s in built.samples if s.source == "images"}
    assert sorted(kept) == sorted(n for n, (_, reason) in IMAGES.items() if reason == KEPT)
    for name, sample in kept.items():
        assert sample.image_bytes == (IMAGES[name][0],), "the bytes are kept as they are"


def test_every_reference_that_is_no_file_of_the_source_is_refused(built):
    found = {d["where"]: d["class"] for d in built.dropped if d["source"] == "references"}
    assert found == {f"line {n}": reason for n, reason in enumerate(REFERENCES.values(), start=1)}
    assert built.kept("references") == []


@pytest.mark.parametrize("source", ["tars", "rows", "pdf"])
def test_every_container_gives_what_is_sound_and_a_reason_for_the_rest(built, source):
    table = {"tars": tars(built.canary), "rows": rows(), "pdf": pdfs()}[source]
    expected = {name: reasons for name, (_, reasons) in table.items()}
    assert built.reasons(source) == told(expected)
    kept = {name: r.count(KEPT) for name, r in expected.items() if KEPT in r}
    found = built.kept(source)
    assert {name: found.count(name) for name in set(found)} == kept


def test_every_crawl_gives_its_sound_pages_and_a_reason_for_the_rest(built):
    expected = {name: reasons for name, (_, reasons) in crawls().items()}
    assert built.reasons("crawl") == told(expected)
    assert len(built.kept("crawl")) == sum(r.count(KEPT) for r in expected.values())


def test_every_page_is_kept_but_for_what_is_none_and_its_pictures_have_reasons(built):
    names = {os.fsencode(n).decode("utf-8", "backslashreplace"): about for n, about in pages().items()}
    assert built.reasons("pages") == told({n: [reason] for n, (_, reason, _) in names.items()})
    # A long page is more than one sample.
    assert sorted({*built.kept("pages")}) == sorted(
        n for n, (_, reason, _) in names.items() if reason == KEPT
    )
    images = built.reasons("pages", "image")
    images["broken-image.html"] = images.pop("short.jpg")  # named by the file that is at fault
    assert images == {n: sorted(cut) for n, (_, _, cut) in names.items() if cut}


def test_nothing_ran_and_nothing_was_written_outside(built):
    assert not built.canary.exists()
    assert sorted(p.name for p in built.directory.parent.iterdir()) == ["in", "out", "secret.jpg"]
    assert not Path("/tmp/c.jpg").exists()
    pickle.loads((built.directory.parent / "in/images/pickle.png").read_bytes()).close()
    assert built.canary.exists(), "what opened it would have run it"
    built.canary.unlink()


def test_what_came_in_went_out_or_was_counted(built):
    assert balanced(funnel(built.manifest)) == []
    for source, counts in built.manifest.funnel.items():
        assert counts.balanced
        listed = built.reasons(source)
        assert sum(counts.dropped.values()) == sum(map(len, listed.values())), source
    assert verify(built.directory).samples == len(built.samples)


def test_memory_and_time_stay_bounded(built):
    assert built.used["peak"] < PEAK
    assert built.used["cpu"] < CPU_SECONDS


_CONTROLS = re.compile(r"[^\n\r\t\x20-\x7e\x80-\xff]|\x7f")


def test_no_control_character_of_the_inputs_reaches_a_terminal(built, tmp_path):
    texts = [built.out, built.err]
    copy, listed = tmp_path / "copy", tmp_path / "opted_out.txt"
    shutil.copytree(built.directory, copy)
    listed.write_text(f"https://h.org/{ESCAPE}\nhttps://h.org/\x9b\n")
    code, out, err, _ = fovea("withdraw", copy, "--urls-from", listed, "--id", ESCAPE)
    assert (code, "1 ids match nothing" in out) == (0, True), err
    texts += [out, err]
    for verb in (("verify",), ("stats",), ("preview", "--out", tmp_path / "p.html", "--n", 400)):
        code, out, err, _ = fovea(verb[0], built.directory, *verb[1:])
        assert code == 0, err
        texts += [out, err]
    for text in texts:
        assert not _CONTROLS.search(text), repr(text)
    for page in (tmp_path / "p.html", built.directory / "report.html"):
        assert "<script" not in page.read_text().lower()


def test_a_hostile_benchmark_is_searched_for_what_is_sound_in_it(built, tmp_path):
    bench, words = tmp_path / "bench", "the caption of frames-5000.gif"
    bench.mkdir()
    refused = {name: found for name, found in IMAGES.items() if found[1] != KEPT}
    for name, (data, _) in {**refused, **rows(), **tars(built.canary)}.items():
        (bench / name).write_bytes(pickle.dumps(Program(built.canary)) if name == "pickle.png" else data)
    (bench / "weights.npy").write_bytes(pickle.dumps(Program(built.canary)))
    (bench / "deep.json").write_bytes(b"[" * 200_000)
    (bench / os.fsdecode(b"no-utf8-\xff.png")).write_bytes(IMAGES["palette-alpha.png"][0])
    (bench / os.fsdecode(b"no-utf8-\xfe.json")).write_text(
        json.dumps([{"question": f"{words} \ud800 {ESCAPE}"}])
    )
    (bench / "link.json").symlink_to("/etc/hostname")
    os.mkfifo(bench / "pipe.jpg")
    copy = tmp_path / "copy"
    shutil.copytree(built.directory, copy)
    page = tmp_path / "pairs.html"
    options = ("--benchmark", bench, "--out", page, "--remove", "--ngram", 5)
    code, out, err, used = fovea("decontaminate", copy, *options)
    assert code == 0, err
    assert used["peak"] < PEAK
    assert not built.canary.exists()
    assert not _CONTROLS.search(out + err)
    kept = {n for n, (_, reason) in IMAGES.items() if reason == KEPT}
    left = {s.media[0].url for s in samples(copy, source="images")}
    assert left == kept - {"palette-alpha.png", "frames-5000.gif"}, "one by its picture, one by its words"
    verify(copy)


def test_with_stop_the_same_inputs_are_listed_on_one_screen(built):
    code, out, err, _ = fovea("build", built.recipe, "--out", built.directory.with_name("stopped"))
    assert code == 4
    assert "Traceback" not in out + err
    assert "--bad-inputs drop" in err
    assert "a\\x1b]0;owned\\x07\\x1b[31m\\n.jpg" in err, "the name is spelled out"
    assert len(err.splitlines()) <= 24
    assert not _CONTROLS.search(out + err)
    assert not (built.directory.with_name("stopped") / "manifest.json").exists()
