"""Writing, comparing and exporting as ratios of CPU time: to `webdataset`'s own writer, to plain sha256.

python tests/benchmarks/bench_write.py [--out FILE.json] [--samples N]
"""

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset

from data_pipeline.build.diff import diff
from data_pipeline.build.exporters.export import export
from data_pipeline.build.write.shard import ShardWriter
from data_pipeline.manifest import Funnel, Manifest, TaskRecord, write_manifest, write_task_record
from data_pipeline.sample import Media, Sample, Segment, content_id

_IMAGE_BYTES = 100_000


def made(count: int) -> list[Sample]:
    """Captions with pictures of 100 kB that no codec is asked about."""
    found = []
    for n in range(count):
        data = b"\xff\xd8\xff" + os.urandom(_IMAGE_BYTES)
        media = Media(media_id=content_id(data), mime="image/jpeg", width=640, height=480, nbytes=len(data))
        segments = (
            Segment(type="image", media=0),
            Segment(type="text", text=f"caption {n} " * 8, role="alt"),
        )
        found.append(
            Sample(id=content_id(data, "s"), kind="caption", source="s", segments=segments, media=(media,),
                   image_bytes=(data,))
        )  # fmt: skip
    return found


def best(work: Callable[[], object], rounds: int = 3) -> float:
    """Seconds of CPU of the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def dataset(directory: Path, samples: list[Sample], formats: tuple[str, ...]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    writer = ShardWriter(directory, "s-train-00000-000", "s", "train", formats)
    for sample in samples:
        writer.add(sample)
    n = len(samples)
    funnel = Funnel(read=n, written=n, images_read=n, images_written=n)
    task = TaskRecord(task=0, tasks=1, fingerprint="f", shards=tuple(writer.finish()), funnel={"s": funnel},
                      files=writer.files)  # fmt: skip
    write_task_record(directory, task)
    write_manifest(
        directory,
        Manifest(name="b", fingerprint="f", recipe={}, licences={}, unread=(), tasks=(task,)),
    )


def by_webdataset(path: Path, samples: list[Sample]) -> None:
    with webdataset.TarWriter(str(path)) as tar:
        for s in samples:
            row = {k: v for k, v in s.to_row().items() if k != "images"}
            tar.write({"__key__": s.id, "json": json.dumps(row), "jpg": s.image_bytes[0]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    samples = made(args.samples)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        peer = best(lambda: by_webdataset(root / "peer.tar", samples))
        seconds = {
            f: best(lambda f=f: dataset(root / f, samples, (f,))) for f in ("arrow", "webdataset", "parquet")
        }
        dataset(root / "a", samples, ("arrow",))
        dataset(root / "b", samples[::-1], ("arrow",))
        data = (root / "a/shards/s-train-00000-000.arrow").read_bytes()
        sha = best(lambda: hashlib.sha256(data).hexdigest())
        compared = best(lambda: diff(root / "a", root / "b"))

        def copied() -> None:
            shutil.rmtree(root / "copy", ignore_errors=True)
            export(root / "a", root / "copy", "fovea")

        copy = best(copied)
    found = {
        "samples": args.samples,
        "mb": len(data) / 1e6,
        "tar, of webdataset's TarWriter": round(seconds["webdataset"] / peer, 2),
        "arrow, of webdataset's TarWriter": round(seconds["arrow"] / peer, 2),
        "parquet, of webdataset's TarWriter": round(seconds["parquet"] / peer, 2),
        "diff of two orders, of sha256 of both": round(compared / (2 * sha), 2),
        "export to fovea, of writing arrow": round(copy / seconds["arrow"], 2),
    }
    text = json.dumps(found, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
