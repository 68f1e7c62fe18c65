"""Seventy kinds of hostile or damaged images: each ends with its reason or is kept; none crashes or hangs.

The files are made here and inspected in one process of limited memory and CPU time.
"""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

KEPT = "kept"
BROKEN, NO_IMAGE = "unreadable image", "not an image"
LARGE, SMALL, LONG, COSTLY = "image too large", "image too small", "image too elongated", "image too costly"
CPU_SECONDS = 300
MEMORY = 1024 * 2**20

_INSPECT = """
import json, resource, sys, time
from pathlib import Path
from data_pipeline.build.images.check import Refusal, inspect
from data_pipeline.build.images.limits import ImageLimits
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]) + 2**30,) * 2)
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    result = inspect(path.read_bytes(), ImageLimits())
    refused = isinstance(result, Refusal)
    found[path.name] = {
        "reason": result.reason if refused else "kept",
        "detail": result.detail if refused else "",
        "seconds": time.process_time() - start,
    }
peak = int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]) * 1024
print(json.dumps({"found": found, "peak": peak}))
"""


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA")
    return small.resize((width, height)).convert(mode)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, pixels: bytes, *, depth: int = 8, colour: int = 0, extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND")
    )


def zeros(megabytes: int) -> bytes:
    """A zlib stream of this many megabytes, made in constant memory."""
    z, block = zlib.compressobj(9), bytes(2**20)
    return b"".join([*(z.compress(block) for _ in range(megabytes)), z.flush()])


def many_scans(scans: int) -> bytes:
    jpeg = encoded(Image.new("L", (3000, 3000), 99), "JPEG", progressive=True)
    last, end = jpeg.rfind(b"\xff\xda"), jpeg.rfind(b"\xff\xd9")
    return jpeg[:end] + jpeg[last:end] * scans + jpeg[end:]


