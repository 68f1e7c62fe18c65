"""Arrow, WebDataset and Parquet shards give the same samples, from a folder, a file:// URL or a server."""

import http.server
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import webdataset

from data_pipeline import manifest as m
from data_pipeline.build.write.shard import ShardWriter
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream import place as place_module
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.shards.lru import Lru
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source
from data_pipeline.view import Exclusion, exclude

FORMATS = ("arrow", "webdataset", "parquet")
SUFFIX = {"arrow": "arrow", "webdataset": "tar", "parquet": "parquet"}
PER_SHARD = 40


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files of a directory in ranges. `server.asked` lists (path, bytes sent) of each GET."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body of an answer are 40 ms apart

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        if self.server.failures:
            return self.send_error(self.server.failures.pop())
        data, status = path.read_bytes(), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            data, status = data[int(wanted[1]) : int(wanted[2]) + 1], 206
        self.server.asked.append((path.name, len(data)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_header(self, name: str, value: str) -> None:
        if name == "Content-Length" and not self.server.sizes:
            name, value = "Connection", "close"
        super().send_header(name, value)

    def end_headers(self) -> None:
        if self.command == "HEAD" and self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def written(make) -> list[Sample]:
    """Every kind, with what is awkward: ids that are no file names, absent pictures, columns above 16 KiB."""
    found = [make.document(n, paragraphs=4, pictures=n % 4) for n in range(60)]
    found += [replace(make.caption(n), source="docs") for n in range(20)]
    found += [replace(make.dialogue(n), source="docs") for n in range(10)]
    found[3] = replace(found[3], id="a/b.c d", url="https://example.org/3", scores={"clip": 0.25})
    found[5] = replace(found[5], image_bytes=(None,), media=(Media(media_id="x", error="not fetched"),))
    found[6] = replace(found[6], segments=(*found[6].segments, Segment(type="text", text="word " * 9000)))
    found[7] = replace(found[7], media=tuple(replace(x, width=24, height=16) for x in found[7].media))
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory, written) -> tuple[Path, m.Manifest]:
    """The samples in all three formats, as a build writes them, in three shards."""
    directory = tmp_path_factory.mktemp("built")
    return directory, build(directory, written)


def build(directory: Path, written: list[Sample], formats: tuple[str, ...] = FORMATS) -> m.Manifest:
    shards, files = [], {}
    for n in range(0, len(written), PER_SHARD):
        writer = ShardWriter(directory, f"docs-train-{n:05d}", "docs", "train", formats)
        for sample in written[n : n + PER_SHARD]:
            writer.add(sample)
        shards += writer.finish()
        files |= writer.files
    funnel = {"docs": m.Funnel(read=len(written), written=len(written))}
    record = m.TaskRecord(task=0, tasks=1, fingerprint="f", shards=tuple(shards), funnel=funnel, files=files)
    made = m.Manifest(name="tiny", fingerprint="f", recipe={}, licences={}, unread=(), tasks=(record,))
    m.write_task_record(directory, record)
    m.write_manifest(directory, made)
    return m.read_manifest(directory)


@pytest.fixture
def server(built) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Ranges, directory=str(built[0]))
    ) as running:
        running.asked, running.ranges, running.failures, running.sizes = [], True, [], True
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(params=["folder", "file", "http"])
def root(request, built) -> str | Path:
    match request.param:
        case "folder":
            return built[0]
        case "file":
            return f"file://{built[0]}"
    return request.getfixturevalue("server").url


def opened(root: str | Path, format: str | None = None, **settings) -> Source:
    return Datasets.read([root], format=format, shards=Shards(**settings)).source("docs", "train")


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_what_was_written_from_every_place(root, written, format: str) -> None:
    source = opened(root, format)
    assert (source.format, len(source)) == (format, len(written))
    for i in reversed(range(len(written))):
        sample = written[i]
        assert source[i] == sample
        light = source.without_pixels(i)
        assert (light.id, light.kind, light.source) == (sample.id, sample.kind, "docs")
        assert [(s.type, s.text, s.media, s.role, s.turn, s.loss) for s in light.segments] == [
            (s.type, s.text, s.media, s.role, s.turn, s.loss) for s in sample.segments
        ]
        assert [(x.media_id, x.width, x.height, x.error) for x in light.media] == [
            (x.media_id, x.width, x.height, x.error) for x in sample.media
        ]
        assert light.image_bytes == (None,) * len(sample.media)
        pictures = tuple(source.picture(i, k) for k in range(len(sample.media)))
        assert pictures == sample.image_bytes
        assert source.picture(i, 99) is None
        assert source.head(i) == (sample.id, sample.source, sample.url)
        start = i // PER_SHARD * PER_SHARD
        assert source.place(i) == (f"shards/docs-train-{start:05d}.{SUFFIX[format]}", i - start)


