"""Reading samples at random: ours by format, against the libraries that read the same files.

    python tests/benchmarks/bench_read.py [--samples 4000] [--reads 400] [--rounds 3] [--dir DIR] [--out FILE]

Captions over real photographs (../shared/realdata/coco_cc, each with bytes of its own) are written as a build
writes them, in Arrow, WebDataset and Parquet. Every reader then gives the same random samples, pictures and
all, out of a warm page cache; what is timed is the CPU of one sample, best of the rounds:

    tar      webdataset (a scan, per sample passed; and what one sample costs when half a shard is before it),
             tarfile (opened once, members known) with json
    arrow    datasets.load_dataset("arrow"), which copies the shards into its cache first
    parquet  pyarrow.parquet, the row group of the sample, nothing kept

`ratio` is the peer's time over ours. `start`: opening a source against proving all of its shards at once;
`remote` counts requests and bytes of a random sample over HTTP, where latency decides and not the CPU.
"""

import argparse
import http.server
import json
import random
import re
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from data_pipeline.build.write.shard import ShardWriter
from data_pipeline.manifest import Manifest, Shard, TaskRecord, check_shard, read_manifest, write_manifest
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source

PHOTOGRAPHS = Path(__file__).parents[2].parent / "shared" / "realdata" / "coco_cc"
FORMATS = ("arrow", "webdataset", "parquet")
SHARD_SAMPLES = 1000


def build(directory: Path, count: int) -> Manifest:
    photographs = [p.read_bytes() for p in sorted(PHOTOGRAPHS.rglob("*.jpg"))]
    if not photographs:
        raise SystemExit(f"no photographs under {PHOTOGRAPHS}")
    shards: list[Shard] = []
    files: dict[str, str] = {}
    for start in range(0, count, SHARD_SAMPLES):
        writer = ShardWriter(directory, f"caps-train-00000-{start:06d}", "caps", "train", FORMATS)
        for n in range(start, min(start + SHARD_SAMPLES, count)):
            writer.add(caption(n, photographs[n % len(photographs)]))
        shards += writer.finish()
        files |= writer.files
    record = TaskRecord(task=0, tasks=1, fingerprint="f", shards=tuple(shards), funnel={}, files=files)
    manifest = Manifest(name="bench", fingerprint="f", recipe={}, licences={}, unread=(), tasks=(record,))
    write_manifest(directory, manifest)
    return read_manifest(directory)


def caption(n: int, photograph: bytes) -> Sample:
    return Sample(
        id=f"{n:032x}",
        kind="caption",
        source="caps",
        url=f"https://example.org/{n}",
        segments=(
            Segment(type="image", media=0),
            Segment(type="text", text=f"photograph {n} on the table", role="alt"),
            Segment(type="text", text="a long caption of what is to be seen " * 6, role="recaption"),
        ),
        media=(Media(media_id=f"m{n}", mime="image/jpeg", width=640, height=480),),
        # A comment after the end of the picture: no two samples share their bytes.
        image_bytes=(photograph + n.to_bytes(4, "little"),),
    )


