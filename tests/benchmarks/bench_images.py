"""What a build does to every image, against plain Pillow + ImageHash: decode, 384 pixels, perceptual hash.

    python tests/benchmarks/bench_images.py [FOLDER_OF_IMAGES] [--out FILE.json]

Without a folder: generated photographs of 1024x768 as JPEG. CPU time of one core, the best of several rounds.
The peer's hash is taken of its 384-pixel image, which is the cheaper way for it. `ratio` is of all that
`inspect` does (header, decode, hash, two scores, at the size that it needs); `ratio_at_384` of decode, resize
to the same 384 pixels and hash.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from data_pipeline.build.images.check import Facts, image_format, inspect
from data_pipeline.build.images.header import read_header
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.build.images.phash import perceptual_hash
from data_pipeline.build.images.sight import text_overlay, thumbnail, uniform

SIDE = 384
LIMITS = ImageLimits(max_aspect=100, min_side=1)


def generated(count: int = 24, width: int = 1024, height: int = 768) -> list[bytes]:
    """Pictures with the frequencies of a photograph: noise at every scale."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        canvas = np.zeros((height, width, 3))
        for cells in (4, 16, 64, 256):
            noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            canvas += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
        out = io.BytesIO()
        Image.fromarray((canvas / 4).astype(np.uint8)).save(out, "JPEG", quality=88)
        pictures.append(out.getvalue())
    return pictures


def plain(data: bytes) -> None:
    """What one would write without thinking about it."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        small = image.convert("RGB")
    scale = min(1.0, SIDE / max(small.size))
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    imagehash.phash(small)


def ours(data: bytes) -> None:
    assert isinstance(inspect(data, LIMITS), Facts)


def ours_at_384(data: bytes) -> None:
    header = read_header(data, image_format(data) or "")
    with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
        perceptual_hash(thumbnail(image, SIDE))


def seconds(work: Callable[[bytes], None], pictures: list[bytes], rounds: int) -> float:
    """CPU seconds for one pass, the best of `rounds`."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for data in pictures:
            work(data)
        best = min(best, time.process_time() - start)
    return best


def parts(pictures: list[bytes], rounds: int) -> dict[str, float]:
    """Milliseconds per image of what `inspect` does, one by one."""
    smalls = []
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            smalls.append(thumbnail(image))
    found = {}
    for name, work in (
        ("header", lambda i: read_header(pictures[i], image_format(pictures[i]) or "")),
        ("decode and thumbnail", lambda i: thumbnail(Image.open(io.BytesIO(pictures[i])))),
        ("perceptual hash", lambda i: perceptual_hash(smalls[i])),
        ("uniform", lambda i: uniform(smalls[i])),
        ("text overlay", lambda i: text_overlay(smalls[i])),
    ):
        best = float("inf")
        for _ in range(rounds):
            start = time.process_time()
            for i in range(len(pictures)):
                work(i)
            best = min(best, time.process_time() - start)
        found[name] = round(1000 * best / len(pictures), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    files = sorted(args.folder.iterdir()) if args.folder else []
    pictures = [p.read_bytes() for p in files if p.suffix in (".jpg", ".jpeg", ".png")] or generated()
    mine, theirs = seconds(ours, pictures, args.rounds), seconds(plain, pictures, args.rounds)
    result = {
        "images": len(pictures),
        "fovea_images_per_second": round(len(pictures) / mine, 1),
        "plain_images_per_second": round(len(pictures) / theirs, 1),
        "ratio": round(theirs / mine, 2),
        "ratio_at_384": round(theirs / seconds(ours_at_384, pictures, args.rounds), 2),
        "milliseconds": parts(pictures, args.rounds),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
