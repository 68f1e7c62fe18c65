"""Samples to batches, per core: `Stream` beside readers of others, on the same samples, transforms alike.

    python tests/benchmarks/bench_stream.py DATASET... [--sources NAME...] [--rounds 3] [--out FILE]

Everybody reads the same samples once, in random order, and turns each into the same pieces of at most LENGTH
tokens and the same patches (`Rendering.pieces`, `decode`; Idefics2's published picture size). Beside us:

    webdataset  its `WebDataset` over our tar shards, shuffled, `BATCH` pieces padded to the longest, and
                their pictures to the largest
    dataloader  torch's `DataLoader`, shuffled, over a map-style dataset of memory-mapped Arrow shards; padded
    energon     megatron-energon's loader over the same tars, with its own packing (first fit, largest first)
                and our collate, where it is installed (`bench_stream_energon.py`)

The first two also with the usual tool instead of our `decode`: transformers' Idefics2 image processor, which
gives the same pixels within a grey level, called in the collate.

Figures: tokens that are no padding, and images, per second of CPU time of the whole process, the best of
several rounds that take turns; no worker processes, one thread of torch. `ratio` is ours / theirs. What
`Stream` needs beforehand, the table of sizes, is timed by itself: it is made once for all epochs and ranks.
"""

import argparse
import importlib
import importlib.util
import io
import json
import random
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader
from transformers import Idefics2ImageProcessorPil

from data_pipeline.batch import IGNORE
from data_pipeline.image_spec import ImageSpec
from data_pipeline.sample import Sample
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.chat import Rendered, Unusable
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.decode import DecodeError, Picture, decode
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.measure import sizes_of
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.shares import Shares
from data_pipeline.stream.sizes import Sizes
from data_pipeline.stream.source import Source
from data_pipeline.stream.tokens import train_tokenizer

LENGTH, IMAGE_TOKENS, BATCH, SHUFFLED = 2048, 64, 32, 1000
GLOBAL_ROWS, MICRO_ROWS = 4, 2
SPEC = ImageSpec(longest_edge=980, shortest_edge=378, patch=14)
VOCABULARY = 8000
PROCESSOR = Idefics2ImageProcessorPil(
    size={"longest_edge": SPEC.longest_edge, "shortest_edge": SPEC.shortest_edge}, do_image_splitting=False
)
Piece = tuple[Rendered, Sequence[Any]]  # its pictures as `whole` or as `rgb` gives them
Counted = tuple[int, int]  # tokens that are no padding, images
Counts = Generator[Counted, None, None]


def whole(data: bytes) -> Picture:
    [picture] = decode(data, SPEC)
    return picture


def rgb(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@dataclass(frozen=True)
class Work:
    """The samples, and what is made of them."""

    sources: dict[str, Source]
    sizes: dict[str, Sizes]
    rendering: Rendering
    arrow: list[Path]
    tars: list[Path]

    @property
    def tokens(self) -> int:
        """Of all samples once, as far as the means of the tables tell."""
        return int(sum(s.mean_tokens() * len(s) for s in self.sizes.values()))

    def pieces(self, sample: Sample, picture: Callable[[bytes], Any] = whole) -> list[Piece]:
        """The transforms that all peers share: any caption of the sample, its pieces, its pictures."""
        try:
            variant = random.randrange(self.rendering.captions(sample))
            pieces = self.rendering.pieces(sample, variant).pieces
            return [(p, [picture(sample.image_bytes[m]) for m in p.images]) for p in pieces]
        except (Unusable, DecodeError, OSError):
            return []


def ours(work: Work) -> Counts:
    lengths = {name: float(len(source)) for name, source in work.sources.items()}
    stream = Stream(
        sources=work.sources,
        sizes=work.sizes,
        shares=Shares(weights=lengths),
        rendering=work.rendering,
        global_rows=GLOBAL_ROWS,
        micro_rows=MICRO_ROWS,
        rank=0,
        world_size=1,
        seed=random.randrange(1 << 30),
        data_digest="",
    )
    try:
        while True:
            for batch in stream.next():
                yield int((batch.document_ids != 0).sum()), len(batch.grids)
    finally:
        stream.close()


def webdataset(work: Work, usual: bool = False) -> Counts:
    def sample(files: dict) -> Sample:
        row = json.loads(files["json"])
        found = [k for k in files if k[0].isdigit()]
        pictures = {int(k.split(".")[0]): files[k] for k in found}
        return Sample.from_row(
            row | {"images": [{"bytes": pictures.get(i)} for i in range(len(row["media"]))]}
        )

    def pieces(samples: Iterator[Sample]) -> Iterator[Piece]:
        for s in samples:
            yield from work.pieces(s, rgb if usual else whole)

    urls = [str(path) for path in work.tars]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=random.randrange(1 << 30), empty_check=False)
    flat = dataset.shuffle(SHUFFLED).map(sample).compose(pieces)
    return _counted(flat.batched(BATCH, collation_fn=processed if usual else padded))