def test_the_tar_library_and_tarfile_read_the_same_samples(built) -> None:
    directory, manifest = built
    source = opened(directory, "webdataset")
    tars = [str(directory / s.path) for s in manifest.shards(format="webdataset")]
    theirs = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(theirs) == len(source)
    for i, their in enumerate(theirs):
        sample = source[i]
        assert json.loads(their["json"])["id"] == sample.id
        pictures = [their[k] for k in sorted(their) if re.fullmatch(r"\d{3}\.\w+", k)]
        assert pictures == [b for b in sample.image_bytes if b]
    with tarfile.open(tars[1]) as tar:
        members = tar.getmembers()
        columns = [x for x in members if x.name.endswith(".json")]
        for row in (0, 7, 39):
            told = json.loads(tar.extractfile(columns[row]).read())
            assert told["segments"] == [vars(s) for s in source[PER_SHARD + row].segments]


def test_parquets_own_reader_and_datasets_read_the_same_samples(built) -> None:
    directory, manifest = built
    files = [str(directory / s.path) for s in manifest.shards(format="parquet")]
    source = opened(directory, "parquet")
    rows = [row for f in files for row in pq.read_table(f).to_pylist()]
    theirs = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(directory / "hf")
    )
    for i, row in enumerate(rows):
        assert source[i] == Sample.from_row(row)
        assert source[i].id == theirs[i]["id"]
        assert source[i].image_bytes == tuple(image["bytes"] for image in theirs[i]["images"])


def test_the_quickest_format_that_holds_all_is_taken_unless_one_is_named(built, server, tmp_path, written):
    directory, manifest = built
    assert opened(directory).format == "arrow"
    assert opened(server.url).format == "webdataset"  # a sample is one request there
    assert len({opened(directory, format).digest for format in FORMATS}) == 1
    partly = [s for s in manifest.shards() if s.format != "arrow" or "00000" in s.path]
    task = replace(manifest.tasks[0], shards=tuple(partly))
    assert Source.open(directory, replace(manifest, tasks=(task,)), "docs").format == "webdataset"
    only = build(tmp_path, written[:3], ("arrow",))
    with pytest.raises(ConfigError, match="as arrow, not as 'parquet'"):
        Source.open(tmp_path, only, "docs", format="parquet")


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


def test_a_tar_that_shrinks_while_it_is_read_is_named(built, tmp_path) -> None:
    copied(built, tmp_path)
    source = opened(tmp_path, "webdataset")
    source[0]
    os.truncate(tmp_path / source.place(1)[0], 0)
    with pytest.raises(DataError, match=r"00000\.tar ends at byte"):
        source[1]


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


