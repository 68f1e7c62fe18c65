"""gzip, zlib, zstd and brotli, unpacked piece by piece: what comes out is bounded, whatever was packed."""

import io
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import pyarrow as pa

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# 128 MiB of memory for what a frame may look back to: what the zstd program itself takes unasked.
_WINDOW_LOG = 27
_PIECE = 2**22


class Damaged(ValueError):
    """The packed bytes are none of their format, or broken."""


class Unpacker(Protocol):
    """One member of gzip, stream of zlib, or frame of zstd."""

    @property
    def hungry(self) -> bool: ...  # no more comes out before more goes in

    @property
    def ended(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...  # what was put in beyond the end

    def unpack(self, data: bytes, size: int) -> bytes: ...  # at most `size` bytes; raises Damaged


class Zlib:
    """`bits` as of `zlib.decompressobj`: 31 is gzip, 15 zlib, -15 deflate without a head."""

    def __init__(self, bits: int = 16 + zlib.MAX_WBITS):
        self._stream = zlib.decompressobj(bits)

    @property
    def hungry(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def ended(self) -> bool:
        return self._stream.eof

    @property
    def unused(self) -> bytes:
        return self._stream.unused_data

    def unpack(self, data: bytes, size: int) -> bytes:
        try:
            return self._stream.decompress(self._stream.unconsumed_tail + data, size)
        except zlib.error as e:
            raise Damaged(str(e)) from None


class Zstd:
    def __init__(self, dictionary: zstd.ZstdDict | None = None):
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        self._stream = zstd.ZstdDecompressor(zstd_dict=dictionary, options=options)

    @property
    def hungry(self) -> bool:
        return self._stream.needs_input

    @property
    def ended(self) -> bool:
        return self._stream.eof

    @property
    def unused(self) -> bytes:
        return self._stream.unused_data

    def unpack(self, data: bytes, size: int) -> bytes:
        try:
            return self._stream.decompress(data, size)
        except zstd.ZstdError as e:
            raise Damaged(str(e)) from None


def zstd_dictionary(data: bytes, max_bytes: int) -> zstd.ZstdDict:
    """The dictionary, which may itself be a zstd frame. Raises Damaged."""
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        data = Zstd().unpack(data, max_bytes)
    try:
        return zstd.ZstdDict(data)
    except (ValueError, zstd.ZstdError) as e:
        raise Damaged(f"no zstd dictionary: {e}") from None


# By name of a Content-Encoding: the formats that it may stand for, the likely one first.
_STREAMS: dict[str, tuple[Callable[[], Unpacker], ...]] = {
    "gzip": (Zlib,),
    "x-gzip": (Zlib,),
    "deflate": (lambda: Zlib(zlib.MAX_WBITS), lambda: Zlib(-zlib.MAX_WBITS)),
    "zstd": (Zstd,),
}
ENCODINGS = ("gzip", "deflate", "br", "zstd")


def is_known(encoding: str) -> bool:
    return encoding in _STREAMS or encoding == "br"


def unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes | None:
    """The body as far as it can be unpacked; None: that is over `max_bytes`. Raises Damaged: not at all."""
    if encoding == "br":
        formats: tuple[Iterator[bytes], ...] = (_brotli(body),)
    else:
        formats = tuple(_pieces(body, unpacker()) for unpacker in _STREAMS[encoding])
    damage = Damaged("empty")
    for pieces in formats:
        data = bytearray()
        try:
            for piece in pieces:
                data += piece
                if len(data) > max_bytes:
                    return None
        except Damaged as e:
            if not data:
                damage = e
                continue
        return bytes(data)
    raise damage


def _pieces(body: bytes, unpacker: Unpacker) -> Iterator[bytes]:
    rest = body
    while not unpacker.ended and (rest or not unpacker.hungry):
        yield unpacker.unpack(rest, _PIECE)
        rest = b""


def _brotli(body: bytes) -> Iterator[bytes]:
    try:
        with pa.CompressedInputStream(io.BytesIO(body), "brotli") as stream:
            while piece := stream.read(2**16):  # of a stream that is cut off the last piece is lost
                yield piece
    except OSError as e:
        raise Damaged(str(e)) from None