def cpu_us(rounds: int, count: int, work: Callable[[], Any]) -> float:
    """Microseconds of CPU for each of the `count` things that `work` does, best of the rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return round(best / count * 1e6, 1)


class Random:
    """The same random samples out of every reader; each function gives the bytes of their pictures."""

    def __init__(self, directory: Path, manifest: Manifest, numbers: Sequence[int]) -> None:
        self.directory, self.numbers = directory, numbers
        self.paths = {f: [str(directory / s.path) for s in manifest.shards(format=f)] for f in FORMATS}

    def ours(self, source: Source) -> int:
        return sum(len(source[i].image_bytes[0] or b"") for i in self.numbers)

    def light(self, source: Source) -> int:
        return sum(len(source.without_pixels(i).segments) for i in self.numbers)

    def datasets(self, opened: datasets.Dataset) -> int:
        return sum(len(opened[i]["images"][0]["bytes"]) for i in self.numbers)

    def tarfile(self, opened: Sequence[tuple[tarfile.TarFile, list[tarfile.TarInfo]]]) -> int:
        total = 0
        for i in self.numbers:
            tar, members = opened[i // SHARD_SAMPLES]
            columns, picture = members[2 * (i % SHARD_SAMPLES) :][:2]
            json.loads(tar.extractfile(columns).read())  # type: ignore[union-attr]
            total += len(tar.extractfile(picture).read())  # type: ignore[union-attr]
        return total

    def parquet(self, opened: Sequence[pq.ParquetFile], ends: Sequence[np.ndarray]) -> int:
        total = 0
        for i in self.numbers:
            shard, row = divmod(i, SHARD_SAMPLES)
            group = int(np.searchsorted(ends[shard], row, side="right"))
            first = int(ends[shard][group - 1]) if group else 0
            table = opened[shard].read_row_group(group, use_threads=False)
            total += len(table.slice(row - first, 1).to_pylist()[0]["images"][0]["bytes"])
        return total

    def scan(self) -> int:
        """webdataset over the first shard, columns parsed as we do."""
        total = 0
        for sample in webdataset.WebDataset(self.paths["webdataset"][:1], shardshuffle=False):
            json.loads(sample["json"])
            total += len(sample["000.jpg"])
        return total


def reads(directory: Path, manifest: Manifest, count: int, rounds: int) -> dict[str, Any]:
    samples = sum(s.samples for s in manifest.shards(format="arrow"))
    numbers = random.Random(0).sample(range(samples), min(count, samples))
    ways = Random(directory, manifest, numbers)
    time_of = partial(cpu_us, rounds, len(numbers))
    found: dict[str, Any] = {"samples": samples, "reads": len(numbers)}
    for format in FORMATS:
        source = Source.open(directory, manifest, "caps", format=format)
        expected = ways.ours(source)  # every shard is open and proven, as in a run
        found[format] = {
            "ours_us": time_of(lambda source=source: ways.ours(source)),
            "without_pixels_us": time_of(lambda source=source: ways.light(source)),
        }
    tars = [tarfile.open(p) for p in ways.paths["webdataset"]]  # noqa: SIM115
    members = [(tar, tar.getmembers()) for tar in tars]
    cache = str(directory / "datasets")
    arrows = datasets.load_dataset("arrow", data_files=ways.paths["arrow"], split="train", cache_dir=cache)
    parquets = [pq.ParquetFile(p) for p in ways.paths["parquet"]]
    ends = [np.cumsum([p.metadata.row_group(g).num_rows for g in range(p.num_row_groups)]) for p in parquets]
    per_shard = min(samples, SHARD_SAMPLES)
    peers: dict[str, list[tuple[str, float, int]]] = {
        "arrow": [("datasets", time_of(lambda: ways.datasets(arrows)), ways.datasets(arrows))],
        "parquet": [
            ("pyarrow row group", time_of(lambda: ways.parquet(parquets, ends)), ways.parquet(parquets, ends))
        ],
        "webdataset": [
            ("tarfile", time_of(lambda: ways.tarfile(members)), ways.tarfile(members)),
            ("webdataset scan, per sample passed", cpu_us(rounds, per_shard, ways.scan), expected),
        ],
    }
    for format, rivals in peers.items():
        for name, us, total in rivals:
            assert total == expected, f"{name} read other bytes"
            found[format][name] = {"us": us, "ratio": round(us / found[format]["ours_us"], 2)}
    scan = found["webdataset"]["webdataset scan, per sample passed"]["us"]
    found["webdataset"]["webdataset, one sample at random"] = {
        "us": round(scan * per_shard / 2, 1),
        "ratio": round(scan * per_shard / 2 / found["webdataset"]["ours_us"], 1),
    }
    for tar in tars:
        tar.close()
    found["arrow over parquet"] = round(found["parquet"]["ours_us"] / found["arrow"]["ours_us"], 2)
    found["arrow over tar"] = round(found["webdataset"]["ours_us"] / found["arrow"]["ours_us"], 2)
    return found


def start(directory: Path, manifest: Manifest, rounds: int) -> dict[str, Any]:
    """Milliseconds until the first sample is there."""

    def first(shards: Shards) -> None:
        Source.open(directory, manifest, "caps", shards=shards)[0]

    def all_at_once() -> None:
        for shard in manifest.shards(format="arrow"):
            check_shard(directory, shard)
            with pa.memory_map(str(directory / shard.path)) as mapped:
                reader = pa.ipc.open_file(mapped)
                for b in range(reader.num_record_batches):
                    reader.get_batch(b).validate(full=True)

    with tempfile.TemporaryDirectory() as proofs:
        known = Path(proofs)
        first(Shards(known))
        figures = {
            "shards": len(manifest.shards(format="arrow")),
            "all shards proven first": cpu_us(rounds, 1, all_at_once) / 1000,
            "proven when first read": cpu_us(rounds, 1, lambda: first(Shards())) / 1000,
            "proven before, on this machine": cpu_us(rounds, 1, lambda: first(Shards(known))) / 1000,
        }
    return {**figures, "unit": "ms of CPU to the first sample"}


class Ranges(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        with path.open("rb") as f:
            first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, path.stat().st_size - 1)
            f.seek(first)
            data = f.read(last - first + 1)
        self.server.asked.append(len(data))  # type: ignore[attr-defined]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def end_headers(self) -> None:
        if self.command == "HEAD":
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def serving(directory: Path) -> Iterator[tuple[str, list[int]]]:
    handler = partial(Ranges, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
        server.shutdown()


def remote(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Requests and bytes: to open the first shard, and then of one random sample of it."""
    found: dict[str, Any] = {}
    numbers = random.Random(1).sample(range(min(SHARD_SAMPLES, manifest.shards()[0].samples)), 40)
    for url, asked in serving(directory):
        for format in FORMATS:
            source = Source.open(url, manifest, "caps", format=format, shards=Shards(cache_bytes=0))
            asked.clear()
            source[0]
            opening = len(asked)
            asked.clear()
            sizes = [len(source[i].image_bytes[0] or b"") for i in numbers]
            whole = len(asked), sum(asked)
            asked.clear()
            for i in numbers:
                source.without_pixels(i)
            found[format] = {
                "requests_to_first_sample": opening,
                "requests_per_sample": round(whole[0] / len(numbers), 2),
                "bytes_per_picture_byte": round(whole[1] / sum(sizes), 2),
                "light_requests_per_sample": round(len(asked) / len(numbers), 2),
                "light_bytes_per_sample": round(sum(asked) / len(numbers)),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--reads", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dir", type=Path, help="where to write the shards; a temporary directory if not given"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.dir or Path(temporary)
        manifest = build(directory, args.samples)
        figures = {
            "reads": reads(directory, manifest, args.reads, args.rounds),
            "start": start(directory, manifest, args.rounds),
            "remote": remote(directory, manifest),
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
