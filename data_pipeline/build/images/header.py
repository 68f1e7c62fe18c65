"""What an image file says of itself, read without a decoder: format, size, frames, parts.

A decoder is only as fast as the file lets it be. A few kilobytes can ask for thousands of passes over the
whole picture or for millions of empty chunks, so what a file asks for is counted before it is decoded.
"""

import re
import struct
from dataclasses import dataclass

MAX_PARTS = 100_000  # markers, chunks or blocks: more cost Pillow over 0.2 s and 100 MB before any pixel
MAX_SCANS = 100  # passes over a JPEG; cameras and encoders write 1 to 14, 100 over 50 MP take 4 s
_NEXT = re.compile(rb"\xff+[^\xff]")  # any number of FF may precede a JPEG marker
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in compressed JPEG data only 00 and RSTn follow FF
_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))  # JPEG markers without a length: TEM, RSTn, SOI
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; the three are DHT, JPG, DAC
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_CHANNELS = {2: 3, 4: 2, 6: 4}  # PNG colour types: RGB, grey and alpha, RGBA; the others have one
_DEFLATE = 1032  # zlib packs no tighter; Pillow takes a stream that ends early for black rows
_GIF_IMAGE, _GIF_EXTENSION = 0x2C, 0x21


class BrokenHeader(ValueError):
    """The file starts like an image, but its header does not hold together."""


@dataclass(frozen=True)
class Header:
    """`parts` and `scans` are counted up to the first that is one too many."""

    format: str
    width: int
    height: int
    animated: bool = False
    parts: int = 0
    scans: int = 1


def image_format(data: bytes) -> str | None:
    """The format by its first bytes, whatever the file is called."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "WEBP" if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else None


def read_header(data: bytes, kind: str) -> Header:
    """The header of a file of `image_format` `kind`. Raises BrokenHeader."""
    try:
        match kind:
            case "JPEG":
                header = _jpeg(data)
            case "PNG":
                header = _png(data)
            case "GIF":
                header = _gif(data)
            case _:
                header = _webp(data)
    except (IndexError, struct.error):
        raise BrokenHeader("the file ends inside its header") from None
    if not (header.width and header.height):
        raise BrokenHeader(f"{header.width}x{header.height} pixels")
    return header


def _jpeg(data: bytes) -> Header:
    at, parts, size, progressive, components = 2, 0, None, False, 0
    while found := _NEXT.search(data, at):
        marker = data[found.end() - 1]
        parts += found.end() - at - 1  # what stands between two segments is read byte by byte
        at = found.end()
        if marker == 0xDA or parts > MAX_PARTS:
            break
        if marker in _ALONE:
            continue
        if marker == 0xD9:
            raise BrokenHeader("the file ends before any pixel")
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _SIZES:
            height, width, components = struct.unpack_from(">HHB", data, at + 3)
            size, progressive = (width, height), marker in _PROGRESSIVE
        at += max(length, 2)
    else:
        raise IndexError
    if parts > MAX_PARTS:
        width, height = size or (1, 1)
        return Header("JPEG", width, height, parts=parts)
    if size is None:
        raise BrokenHeader("pixels without a size before them")
    # A decoder stops after the one scan of a plain JPEG that holds all its components.
    several = progressive or data[at + 2] < components
    return Header("JPEG", *size, parts=parts, scans=_scans(data, at) if several else 1)


def _scans(data: bytes, at: int) -> int:
    """Scans of the JPEG whose first one starts at `at`: not of thumbnails, not of what follows its end."""
    if (scans := data.count(b"\xff\xda", at) + 1) <= MAX_SCANS:
        return scans  # at most: counting is ten times as fast as walking, and almost always enough
    scans = 1
    while scans <= MAX_SCANS and (found := _MARKER.search(data, at)):
        marker = data[found.end() - 1]
        at = found.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if marker not in _ALONE and at + 2 <= len(data):
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return scans


def _png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise BrokenHeader("the first chunk is no IHDR")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    at, parts, animated, packed = 8, 0, False, 0
    while at + 8 <= len(data) and parts <= MAX_PARTS:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL" and at + 12 <= len(data):
            animated = struct.unpack_from(">I", data, at + 8)[0] > 1
        if kind == b"IDAT":
            packed += length
        if kind == b"IEND":
            if height * (width * depth * _CHANNELS.get(colour, 1) // 8) > _DEFLATE * packed:
                raise BrokenHeader(f"{width}x{height} pixels cannot be in {packed:,} bytes")
            break
        at += length + 12
        parts += 1
    return Header("PNG", width, height, animated=animated, parts=parts)


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _palette(flags)
    parts = frames = 0
    while at < len(data) and frames < 2 and parts <= MAX_PARTS:
        if data[at] == _GIF_IMAGE:
            frames += 1
            if frames == 2 or at + 9 >= len(data):
                break
            at, blocks = _skip_blocks(data, at + 11 + _palette(data[at + 9]), 10 * MAX_PARTS)
            parts += blocks > 10 * MAX_PARTS  # pixels are read by C code: their blocks cost nothing
        elif data[at] == _GIF_EXTENSION:
            at, blocks = _skip_blocks(data, at + 2, MAX_PARTS)
            parts += blocks
        elif data[at] == 0x3B:  # the end
            break
        else:
            at += 1
            parts += 1
    if frames == 0 and parts <= MAX_PARTS:
        raise BrokenHeader("no image in it")
    return Header("GIF", width, height, animated=frames > 1, parts=parts)


def _palette(flags: int) -> int:
    """Bytes of the palette that the flags of a GIF announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int, limit: int) -> tuple[int, int]:
    """Where the chain of sub-blocks at `at` ends, and how many they were."""
    blocks = 0
    while at < len(data) and data[at] and blocks <= limit:
        at += data[at] + 1
        blocks += 1
    return at + 1, blocks + 1


def _webp(data: bytes) -> Header:
    match data[12:16]:
        case b"VP8X":
            packed = int.from_bytes(data[24:30], "little")
            if len(data) < 30:
                raise IndexError
            width, height = (packed & 0xFFFFFF) + 1, (packed >> 24) + 1
            return Header("WEBP", width, height, animated=bool(data[20] & 2))
        case b"VP8L":
            if data[20] != 0x2F:
                raise BrokenHeader("lossless pixels without their signature")
            (packed,) = struct.unpack_from("<I", data, 21)
            return Header("WEBP", (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
        case b"VP8 ":
            if data[23:26] != b"\x9d\x01\x2a":
                raise BrokenHeader("lossy pixels without their start code")
            width, height = struct.unpack_from("<HH", data, 26)
            return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise BrokenHeader(f"an unknown first chunk {data[12:16]!r}")


def orientation(exif: bytes | None) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or the block is broken."""
    tiff = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, at + 2 + 12 * entry)
            if (tag, kind, count) == (0x0112, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
