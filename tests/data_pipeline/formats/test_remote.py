"""Shards behind a server: their own bytes and no more, and servers that fail."""

import http.server
import os
import struct
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data_pipeline import manifest as m
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.stream import place as place_module
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.source import Source
from data_pipeline.view import Exclusion, exclude
from shards import FORMATS, Ranges, build, opened


def test_one_remote_sample_takes_its_own_bytes_and_no_more(built, server) -> None:
    largest = {
        "webdataset": 0.05,  # the sample
        "parquet": 0.95,  # the footer and a row group of the three shards' 40 rows: one group each
        "arrow": 0.95,
    }
    for format, share in largest.items():
        source = opened(server.url, format)
        source[50]
        size = (built[0] / source.place(50)[0]).stat().st_size
        server.asked.clear()
        source[45]
        sent = sum(n for name, n in server.asked if name.startswith("docs"))
        assert sent < share * size
        assert {name for name, _ in server.asked} <= {Path(source.place(45)[0]).name}


@pytest.mark.parametrize("format", FORMATS)
def test_planning_asks_a_server_for_no_pictures(tmp_path, make, format: str) -> None:
    noise = [os.urandom(50_000) for _ in range(64)]
    written = [replace(make.document(n, pictures=1), image_bytes=(noise[n],)) for n in range(64)]
    written = [replace(s, source="docs") for s in written]
    build(tmp_path, written, (format,) if format == "arrow" else ("arrow", format))
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path))
    ) as running:
        running.asked, running.ranges, running.failures, running.sizes = [], True, [], True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        source = opened(f"http://127.0.0.1:{running.server_port}", format)
        assert [source.without_pixels(i).id for i in range(64)] == [s.id for s in written]
        sent = sum(n for _, n in running.asked)
        running.shutdown()
    # A tar gives 16 KiB of each sample, which may hold the beginning of a picture.
    assert sent < (64 * 17_000 if format == "webdataset" else 0.3 * sum(map(len, noise)))


def test_a_server_that_knows_no_ranges_is_refused_and_not_read_wrongly(server) -> None:
    server.ranges = False
    with pytest.raises(DataError, match=r"(does not read in ranges|cannot be read)"):
        opened(server.url, "webdataset")[0]


def test_a_server_that_fails_for_a_moment_is_asked_again(server, written, monkeypatch) -> None:
    monkeypatch.setattr(place_module, "_WAIT_S", 0.01)
    source = opened(server.url, "webdataset")
    source[1]
    server.failures += [503, 500]
    assert source[0] == written[0]
    server.failures += [503, 500, 503]
    with pytest.raises(DataError, match=r"docs-train-00000\.tar cannot be read"):
        source[2]


def test_what_is_not_on_the_server_is_named(server) -> None:
    with pytest.raises(DataError, match=r"http://127.0.0.1:\d+/nowhere/manifest.json is missing"):
        Datasets.read([f"{server.url}/nowhere"])


@pytest.mark.parametrize(
    "url", ["zip://x::http://example.org/y", "s3://x::http://y", "sftp://host/x", "ZIP://x"]
)
def test_protocols_outside_of_the_list_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no place to read from"):
        Datasets.read([url])


def test_a_server_that_tells_no_sizes_is_refused(server) -> None:
    source = opened(server.url, "webdataset")
    server.sizes = False
    with pytest.raises(DataError, match="does not say how long it is"):
        source[0]


def test_a_remote_view_hides_what_it_hides_here(tmp_path, written) -> None:
    build(tmp_path, written)
    gone = [Exclusion(written[i].id, None, "copy") for i in (0, 41, 42, 89)]
    gone.append(Exclusion(written[7].id, written[7].media[1].media_id, "copy"))
    exclude(tmp_path, "dedup", gone, {})
    here, there = opened(tmp_path, "arrow"), opened(f"file://{tmp_path}", "parquet")
    assert [here[i] for i in range(len(here))] == [there[i] for i in range(len(there))]
    assert here[6].image_bytes[1] is None
    assert here.without_pixels(6).media[1].error == there.without_pixels(6).media[1].error == "excluded: copy"
    path = tmp_path / m.read_manifest(tmp_path).exclusions[0].path
    path.write_text(path.read_text().replace("copy", "COPY"))
    with pytest.raises(DataError, match=f"file://{path}"):
        opened(f"file://{tmp_path}")


def test_a_remote_batch_whose_offsets_lie_is_a_broken_sample_and_no_crash(tmp_path, written) -> None:
    """No digest vouches for it, so it is validated as it is read."""
    manifest = build(tmp_path, written[:40], ("arrow",))
    path = tmp_path / manifest.shards()[0].path
    texts = [s.text or "" for sample in written[:32] for s in sample.segments]
    lengths = [len(t.encode()) for t in texts]
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    good = path.read_bytes()
    at = good.index(struct.pack("<3i", *ends[:3]))
    path.write_bytes(good[:at] + struct.pack("<3i", 1 << 30, -7, 1 << 30) + good[at + 12 :])
    source = Source.open(f"file://{tmp_path}", manifest, "docs", format="arrow")
    for i in (0, 31):
        with pytest.raises(BrokenSample):
            source[i]
    assert source[32] == written[32]