class Arrow(torch.utils.data.Dataset):
    """A map-style dataset as it is usually written: files mapped, a row made Python, then transformed."""

    def __init__(self, work: Work, picture: Callable[[bytes], Any]) -> None:
        self.work, self.picture = work, picture
        self.tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in work.arrow]
        self.ends = np.cumsum([len(t) for t in self.tables])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> list[Piece]:
        table = int(np.searchsorted(self.ends, i, side="right"))
        at = i - (int(self.ends[table - 1]) if table else 0)
        [row] = self.tables[table].slice(at, 1).to_pylist()
        return self.work.pieces(Sample.from_row(row), self.picture)


def dataloader(work: Work, usual: bool = False) -> Counts:
    def collate(samples: list[list[Piece]]) -> dict[str, torch.Tensor]:
        return (processed if usual else padded)([piece for pieces in samples for piece in pieces])

    dataset = Arrow(work, rgb if usual else whole)
    return _counted(DataLoader(dataset, batch_size=BATCH, shuffle=True, collate_fn=collate))


def padded(pieces: Sequence[Piece]) -> dict[str, torch.Tensor]:
    """A batch as it is without packing: a piece a row, padded to the longest, and pictures to the largest."""
    pictures = [picture for _, found in pieces for picture in found]
    largest = max((rows * columns for rows, columns in (p.grid for p in pictures)), default=0)
    patches = np.zeros((len(pictures), largest, 3, SPEC.patch, SPEC.patch), dtype=np.uint8)
    there = np.zeros((len(pictures), largest), dtype=np.bool_)
    for n, picture in enumerate(pictures):
        rows, columns = picture.grid
        patches[n, : rows * columns].reshape(picture.blocks.shape)[:] = picture.blocks  # copied once, as ours
        there[n, : rows * columns] = True
    return texts(pieces) | {"pictures": torch.from_numpy(patches), "there": torch.from_numpy(there)}


def processed(pieces: Sequence[Piece]) -> dict[str, torch.Tensor]:
    """The same by the usual tool: normalised pixels in float32, and the mask of those that are there."""
    pictures = [[picture] for _, found in pieces for picture in found]
    if not pictures:
        return texts(pieces) | {"pictures": torch.empty(0)}
    made = PROCESSOR(pictures, return_tensors="pt")
    return texts(pieces) | {"pictures": made["pixel_values"], "there": made["pixel_attention_mask"]}


def texts(pieces: Sequence[Piece]) -> dict[str, torch.Tensor]:
    length = max((len(p) for p, _ in pieces), default=0)
    ids = np.zeros((len(pieces), length), dtype=np.int64)
    labels = np.full((len(pieces), length), IGNORE, dtype=np.int64)
    attended = np.zeros((len(pieces), length), dtype=np.bool_)
    for n, (p, _) in enumerate(pieces):
        ids[n, : len(p)] = p.input_ids
        labels[n, : len(p)] = np.where(p.loss, p.input_ids, IGNORE)
        attended[n, : len(p)] = True
    batch = {"ids": ids, "labels": labels, "attended": attended}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _counted(batches: Iterable[dict[str, torch.Tensor]]) -> Counts:
    for batch in batches:
        yield int(batch["attended"].sum()), len(batch["pictures"])


