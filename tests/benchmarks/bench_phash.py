"""Image steps of a build against plain PIL + ImageHash: decode, resize to 384 on the longer side, hash.

    python tests/benchmarks/bench_phash.py [--rounds 5] [--out FILE]

Plain: open, decode, RGB, `resize`, `imagehash.phash` of the picture. Ours: `Image.draft` lets a JPEG decode
at a fraction where that is still 384 or more, the same `resize` with the same filter, and the hash of the
small copy. CPU time of one core, the best of several rounds, per collection and in total. "large" are those
pictures of `skimage` and `vqa_rad` whose longer side has 768 pixels or more.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
from PIL import Image

from data_pipeline.build.images.phash import decode_small, perceptual_hashes

REALDATA = Path(__file__).parents[2].parent / "shared" / "realdata"
SIDE = 384


def collections() -> dict[str, list[bytes]]:
    large = [
        p
        for folder in ("skimage", "vqa_rad/images")
        for p in sorted((REALDATA / folder).glob("*.[jp][pn]g"))
        if max(Image.open(p).size) >= 768
    ]
    return {
        "coco": [p.read_bytes() for p in sorted((REALDATA / "coco_cc").glob("*.jpg"))],
        "large": [p.read_bytes() for p in large],
    }


def target(image: Image.Image) -> tuple[int, int]:
    scale = SIDE / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def plain(data: bytes) -> object:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.resize(target(image), Image.Resampling.BICUBIC)
    return imagehash.phash(image)


def ours(data: bytes) -> object:
    image = decode_small(data, SIDE)
    if image.mode != "RGB":
        image = image.convert("RGB")
    small = image.resize(target(image), Image.Resampling.BICUBIC)
    return perceptual_hashes(small)


def hash_only(data: bytes) -> object:
    return perceptual_hashes(decode_small(data))


def best(work: Callable[[bytes], object], images: list[bytes], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        for data in images:
            work(data)
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result, total = {}, {"plain": 0.0, "ours": 0.0}
    for name, images in collections().items():
        slow, fast = (best(work, images, options.rounds) for work in (plain, ours))
        total["plain"] += slow
        total["ours"] += fast
        result[name] = {
            "images": len(images),
            "images_per_s": len(images) / fast,
            "ratio": slow / fast,
            "ratio_without_the_resize": slow / best(hash_only, images, options.rounds),
        }
    result["total"] = {"ratio": total["plain"] / total["ours"]}
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
