"""Transfer and content encodings of a crawl's records, and crawls packed by zstd, are undone in bounds."""

import gzip
import random
import re
import sys
import tracemalloc
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from crawls import MAX_BYTES, PAGE, RED, page, read, reasons, record, samples, write
from data_pipeline.build.read.warc_http import unpacked

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def chunked(data: bytes) -> bytes:
    pieces = [data[n : n + 17] for n in range(0, len(data), 17)]
    return b"".join(b"%x;x=y\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def brotli(data: bytes) -> bytes:
    return pa.compress(data, "brotli", asbytes=True)


def zstandard(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


def raw_deflate(data: bytes) -> bytes:
    pack = zlib.compressobj(wbits=-15)
    return pack.compress(data) + pack.flush()


@pytest.mark.parametrize(
    ("headers", "encode"),
    [
        ({}, bytes),
        ({"Content-Encoding": "gzip"}, gzip.compress),
        ({"Content-Encoding": "x-gzip"}, gzip.compress),
        ({"Content-Encoding": "deflate"}, zlib.compress),
        ({"Content-Encoding": "deflate"}, raw_deflate),
        ({"Content-Encoding": "gzip, gzip"}, lambda d: gzip.compress(gzip.compress(d))),
        ({"Transfer-Encoding": "chunked"}, chunked),
        ({"Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}, lambda d: chunked(gzip.compress(d))),
        ({"Transfer-Encoding": "chunked"}, bytes),
        ({"Content-Encoding": "gzip"}, bytes),
        ({"Content-Encoding": "br"}, brotli),
        ({"Content-Encoding": "br"}, bytes),
        ({"Content-Encoding": "zstd"}, zstandard),
        ({"Content-Encoding": "zstd"}, bytes),
        ({"Transfer-Encoding": "chunked", "Content-Encoding": "br"}, lambda d: chunked(brotli(d))),
        ({"Content-Encoding": "identity"}, bytes),
    ],
)
def test_transfer_and_content_encodings_are_undone_also_where_the_header_lies(tmp_path, headers, encode):
    write(tmp_path / "a.warc", record(PAGE, encode(page()), headers=headers.items()))
    (sample,) = samples(tmp_path)
    assert sample.text == "Some words of a page that are enough.\nThe end."


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        ("compress", b"\x1f\x9d\x90\0\1", "unsupported content encoding"),
        ("gzip", b"\1\2\3 no gzip", "damaged content encoding"),
        ("br", b"\xff\1\2 no brotli", "damaged content encoding"),
        ("zstd", b"\1\2\3 no zstd", "damaged content encoding"),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_counted_and_gives_no_text(tmp_path, encoding, body, reason):
    write(tmp_path / "a.warc", record(PAGE, body, headers=[("Content-Encoding", encoding)]))
    assert reasons(tmp_path) == {reason: 1}
    assert not samples(tmp_path)


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_what_was_cut_off_in_transfer_is_kept_as_far_as_it_goes(tmp_path, encoding):
    body = page(
        words=" ".join(random.Random(0).choices(["ape", "bee", "cat", "dog", "eel", "fox"], k=400_000))
    )
    encode = {"gzip": gzip.compress, "br": brotli, "zstd": zstandard}[encoding]
    packed = encode(body)
    headers = [("Content-Encoding", encoding)]
    write(tmp_path / "a.warc", record(PAGE, packed[: len(packed) // 2], headers=headers))
    (sample,) = samples(tmp_path)
    text = body.decode().split("<p>")[1].split("</p>")[0]
    assert text.startswith(sample.text[:-10])
    assert 0.3 * len(text) < len(sample.text) < 0.7 * len(text)


@pytest.mark.parametrize("encode", [brotli, zstandard], ids=["br", "zstd"])
def test_a_bomb_of_the_newer_encodings_stops_at_the_cap(encode):
    bomb = encode(bytes(2**28))
    name = "br" if encode is brotli else "zstd"
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    assert unpacked(bomb, "", name, MAX_BYTES) == (
        "payload too large",
        f"more than {MAX_BYTES:,} bytes when unpacked",
    )
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    assert pa.total_allocated_bytes() - before < 2**20
    tracemalloc.stop()


def framed(path: Path, *records, dictionary=None, packed_dictionary=False) -> Path:
    """A `.warc.zst` file, a frame for each record, as the IIPC's text on zstd describes it."""
    with path.open("wb") as f:
        if dictionary is not None:
            content = dictionary.dict_content
            content = zstd.compress(content) if packed_dictionary else content
            f.write(b"\x5d\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content)
        for fields in records:
            plain = write(path.with_name("one.tmp"), fields, packed=False)
            f.write(zstd.compress(plain.read_bytes(), zstd_dict=dictionary))
            plain.unlink()
    return path


@pytest.fixture(scope="module")
def dictionary():
    words = random.Random(1)
    texts = [
        " ".join(
            words.choices(["WARC/1.0", "html", "body", "href", "content-type", "response", "the", "of"], k=60)
        )
        for _ in range(600)
    ]
    return zstd.train_dict([t.encode() for t in texts], 4096)


@pytest.mark.parametrize("kind", ["plain", "dictionary", "packed dictionary"])
def test_frames_of_zstd_give_pages_and_images_and_are_found_again_after_damage(tmp_path, kind, dictionary):
    path = framed(
        tmp_path / "a.warc.zst",
        record(PAGE, page("<img src=/r.png>")),
        record("http://h.org/2", page(words="This page is going to be broken.")),
        record("http://h.org/3", page("<img src=/r.png>", words="The third one still has its words.")),
        record("http://h.org/r.png", RED, "image/png"),
        dictionary=None if kind == "plain" else dictionary,
        packed_dictionary=kind == "packed dictionary",
    )
    found = samples(tmp_path)
    assert [s.url for s in found] == [PAGE, "http://h.org/2", "http://h.org/3"]
    assert [s.image_bytes for s in found] == [(RED,), (), (RED,)]
    data = bytearray(path.read_bytes())
    starts = [m.start() for m in re.finditer(re.escape(b"\x28\xb5\x2f\xfd"), data)][-4:]
    data[starts[1] + 12 : starts[1] + 40] = b"\xff" * 28
    path.write_bytes(data)
    assert [s.url for s in samples(tmp_path)] == [PAGE, "http://h.org/3"]
    assert reasons(tmp_path) == {"broken record": 1}
    path.write_bytes(data[: starts[3] + 30])
    assert reasons(tmp_path) == {"broken record": 2, "image not in the crawl": 2}


def test_zstd_of_a_dictionary_that_is_not_there_or_is_none_is_said(tmp_path, dictionary):
    path = framed(tmp_path / "a.warc.zst", record(PAGE, page()), dictionary=dictionary)
    data = path.read_bytes()
    size = 8 + len(dictionary.dict_content)
    path.write_bytes(data[size:])
    (broken, whole) = [i.fault for i in read(tmp_path)]
    assert broken.reason == "broken record"
    assert "ictionary" in broken.detail
    assert whole.bad
    path.write_bytes(data[:8] + bytes(size - 8) + data[size:])
    assert [i.fault.reason for i in read(tmp_path)] == ["broken record", "unreadable file"]
