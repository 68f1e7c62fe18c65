"""A whole build of captions beside its pictures' decode and resize alone; two workers beside one; memory.

    python tests/benchmarks/bench_build.py [--photos DIR] [--copies 40] [--out FILE.json]

Ratios, all of one run: `pipeline_over_decode` in CPU seconds (bar: at most 1.5), `two_workers_speedup` in
wall-clock seconds (bar: at least 1.7; measure with the machine quiet), `peak_mib` of the largest worker.
"""

import argparse
import io
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build

PHOTOS = Path(__file__).parents[3] / "shared" / "realdata" / "coco_cc"
COMMENT = b"\xff\xfe"  # a JPEG marker: the copies differ in bytes, not in pixels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        inputs = Path(work) / "in"
        n = copies(args.photos, inputs, args.copies)
        alone = best(lambda: decode_and_resize(inputs), args.rounds, time.process_time)
        whole = best(lambda: run(inputs, Path(work) / "out", workers=1), args.rounds, time.process_time)
        one = best(lambda: run(inputs, Path(work) / "out", workers=1), args.rounds, time.perf_counter)
        two = best(lambda: run(inputs, Path(work) / "out", workers=2), args.rounds, time.perf_counter)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found = {
        "pictures": n,
        "pipeline_over_decode": round(whole / alone, 3),
        "two_workers_speedup": round(one / two, 3),
        "peak_mib": round(peak / 1024),
    }
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if args.out:
        args.out.write_text(text + "\n")
    return 0


def copies(photos: Path, folder: Path, times: int) -> int:
    """Captioned photographs, each `times` times with a comment of its own: as many different files."""
    folder.mkdir()
    records = []
    for photo in sorted(photos.rglob("*.jpg")):
        data = photo.read_bytes()
        for k in range(times):
            comment = COMMENT + (4).to_bytes(2, "big") + k.to_bytes(2, "big")
            name = f"{photo.stem}-{k}.jpg"
            (folder / name).write_bytes(data[:2] + comment + data[2:])
            records.append({"image": name, "caption": f"photograph {photo.stem}, copy {k}"})
    (folder / "captions.json").write_text(json.dumps(records))
    return len(records)


def decode_and_resize(folder: Path) -> None:
    for photo in sorted(folder.glob("*.jpg")):
        with Image.open(io.BytesIO(photo.read_bytes())) as image:
            image.convert("RGB").resize((384, 384), Image.Resampling.BICUBIC)


def run(inputs: Path, out: Path, workers: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    source = {"name": "photos", "kind": "captions", "path": "captions.json"}
    recipe = BuildRecipe.model_validate({"name": "bench", "tasks": 8, "sources": [source]})
    build(recipe, out, root=inputs, workers=workers)


def best(work: Callable[[], None], rounds: int, clock: Callable[[], float]) -> float:
    times = []
    for _ in range(rounds):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())