def flipped(data: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    for at in rng.integers(len(data) // 4, len(data), 8):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def gif_comments(blocks: int) -> bytes:
    gif = encoded(photo(mode="P"), "GIF")
    at = 13 + (3 << (gif[10] & 7) + 1)
    return gif[:at] + b"\x21\xfe" + b"\x01a" * blocks + b"\0" + gif[at:]


def animation() -> bytes:
    """10,000 frames; the frame's bytes are repeated, which Pillow would take a minute to write."""
    gif = encoded(photo(mode="P"), "GIF")
    at = gif.index(b"\x2c", 13 + (3 << (gif[10] & 7) + 1))
    return gif[:at] + gif[at:-1] * 10_000 + b";"


def text_bomb() -> bytes:
    return png(64, 64, bytes(64 * 65), extra=chunk(b"zTXt", b"Comment\0\0" + zeros(80)))


def international_text(characters: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("note", "x" * characters, zip=True)
    return encoded(photo(), pnginfo=info)


JPEG, PNG = encoded(photo(), "JPEG", quality=90), encoded(photo())
WEBP, GIF = encoded(photo(), "WEBP"), encoded(photo(mode="P"), "GIF")
EXIF = Image.Exif()
EXIF[0x9286] = "x" * 60_000
STEREO = encoded(photo(), "MPO", save_all=True, append_images=[photo()])

CORPUS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", NO_IMAGE),
    "zeros": (bytes(4096), NO_IMAGE),
    "html-as-jpg": (b"<!DOCTYPE html><html>404</html>", NO_IMAGE),
    "pdf": (b"%PDF-1.7\n%%EOF", NO_IMAGE),
    "zip": (b"PK\x03\x04" + bytes(100), NO_IMAGE),
    "svg-with-script": (b"<svg onload='x()'/>", NO_IMAGE),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", NO_IMAGE),
    "tiff": (encoded(photo(), "TIFF"), NO_IMAGE),
    "pickle": (b"\x80\x04cposix\nsystem\n(S'false'\ntR.", NO_IMAGE),
    "jpeg-then-zip": (JPEG + b"PK\x03\x04" + bytes(500), KEPT),
    "gif-that-is-a-script": (b"GIF89a/*" + b"x" * 300 + b"*/=1;alert(1)", BROKEN),
    "jpeg-magic-only": (b"\xff\xd8\xff", BROKEN),
    "jpeg-without-scan": (JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9", BROKEN),
    "jpeg-zero-size": (JPEG.replace(struct.pack(">HH", 64, 96), bytes(4), 1), BROKEN),
    "png-zero-size": (png(0, 0, b""), BROKEN),
    "png-magic-only": (PNG[:8], BROKEN),
    "webp-riff-only": (WEBP[:14], BROKEN),
    "webp-wrong-chunk": (WEBP[:12] + b"EVIL" + WEBP[16:], BROKEN),
    "gif-magic-only": (GIF[:6], BROKEN),
    "gif-frame-beyond-screen": (GIF[:6] + struct.pack("<HH", 20, 20) + GIF[10:], BROKEN),
    "png-bad-checksum": (PNG[:29] + b"\0\0\0\0" + PNG[33:], BROKEN),
    "png-not-zlib": (PNG[: PNG.index(b"IDAT") + 4] + b"\xff" * (len(PNG) - PNG.index(b"IDAT") - 4), BROKEN),
    "png-header-claims-more": (png(3000, 3000, bytes(3001 * 10)), BROKEN),
    "png-bomb-144-megapixels": (png(12_000, 12_000, bytes(1501 * 12_000), depth=1), LARGE),
    "png-bomb-4-gigapixels": (png(2**16, 2**16, b""), BROKEN),
    "png-inflates-beyond-its-size": (
        PNG[:33] + chunk(b"IDAT", zeros(300)) + chunk(b"IEND"),
        KEPT,  # unpacking stops at the last row; here all rows are filter 0 and black
    ),
    "jpeg-65500-strip": (encoded(Image.new("L", (1, 65_500)), "JPEG"), SMALL),
    "jpeg-65500-band": (encoded(Image.new("L", (65_500, 20)), "JPEG"), LONG),
    "webp-too-much-memory": (
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + (6999).to_bytes(3, "little") * 2,
        LARGE,
    ),
    "jpeg-2000-scans": (many_scans(2000), COSTLY),
    "jpeg-60-scans": (many_scans(50), KEPT),
    "jpeg-million-comments": (JPEG[:2] + b"\xff\xfe\0\x02" * 1_000_000 + JPEG[2:], COSTLY),
    "jpeg-million-fill-bytes": (JPEG[:2] + b"\xff" * 1_000_000 + JPEG[2:], COSTLY),
    "jpeg-million-junk-bytes": (JPEG[:20] + b"\0" * 1_000_000 + JPEG[20:], COSTLY),
    "png-million-chunks": (PNG[:33] + chunk(b"prIv") * 1_000_000 + PNG[33:], COSTLY),
    "png-million-empty-idat": (PNG[:33] + chunk(b"IDAT") * 1_000_000 + PNG[33:], COSTLY),
    "gif-million-comments": (gif_comments(1_000_000), COSTLY),
    "png-text-bomb": (text_bomb(), BROKEN),
    "png-long-itxt": (international_text(900_000), KEPT),
    "png-itxt-over-the-limit": (international_text(1_100_000), BROKEN),
    "png-icc-bomb": (PNG[:33] + chunk(b"iCCP", b"p\0\0" + zeros(80)) + PNG[33:], BROKEN),
    "jpeg-huge-exif": (encoded(photo(), "JPEG", exif=EXIF.tobytes()), KEPT),
    "jpeg-broken-exif": (encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), KEPT),
    "jpeg-huge-icc": (encoded(photo(), "JPEG", icc_profile=b"x" * 2**20), KEPT),
    "gif-10000-frames": (animation(), KEPT),
    "jpeg-cmyk": (encoded(photo(mode="CMYK"), "JPEG"), KEPT),
    "jpeg-progressive": (encoded(photo(), "JPEG", progressive=True), KEPT),
    "jpeg-of-two-pictures": (STEREO, KEPT),
    "png-16-bit": (encoded(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))), KEPT),
    "png-palette-alpha": (encoded(photo(mode="P"), transparency=bytes(range(256))), KEPT),
    "png-grey-alpha": (encoded(photo(mode="LA")), KEPT),
    "png-1-bit": (encoded(photo(mode="1")), KEPT),
    "webp-lossless-alpha": (encoded(photo(mode="RGBA"), "WEBP", lossless=True), KEPT),
    "webp-animated": (encoded(photo(), "WEBP", save_all=True, append_images=[photo(mode="L")]), KEPT),
    "png-animated": (encoded(photo(), save_all=True, append_images=[photo(mode="L")]), KEPT),
    "png-called-jpg": (PNG, KEPT),
}
for _name, _data in (("jpeg", JPEG), ("png", PNG), ("webp", WEBP), ("gif", GIF)):
    for _quarter in (1, 2, 3):
        CORPUS[f"{_name}-cut-at-{_quarter}-quarters"] = (_data[: len(_data) * _quarter // 4], BROKEN)
PROGRESSIVE = encoded(photo(), "JPEG", progressive=True)
CORPUS["progressive-cut"] = (PROGRESSIVE[: len(PROGRESSIVE) * 3 // 4], BROKEN)


@pytest.fixture(scope="module")
def inspected(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("corpus")
    for name, (data, _) in CORPUS.items():
        (folder / name).write_bytes(data)
    for seed in range(60):
        for kind, data in (("jpeg", JPEG), ("png", PNG), ("webp", WEBP), ("gif", GIF)):
            (folder / f"flipped-{kind}-{seed}").write_bytes(flipped(data, seed))
    command = [sys.executable, "-W", "ignore", "-c", _INSPECT, str(folder), str(CPU_SECONDS), str(MEMORY)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CORPUS)
def test_each_kind_ends_with_its_reason_or_is_kept(inspected, name):
    found = inspected["found"][name]
    assert found["reason"] == CORPUS[name][1], found


def test_no_file_takes_long(inspected):
    slow = {n: f["seconds"] for n, f in inspected["found"].items() if f["seconds"] > 20}
    assert not slow


def test_memory_stays_below_a_gibibyte(inspected):
    assert inspected["peak"] < MEMORY


def test_flipped_bits_are_kept_or_refused_and_nothing_else(inspected):
    reasons = {f["reason"] for n, f in inspected["found"].items() if n.startswith("flipped")}
    assert reasons <= {KEPT, BROKEN, LARGE, SMALL, LONG}
    assert BROKEN in reasons


def test_the_corpus_has_thirty_kinds_and_more():
    assert len(CORPUS) >= 30