def copied(built: tuple[Path, m.Manifest], to: Path) -> m.Manifest:
    for path in built[0].rglob("*.*"):
        target = to / path.relative_to(built[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
    return built[1]


def resealed(directory: Path, manifest: m.Manifest) -> m.Manifest:
    """With the sizes and digests that the files have now: what is in them is the fault, then."""
    task = manifest.tasks[0]
    shards = tuple(
        replace(s, nbytes=(directory / s.path).stat().st_size, sha256=m.sha256_file(directory / s.path))
        for s in task.shards
    )
    files = {path: m.sha256_file(directory / path) for path in task.files if (directory / path).exists()}
    return replace(manifest, tasks=(replace(task, shards=shards, files=files),))


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_byte_names_the_shard(built, tmp_path, format: str) -> None:
    manifest = copied(built, tmp_path)
    path = tmp_path / manifest.shards(format=format)[1].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    source = Source.open(tmp_path, manifest, "docs", format=format)
    source[0]
    with pytest.raises(DataError, match=f"{path.name} was altered"):
        source[PER_SHARD]
    # Of a remote shard the digest is looked at where that is asked for.
    remote = Source.open(
        f"file://{tmp_path}", manifest, "docs", format=format, shards=Shards(remote_digests=True)
    )
    remote[0]
    with pytest.raises(DataError, match=f"{path.name} was altered"):
        remote[PER_SHARD]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_shard_is_named(built, tmp_path, format: str, scheme: str) -> None:
    manifest = copied(built, tmp_path)
    path = tmp_path / manifest.shards(format=format)[1].path
    path.write_bytes(path.read_bytes()[:-11_000])  # more than a tar's padding
    with pytest.raises(DataError, match=f"{path.name} has "):
        Source.open(f"{scheme}{tmp_path}", manifest, "docs", format=format)[PER_SHARD]
    with pytest.raises(DataError, match=path.name):  # truncated before the manifest was written
        Source.open(f"{scheme}{tmp_path}", resealed(tmp_path, manifest), "docs", format=format)[PER_SHARD]


def missing(index: Path) -> None:
    index.unlink()


def short(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:-8])


def shifted(index: Path) -> None:
    """Every offset one block late: in order, in the archive, and wrong."""
    offsets = struct.unpack(f"<{len(index.read_bytes()) // 8}Q", index.read_bytes())
    index.write_bytes(struct.pack(f"<{len(offsets)}Q", 0, *(o + 512 for o in offsets[1:-1]), offsets[-1]))


def merged(index: Path) -> None:
    """A sample is said to begin at its picture: in order, whole blocks, and a header is there."""
    tar = index.with_suffix("")
    offsets = list(struct.unpack(f"<{index.stat().st_size // 8}Q", index.read_bytes()))
    with tarfile.open(tar) as opened_tar:
        picture = next(x for x in opened_tar.getmembers() if not x.name.endswith(".json"))
    before = max(n for n, o in enumerate(offsets) if o < picture.offset)
    offsets[before] = picture.offset
    index.write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))


def unordered(index: Path) -> None:
    offsets = list(struct.unpack(f"<{index.stat().st_size // 8}Q", index.read_bytes()))
    offsets[3], offsets[4] = offsets[4], offsets[3]
    index.write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))


def misaligned(index: Path) -> None:
    data = bytearray(index.read_bytes())
    data[8] += 1
    index.write_bytes(data)


def late(index: Path) -> None:
    index.write_bytes(struct.pack("<Q", 512) + index.read_bytes()[8:])


def beyond(index: Path) -> None:
    data = index.read_bytes()
    index.write_bytes(data[:-8] + struct.pack("<Q", 1 << 40))


@pytest.mark.parametrize("broken", [missing, short, shifted, merged, unordered, misaligned, late, beyond])
def test_an_index_that_is_not_its_tars_is_refused(built, tmp_path, broken) -> None:
    manifest = copied(built, tmp_path)
    tar = tmp_path / manifest.shards(format="webdataset")[0].path
    index = tar.with_name(f"{tar.name}.idx")
    broken(index)
    source = Source.open(tmp_path, manifest, "docs", format="webdataset")
    with pytest.raises(DataError, match=re.escape(index.name)):
        source[1]
    # A remote archive is not walked through: there the digest of its index is what counts.
    remote = Source.open(f"file://{tmp_path}", manifest, "docs", format="webdataset")
    with pytest.raises(DataError, match=r"\.idx (was altered|is missing)"):
        remote[1]
    if broken not in (missing, shifted, merged):  # which only a walk can tell
        unvouched = replace(manifest, tasks=(replace(manifest.tasks[0], files={}),))
        with pytest.raises(DataError, match="is not that of its tar"):
            Source.open(f"file://{tmp_path}", unvouched, "docs", format="webdataset")[1]
    # And where the manifest vouches for it, or says nothing of it.
    for vouched in (resealed(tmp_path, manifest), manifest):
        task = vouched.tasks[0]
        task = task if vouched is not manifest else replace(task, files={})
        source = Source.open(tmp_path, replace(vouched, tasks=(task,)), "docs", format="webdataset")
        with pytest.raises(DataError, match=re.escape(index.name)):
            source[1]


def test_a_proof_of_a_tar_is_one_of_its_index_too(built, tmp_path) -> None:
    manifest = copied(built, tmp_path)
    manifest = replace(manifest, tasks=(replace(manifest.tasks[0], files={}),))  # vouches for no index
    shards = Shards(tmp_path / "proofs")
    Source.open(tmp_path, manifest, "docs", format="webdataset", shards=shards)[0]
    shifted(tmp_path / f"{manifest.shards(format='webdataset')[0].path}.idx")
    again = pickle.loads(pickle.dumps(shards))
    with pytest.raises(DataError, match="is not that of its tar"):
        Source.open(tmp_path, manifest, "docs", format="webdataset", shards=again)[0]


