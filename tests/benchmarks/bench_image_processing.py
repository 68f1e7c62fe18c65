"""Pictures to patches, and patches through a tower, against transformers' Idefics2.

    python tests/benchmarks/bench_image_processing.py [--rounds 5] [--out FILE]

Process: encoded bytes to what the tower takes, at Idefics2's published size (980 / 378, patches of 14).
Theirs: `Image.open` and the PIL image processor, one picture a call, which gives float32 without patches.
Ours: `decode`. `decoding_ms` is `Image.open` and `convert` alone: neither side can do without it.

Bytes: `BATCH` pictures together, drawn by a seed; our flat patches and their index against theirs padded to
the largest, as float32 with its mask as the processor gives it and, fairer, as bytes with a mask of one byte
a patch. Tower: such batches at a third of the size through a small tower of the same weights, forward and
backward, ours flat against theirs padded; the features are compared too.

Draft: how far from its whole decoding a JPEG is that libjpeg decodes at a fraction, never below twice the
wanted size.

CPU time of one core, the best of several rounds; ratios are theirs / ours.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Idefics2ImageProcessorPil, Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.collate import flat
from data_pipeline.stream.decode import Picture, decode
from trainer.models.vision import ATTENTION, patch_features

REALDATA = Path(__file__).parents[2].parent / "shared" / "realdata"
SPEC = ImageSpec(longest_edge=980, shortest_edge=378, patch=14)
SMALL = ImageSpec(longest_edge=322, shortest_edge=126, patch=14)
SIZE = {"longest_edge": 980, "shortest_edge": 378}
BATCH = 12


def collections() -> dict[str, list[bytes]]:
    folders = {"coco": "coco_cc", "skimage": "skimage", "vqa_rad": "vqa_rad/images"}
    found = {k: sorted((REALDATA / v).glob("*.[jp][pn]g"))[:24] for k, v in folders.items()}
    made = {k: [p.read_bytes() for p in paths] for k, paths in found.items() if paths}
    return made | {"mixed": [data for pictures in made.values() for data in pictures]}


def best(rounds: int, work: Callable[[], object]) -> float:
    """Seconds of CPU time."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def process(pictures: list[bytes], split: bool, rounds: int) -> dict[str, float]:
    processor = Idefics2ImageProcessorPil(size=SIZE, do_image_splitting=split)

    def theirs() -> None:
        for data in pictures:
            processor(Image.open(io.BytesIO(data)), return_tensors="np")

    def ours() -> None:
        for data in pictures:
            decode(data, SPEC, split)

    decoding = best(rounds, lambda: [Image.open(io.BytesIO(d)).convert("RGB") for d in pictures])
    a, b = best(rounds, theirs), best(rounds, ours)
    per = 1000 / len(pictures)
    return {
        "theirs_ms": round(a * per, 2),
        "ours_ms": round(b * per, 2),
        "decoding_ms": round(decoding * per, 2),
        "ratio": round(a / b, 2),
    }


def batches(pictures: list[bytes], spec: ImageSpec) -> list[list[Picture]]:
    """All tiles, in batches; short last batches are left out."""
    tiles = [tile for data in pictures for tile in decode(data, spec)]
    order = np.random.default_rng(0).permutation(len(tiles)).tolist()
    return [[tiles[n] for n in order[k : k + BATCH]] for k in range(0, len(tiles) - BATCH + 1, BATCH)]


def batch_bytes(pictures: list[bytes]) -> dict[str, float]:
    real = places = ours = 0
    for some in batches(pictures, SPEC):
        patches, index = flat(some, SPEC)
        real += len(patches)
        ours += patches.nbytes + index.nbytes
        places += len(some) * max(p.grid[0] for p in some) * max(p.grid[1] for p in some)
    area = SPEC.patch**2
    return {
        "padded_patches_per_patch": round(places / real, 3),
        "ratio_against_float32_and_mask": round(places * area * (3 * 4 + 8) / ours, 2),
        "ratio_against_bytes_and_patch_mask": round(places * (area * 3 + 1) / ours, 3),
    }


def tower(pictures: list[bytes], rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    page = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = Idefics2VisionConfig(**page, image_size=SMALL.longest_edge, patch_size=SMALL.patch)
    theirs = Idefics2VisionTransformer(config)
    theirs.set_attn_implementation("sdpa")
    ours = Idefics2VisionTransformer(Idefics2VisionConfig(**config.to_dict()))
    ours.set_attn_implementation(ATTENTION)
    ours.load_state_dict(theirs.state_dict())
    took, off, places, real = {"theirs": 0.0, "ours": 0.0}, 0.0, 0, 0
    for some in batches(pictures, SMALL)[:4]:
        patches, index = flat(some, SMALL)
        grids = [p.grid for p in some]
        mask = torch.zeros(len(some), max(r for r, _ in grids), max(c for _, c in grids), dtype=torch.bool)
        blocks = torch.zeros(*mask.shape, 3, SMALL.patch, SMALL.patch)
        where = tuple(index.T)
        places, real = places + mask.numel(), real + len(patches)
        mask[where], blocks[where] = True, patches / 127.5 - 1
        pixels = blocks.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

        def padded(pixels=pixels, mask=mask) -> torch.Tensor:
            return theirs(pixels, patch_attention_mask=mask).last_hidden_state[mask.flatten(1)]

        def unpadded(patches=patches, index=index, grids=grids) -> torch.Tensor:
            return patch_features(ours, patches, index, grids)

        with torch.no_grad():
            off = max(off, float((padded() - unpadded()).abs().max()))
        took["theirs"] += best(rounds, lambda run=padded: run().sum().backward())
        took["ours"] += best(rounds, lambda run=unpadded: run().sum().backward())
    return {
        "padded_patches_per_patch": round(places / real, 3),
        "ratio": round(took["theirs"] / took["ours"], 2),
        "largest_difference": off,
    }


def draft(pictures: list[bytes]) -> dict[str, float]:
    """Grey levels between a JPEG's whole and its drafted decoding, both resized."""
    spec, worst, means = ImageSpec(longest_edge=70, shortest_edge=28, patch=14), [], []
    for data in pictures:
        image = Image.open(io.BytesIO(data))
        size = spec.size(*image.size)
        image.draft("RGB", (2 * size[0], 2 * size[1]))
        if image.format != "JPEG" or image.size == Image.open(io.BytesIO(data)).size:
            continue
        small, full = (
            np.asarray(i.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.int64)
            for i in (image, Image.open(io.BytesIO(data)))
        )
        worst.append(int(np.abs(small - full).max()))
        means.append(float(np.abs(small - full).mean()))
    return {"jpegs": len(worst), "largest": max(worst), "mean": round(sum(means) / len(means), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = {}
    for name, pictures in collections().items():
        row: dict[str, object] = {"pictures": len(pictures)}
        if name != "mixed":
            row["whole"] = process(pictures, False, arguments.rounds)
            row["split"] = process(pictures, True, arguments.rounds)
        if len(pictures) >= BATCH:
            row["bytes"] = batch_bytes(pictures)
        if name == "mixed":
            row["tower"] = tower(pictures, arguments.rounds)
            row["draft"] = draft(pictures)
        results[name] = row
        print(name, json.dumps(row, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
