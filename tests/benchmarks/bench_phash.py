"""Image steps of a build against plain Pillow + ImageHash: decode, resize to 384 on the longer side, hash.

    python tests/benchmarks/bench_phash.py [--rounds 5] [--out FILE]

Ours: what a build runs, `thumbnail` (bilinear over the area; a JPEG comes at a fraction where that is still
384 or more) and the hash of it. Plain: open, decode, RGB, `resize` as it is by default (bicubic), and
`imagehash.phash` of the picture (`ratio`) or, cheaper, of its small copy (`ratio_hash_of_small`).
`decode_and_resize` is that cheaper peer beside a plain decode and bilinear resize without any hash: where no
JPEG comes at a fraction, nobody is faster. CPU time of one core, the best of several rounds, per collection
and in total. "large" are those pictures of `skimage` and `vqa_rad` whose longer side has 768 pixels or more.
"""

import argparse
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
from PIL import Image

from data_pipeline.build.images.phash import decode_small, perceptual_hash
from data_pipeline.build.images.sight import thumbnail

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
    image.resize(target(image))
    return imagehash.phash(image)


def plain_hash_of_small(data: bytes) -> object:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return imagehash.phash(image.resize(target(image)))


def decode_and_resize(data: bytes) -> object:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image.resize(target(image), Image.Resampling.BILINEAR)


def ours(data: bytes) -> object:
    return perceptual_hash(thumbnail(Image.open(io.BytesIO(data)), SIDE))


def hash_only(data: bytes) -> object:
    return perceptual_hash(decode_small(data))


def best(works: list[Callable[[bytes], object]], images: list[bytes], rounds: int) -> list[float]:
    """Seconds of each work over all images; rounds of all of them take turns."""
    seconds = [math.inf] * len(works)
    for _ in range(rounds):
        for k, work in enumerate(works):
            start = time.process_time()
            for data in images:
                work(data)
            seconds[k] = min(seconds[k], time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    works = [plain, plain_hash_of_small, decode_and_resize, ours, hash_only]
    result, total = {}, [0.0] * len(works)
    for name, images in collections().items():
        seconds = best(works, images, options.rounds)
        total = [t + s for t, s in zip(total, seconds, strict=True)]
        result[name] = {"images": len(images), "images_per_s": len(images) / seconds[3], **ratios(*seconds)}
    result["total"] = ratios(*total)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def ratios(plain: float, small: float, floor: float, ours: float, hash_only: float) -> dict[str, float]:
    return {
        "ratio": plain / ours,
        "ratio_hash_of_small": small / ours,
        "decode_and_resize": small / floor,
        "ratio_without_the_resize": plain / hash_only,
    }


if __name__ == "__main__":
    main()