def test_the_index_of_another_tar_is_refused(built, tmp_path) -> None:
    manifest = copied(built, tmp_path)
    first, second = (tmp_path / f"{s.path}.idx" for s in manifest.shards(format="webdataset")[:2])
    first.write_bytes(second.read_bytes())
    for known in (manifest, resealed(tmp_path, manifest)):
        with pytest.raises(DataError, match=re.escape(first.name)):
            Source.open(tmp_path, known, "docs", format="webdataset")[1]


BAD_COLUMNS = {
    "no JSON": b"{not json",
    "no object": b"[1, 2]",
    "too deep": b"[" * 100_000,
    "no UTF-8": b'{"id": "\xff"}',
    "missing columns": b'{"id": "x"}',
    "another schema": lambda row: {**row, "schema_version": 99},
    "unknown column": lambda row: {**row, "segments": [{**row["segments"][0], "surprise": 1}]},
    "a number for text": lambda row: {**row, "segments": [{**row["segments"][0], "text": 5}]},
    "a text for a number": lambda row: {**row, "lang_score": "high"},
    "a number for a media's id": lambda row: {**row, "media": [{**x, "media_id": 5} for x in row["media"]]},
    "no id": lambda row: {**row, "id": None},
    "a picture too few": lambda row: {
        **row,
        "segments": [{**row["segments"][0], "type": "image", "media": 9}],
    },
}


@pytest.mark.parametrize("bad", BAD_COLUMNS)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_tars_row_that_is_no_sample_is_one_broken_sample(tmp_path, written, bad: str, scheme: str) -> None:
    manifest = build(tmp_path, written[:5], ("arrow", "webdataset"))
    tar = tmp_path / manifest.shards(format="webdataset")[0].path
    with tarfile.open(tar) as old:
        members = [(x, old.extractfile(x).read()) for x in old.getmembers()]
    offsets, row, out = [], -1, io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for info, data in members:
            if info.name.endswith(".json"):
                row += 1
                offsets.append(new.offset)
                if row == 2:
                    made = BAD_COLUMNS[bad]
                    data = made if isinstance(made, bytes) else json.dumps(made(json.loads(data))).encode()
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
        offsets.append(new.offset)
    tar.write_bytes(out.getvalue())
    tar.with_name(f"{tar.name}.idx").write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
    source = Source.open(f"{scheme}{tmp_path}", resealed(tmp_path, manifest), "docs", format="webdataset")
    gone = exclude(tmp_path, "dedup", [Exclusion(written[4].id, None, "copy")], {}).exclusions
    hiding = replace(resealed(tmp_path, manifest), exclusions=gone)
    for read in (source.__getitem__, source.without_pixels):
        with pytest.raises(BrokenSample, match="row cannot be decoded"):
            read(2)
    assert [source[i] for i in (0, 1, 3, 4)] == [written[i] for i in (0, 1, 3, 4)]
    hidden = Source.open(f"{scheme}{tmp_path}", hiding, "docs", format="webdataset")
    assert [hidden[i] for i in (0, 1, 3)] == [written[i] for i in (0, 1, 3)]


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


def member_named(tar: Path, ending: str) -> tarfile.TarInfo:
    with tarfile.open(tar) as opened_tar:
        return next(x for x in opened_tar.getmembers() if x.name.endswith(ending))


HEADERS = {  # the place in the header, and what is put there; the checksum is made to fit
    "a link": (156, b"2"),
    "a folder": (156, b"5"),
    "a name that goes on elsewhere": (345, b"x"),
    "a size that makes no headway": (124, b"-0000001001\0"),
    "a size beyond the sample": (124, b"77777777777\0"),
    "a size that is no number": (124, b"many\0"),
    "another sample's name": (0, b"zz"),
    "a wrong checksum": (148, b"000001\0 "),
}