def epoch(batches: Counts, most: int) -> tuple[int, int, float]:
    """Tokens, images and CPU seconds of batches until `most` tokens came. What is being made ahead by then is
    not waited for."""
    tokens = images = 0
    began = time.process_time()
    for of_batch in batches:
        tokens, images = tokens + of_batch[0], images + of_batch[1]
        if tokens >= most:
            break
    took = time.process_time() - began
    batches.close()
    return tokens, images, took


def prepare(directories: list[Path], names: list[str] | None, scratch: Path) -> tuple[Work, float]:
    """The work, and the CPU seconds that the tables of sizes took."""
    datasets = Datasets.read(directories, shards=Shards(scratch / "proofs"), format="arrow")
    sources = {n: datasets.source(n, "train") for n in names or datasets.names("train")}
    texts = (
        segment.text or ""
        for source in sources.values()
        for i in range(min(500, len(source)))
        for segment in source.without_pixels(i).segments
    )
    rendering = Rendering(
        tokenizer=train_tokenizer(texts, VOCABULARY),
        image=SPEC,
        image_tokens=IMAGE_TOKENS,
        loss_on="all_text",
        budget=Budget(tokens=LENGTH, images=None, patches=None),
    )
    began = time.process_time()
    sizes = {n: sizes_of(s, rendering, scratch / "sizes") for n, s in sources.items()}
    took = time.process_time() - began
    sources = {n: s for n, s in sources.items() if sizes[n].usable}
    shards = {
        f: [
            d / s.path
            for d, (_, manifest) in zip(directories, datasets.parts, strict=True)
            for s in manifest.shards(format=f, split="train")
            if s.source in sources and s.samples
        ]
        for f in ("arrow", "webdataset")
    }
    sizes = {n: sizes[n] for n in sources}
    return Work(sources, sizes, rendering, shards["arrow"], shards["webdataset"]), took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path, metavar="DATASET", help="built ones")
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="default: all that are installed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    sides: dict[str, Callable[[Work], Counts]] = {
        "ours": ours,
        "webdataset": webdataset,
        "dataloader": dataloader,
        "webdataset, usual processor": partial(webdataset, usual=True),
        "dataloader, usual processor": partial(dataloader, usual=True),
    }
    with tempfile.TemporaryDirectory() as scratch:
        work, measured = prepare(args.datasets, args.sources, Path(scratch))
        if importlib.util.find_spec("megatron") and importlib.util.find_spec("megatron.energon"):
            energon = importlib.import_module("bench_stream_energon")
            sides["energon"] = energon.reader(work, Path(scratch) / "energon")
        sides = {n: run for n, run in sides.items() if n == "ours" or not args.peers or n in args.peers}
        rates: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, run in sides.items():
                tokens, images, took = epoch(run(work), work.tokens)
                rates[name].append((tokens / took, images / took, took))
                print(f"{name:28}  {tokens:,} tokens, {images:,} images in {took:.2f} s of CPU")
        samples = sum(len(s) for s in work.sources.values())
        tokens = work.tokens
    best = {name: tuple(map(max, zip(*found, strict=True))) for name, found in rates.items()}
    result = {
        "samples": samples,
        "tokens_an_epoch": tokens,
        "sizes_cpu_s": round(measured, 2),
        "per_cpu_s": {n: {"tokens": round(b[0]), "images": round(b[1], 1)} for n, b in best.items()},
        "ratio": {
            n: {
                "tokens": round(best["ours"][0] / b[0], 3),
                "images": round(best["ours"][1] / b[1], 3) if b[1] else None,
            }
            for n, b in best.items()
            if n != "ours"
        },
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
