"""Damage in a crawl is counted, reading goes on behind it, and nothing crashes, hangs or grows."""

import gzip
import io
import random
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest

from crawls import BLUE, MAX_BYTES, PAGE, RED, page, read, reader, reasons, record, samples, write
from data_pipeline.build.read.warc_split import Broken, raw_records


def test_one_gzip_member_for_the_whole_file_is_read_with_its_images(tmp_path):
    plain = write(
        tmp_path / "plain",
        record("http://h.org/red.png", RED, "image/png"),
        record(PAGE, page("<img src=/red.png>", "<img src=/blue.png>")),
        record("http://h.org/blue.png", BLUE, "image/png"),
        packed=False,
    )
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (sample,) = samples(tmp_path)
    assert sample.image_bytes == (RED, BLUE)


def test_a_bomb_stops_at_the_cap_in_bounded_memory(tmp_path):
    pack = zlib.compressobj(9, wbits=31)
    bomb = b"".join(pack.compress(bytes(2**24)) for _ in range(64)) + pack.flush()
    write(
        tmp_path / "a.warc",
        record(PAGE, bomb, headers=[("Content-Encoding", "gzip")]),
        record("http://h.org/r.png", bomb, "image/png", headers=[("Content-Encoding", "gzip")]),
        record(PAGE + "2", page("<img src=/r.png>")),
    )
    (tmp_path / "b.warc.gz").write_bytes(bomb)
    tracemalloc.start()
    found = reasons(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {
        "payload too large": 1, "image file too large": 1, "broken record": 1, "unreadable file": 1
    }  # fmt: skip
    assert peak < 128 * 2**20
    bomb_file, _ = [i.fault for i in reader(tmp_path).read("b.warc.gz")]
    assert "a bomb: unpacks to more than 200 times its size" in bomb_file.detail


def three_pages(path: Path) -> list[bytes]:
    """The bytes of three records that hold a page each."""
    parts = []
    for n in range(3):
        part = write(path.with_name(f"part{n}"), record(f"{PAGE}{n}", page()), packed=path.suffix == ".gz")
        parts.append(part.read_bytes())
        part.unlink()
    return parts


def grown(part: bytes, by: int) -> bytes:
    """A record whose Content-Length is wrong."""
    head, block = part.split(b"\r\n\r\n", 1)
    start, length = head.rsplit(b"Content-Length: ", 1)
    return start + b"Content-Length: %d" % (int(length.split(b"\r\n")[0]) + by) + b"\r\n\r\n" + block


@pytest.mark.parametrize(
    ("suffix", "damage", "pages", "faults"),
    [
        (".warc", lambda a, b, c: a + b"garbage\r\n" * 9 + b + c, "012", 1),
        (".warc", lambda a, b, c: a + bytes(300_000) + b + c, "012", 1),
        (".warc", lambda a, b, c: b"WARC/1.0\r\n" * 50_000 + a + b + c, "012", 1),
        (".warc", lambda a, b, c: a + grown(b, 200) + c, "02", 1),
        (".warc", lambda a, b, c: a + grown(b, 10**11) + c, "02", 1),
        (".warc", lambda a, b, c: a + grown(b, -2) + c, "012", 1),
        (".warc", lambda a, b, c: a + b.replace(b"Content-Length", b"Content-Lengte") + c, "02", 1),
        (".warc", lambda a, b, c: a + b + c[:-60], "01", 1),
        (".warc", lambda a, b, c: a + b + c[:40], "01", 1),
        (".warc.gz", lambda a, b, c: a + b"garbage" * 99 + b + c, "012", 1),
        (".warc.gz", lambda a, b, c: a + b[:200] + c, "02", 1),
        (".warc.gz", lambda a, b, c: a + b[:-3] + c, "02", 1),
        (".warc.gz", lambda a, b, c: a + b[:-8] + bytes(4) + b[-4:] + c, "02", 1),  # its checksum
        (".warc.gz", lambda a, b, c: a + b[:150] + bytes(50) + b[200:] + c, "02", 1),
        (".warc.gz", lambda a, b, c: a + b + c[:-40], "01", 1),
        (".warc.gz", lambda a, b, c: a + b + c + bytes(5000), "012", 0),
        (".warc.gz", lambda a, b, c: a + gzip.compress(b"nothing") + b + c, "012", 1),
    ],
)
def test_reading_goes_on_at_the_record_after_damage_that_is_counted(tmp_path, suffix, damage, pages, faults):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(damage(*three_pages(path)))
    items = read(tmp_path)
    assert "".join(i.sample.url[-1] for i in items if i.sample) == pages
    found = [i.fault for i in items if i.fault]
    assert [(f.reason, f.bad) for f in found] == faults * [("broken record", False)]
    assert all(f.where.startswith("record ") for f in found)


@pytest.mark.parametrize(
    "data", [b"", b"\r\n\r\n", b"\x1f\x8b", b"\x28\xb5\x2f\xfd zstd", b"{}", gzip.compress(b"", mtime=0)]
)
def test_a_file_without_a_sound_record_is_a_fault_that_somebody_must_look_at(tmp_path, data):
    (tmp_path / "a.warc.gz").write_bytes(data)
    *broken, last = read(tmp_path)
    assert (last.fault.reason, last.fault.bad) == ("unreadable file", True)
    assert all((i.fault.reason, i.fault.bad) == ("broken record", False) for i in broken)


def test_a_file_cut_or_flipped_anywhere_neither_crashes_nor_hangs(tmp_path):
    rng = random.Random(0)
    started = time.process_time()
    for suffix in (".warc", ".warc.gz"):
        whole = write(
            tmp_path / f"w{suffix}", record(PAGE, page()), record("http://h.org/r.png", RED, "image/png")
        ).read_bytes()
        for n in range(300):
            data = bytearray(whole[: rng.randrange(len(whole))] if n % 2 else whole)
            for _ in range(rng.randrange(4)):
                data[rng.randrange(len(data))] = rng.randrange(256) if data else 0
                if not data:
                    break
            found = list(raw_records(io.BytesIO(bytes(data)), MAX_BYTES))
            assert sum(not isinstance(r, Broken) for r in found) <= 2
            path = tmp_path / "x" / f"a{suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(data))
            if n % 10 == 0:
                read(path.parent)
    assert time.process_time() - started < 150


def test_a_record_larger_than_the_cap_is_a_fault_and_what_follows_is_read(tmp_path):
    write(tmp_path / "a.warc.gz", record(PAGE + "1", bytes(20 * 2**20)), record(PAGE + "2", page()))
    items = read(tmp_path)
    assert [i.fault.bad for i in items if i.fault] == [False]
    assert [i.sample.url[-1] for i in items if i.sample] == ["2"]