@pytest.mark.parametrize("ending", [".json", ".png"])
@pytest.mark.parametrize("broken", HEADERS)
def test_a_header_that_is_no_file_of_its_sample_is_refused(
    tmp_path, written, broken: str, ending: str
) -> None:
    """Here the shard: its offsets were followed when it was proven. Of a remote one, the sample."""
    manifest = build(tmp_path, written[1:4], ("arrow", "webdataset"))
    tar = tmp_path / manifest.shards(format="webdataset")[0].path
    data, at = bytearray(tar.read_bytes()), member_named(tar, ending).offset
    place, value = HEADERS[broken]
    data[at + place : at + place + len(value)] = value
    if broken != "a wrong checksum":
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    tar.write_bytes(data)
    manifest = resealed(tmp_path, manifest)
    with pytest.raises(DataError, match="is not that of its tar"):
        Source.open(tmp_path, manifest, "docs", format="webdataset")[2]
    remote = Source.open(f"file://{tmp_path}", manifest, "docs", format="webdataset")
    for read in (remote.__getitem__, lambda i: remote.picture(i, 0)):
        with pytest.raises(BrokenSample):
            read(0)
    if ending == ".json" and "name" not in broken:
        with pytest.raises(BrokenSample):
            remote.without_pixels(0)
    assert remote[2] == written[3]


@pytest.mark.parametrize("kind", ["schema", "count"])
def test_a_parquet_file_that_is_no_shard_is_refused(built, tmp_path, kind: str) -> None:
    manifest = copied(built, tmp_path)
    path = tmp_path / manifest.shards(format="parquet")[0].path
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["lineage"]) if kind == "schema" else table[:9], path)
    said = "does not have the schema" if kind == "schema" else "holds 9 samples, the manifest says 40"
    with pytest.raises(DataError, match=said):
        Source.open(tmp_path, resealed(tmp_path, manifest), "docs", format="parquet")[0]


def test_a_row_group_that_cannot_be_decoded_is_broken_samples(built, tmp_path) -> None:
    manifest = copied(built, tmp_path)
    path = tmp_path / manifest.shards(format="parquet")[0].path
    at = pq.ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 40] = bytes([0xA5]) * 40
    path.write_bytes(data)
    source = Source.open(tmp_path, resealed(tmp_path, manifest), "docs", format="parquet")
    with pytest.raises(BrokenSample):
        source[0]
    assert source[PER_SHARD].id


def _read_these(source: Source, numbers: list[int]) -> list[Sample]:
    return [source[i] for i in numbers]


def _read_all(source: Source) -> list[str]:
    return [source[i].id for i in range(len(source))]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_source_that_was_read_travels_to_another_process(server, built, written, method: str) -> None:
    sources = [opened(built[0], f) for f in FORMATS] + [opened(server.url, f) for f in FORMATS]
    for source in sources:
        source[0]
    assert len(pickle.dumps(sources)) < 20_000  # no file, no map, nothing that was decoded
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(_read_all, sources, chunksize=6) == [[s.id for s in written]] * 6


def test_a_forked_process_opens_files_of_its_own(server, written) -> None:
    """Connections of the parent are of no use there: their loop runs in a thread that is not forked."""
    sources = [opened(server.url, format) for format in FORMATS]
    for source in sources:
        source[0]
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    child = context.Process(target=lambda: [found.put(_read_all(source)) for source in sources])
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert [found.get() for _ in sources] == [[s.id for s in written]] * 3


def test_threads_may_read_while_shards_are_let_go(built, server, written) -> None:
    wanted = [random.Random(n).choices(range(len(written)), k=60) for n in range(4)]
    for root, format in [(built[0], f) for f in FORMATS] + [(server.url, f) for f in FORMATS]:
        source = opened(root, format, max_open=1, cache_bytes=20_000)
        read = partial(_read_these, source)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, wanted)) == [[written[i] for i in numbers] for numbers in wanted]


