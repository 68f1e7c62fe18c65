"""Pictures that are bombs, broken, disguised or odd, and names of pictures that are no files."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

KEPT = "kept"

ESCAPE = "\x1b]0;owned\x07\x1b[31m"


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