def test_open_files_and_maps_are_bounded(tmp_path, make) -> None:
    written = [replace(make.caption(n), source="docs") for n in range(40)]
    shards, indices = [], {}
    for n, sample in enumerate(written):
        writer = ShardWriter(tmp_path, f"docs-train-{n:05d}", "docs", "train", FORMATS)
        writer.add(sample)
        shards += writer.finish()
        indices |= writer.files
    record = m.TaskRecord(task=0, tasks=1, fingerprint="f", shards=tuple(shards), funnel={}, files=indices)
    manifest = m.Manifest(name="t", fingerprint="f", recipe={}, licences={}, unread=(), tasks=(record,))

    def held() -> tuple[int, int]:
        fds = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        return sum(str(tmp_path) in f for f in fds), sum(str(tmp_path) in name for name in maps)

    for format in FORMATS:
        source = Source.open(tmp_path, manifest, "docs", format=format, shards=Shards(max_open=4))
        assert [source[i].id for i in range(40)] == [s.id for s in written]
        fds, maps = held()
        assert 0 < fds <= 4
        assert maps <= 4
        del source
        assert held() == (0, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_a_proof_is_made_once_for_a_machine(built, tmp_path, format: str, monkeypatch) -> None:
    manifest, proofs = copied(built, tmp_path), tmp_path / "proofs"
    Source.open(tmp_path, manifest, "docs", format=format, shards=Shards(proofs))[0]
    found = list(proofs.iterdir())
    assert len(found) == 1
    monkeypatch.setattr(m, "sha256_file", None)  # whoever hashed again would fail
    again = Source.open(tmp_path, manifest, "docs", format=format, shards=Shards(proofs))
    assert again[0].id == "doc0"
    with pytest.raises(TypeError):
        again[PER_SHARD]  # another shard: not proven yet
    monkeypatch.undo()
    assert again[PER_SHARD].id == f"doc{PER_SHARD}"
    path = tmp_path / manifest.shards(format=format)[0].path
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(good[:700] + bytes([good[700] ^ 1]) + good[701:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # altered, with its old time put back
    with pytest.raises(DataError, match="was altered"):
        Source.open(tmp_path, manifest, "docs", format=format, shards=Shards(proofs))[0]


def test_a_torn_or_foreign_proof_proves_nothing(built, tmp_path) -> None:
    manifest, proofs = copied(built, tmp_path), tmp_path / "proofs"
    Source.open(tmp_path, manifest, "docs", shards=Shards(proofs))[0]
    [proof] = proofs.iterdir()
    whole = proof.read_bytes()
    for torn in (b"", whole[:-3], b"null", b"{}", whole.replace(b"docs", b"dogs")):
        proof.write_bytes(torn)
        Source.open(tmp_path, manifest, "docs", shards=Shards(proofs))[0]
        assert proof.read_bytes() == whole


def test_processes_that_come_at_once_prove_a_shard_once(built, tmp_path) -> None:
    copied(built, tmp_path)
    code = (
        "import sys, time; from pathlib import Path; import data_pipeline.stream.shards.opened as o\n"
        "from data_pipeline.manifest import read_manifest; from data_pipeline.stream.source import Source\n"
        "real = o.check_shard; o.check_shard = lambda *a: (print('proven'), real(*a), time.sleep(0.3))\n"
        "d = Path(sys.argv[1]); shards = o.Shards(d / 'proofs')\n"
        "source = Source.open(d, read_manifest(d), 'docs', shards=shards)\n"
        "(d / f'{sys.argv[2]}.ready').touch()\n"
        "while len(list(d.glob('*.ready'))) < 3: time.sleep(0.01)\n"
        "source[0]"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], stdout=subprocess.PIPE)
        for n in range(3)
    ]
    assert b"".join(p.communicate()[0] for p in running).count(b"proven") == 1
    assert [p.returncode for p in running] == [0, 0, 0]
    assert len(list((tmp_path / "proofs").iterdir())) == 1


def test_what_is_decoded_is_held_within_its_bound(built) -> None:
    for format in FORMATS:
        shards = Shards(cache_bytes=60_000)
        source = Source.open(f"file://{built[0]}", built[1], "docs", format=format, shards=shards)
        for i in range(len(source)):
            source[i]
            assert shards._cache.weight <= 60_000
        assert shards._cache.weight > 0


def test_what_is_too_large_to_be_held_displaces_nothing() -> None:
    cache, made = Lru(10), []

    def get(name: str, weight: int) -> None:
        cache.get(name, lambda: made.append(name), lambda _: weight)

    for name, weight in (
        ("a", 4),
        ("b", 6),
        ("huge", 11),
        ("a", 4),
        ("c", 5),
        ("a", 4),
        ("b", 6),
        ("huge", 11),
    ):
        get(name, weight)
    assert made == ["a", "b", "huge", "c", "b", "huge"]  # c displaced b, which was used least recently
    assert (cache.weight, len(cache)) == (10, 2)
