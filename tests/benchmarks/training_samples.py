"""Samples of drawn lengths, as rows of ours and as padded batches of transformers' Idefics2.

Two kinds, with the lengths of real data (40 COCO photographs with 200 captions; 97 pages of an illustrated
textbook, their texts shortened to the mean that OBELICS publishes, 815 tokens: arXiv 2306.16527). Its deciles
stand below, so nothing is read; texts and pixels are noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from data_pipeline.batch import IGNORE, Batch
from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.collate import flat
from data_pipeline.stream.decode import Picture
from data_pipeline.stream.windows import pack

PATCH = 14
Kind = Literal["mixed", "documents", "uniform"]

# Minimum, deciles, maximum, in tokens (words times 1.3); pictures of ten documents; heights and widths.
_CAPTION = np.array([9, 10, 12, 12, 13, 13, 14, 14, 16, 17, 53])
_DOCUMENT = np.array([41, 67, 255, 522, 666, 783, 940, 1094, 1232, 1589, 2520])
_PICTURES = (1, 1, 1, 1, 1, 2, 2, 2, 4, 10)
_PHOTOS = (*[(427, 640)] * 3, *[(480, 640)] * 3, (640, 427), (640, 480), (333, 500), (640, 640))
_FIGURES = tuple((height, 512) for height in (186, 216, 219, 245, 272, 325, 360, 390, 487, 512))


@dataclass(frozen=True)
class Look:
    """What a sample looks like: tokens of a row, ids, visual tokens of a picture, parts of its real sides."""

    length: int = 1024
    vocabulary: int = 4096
    latents: int = 64
    smaller: int = 3

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = (max(1, side // self.smaller // PATCH) for side in size)
        return rows, columns

    @property
    def image(self) -> ImageSpec:
        """No picture above is larger; Idefics2's own is 980."""
        return ImageSpec(longest_edge=PATCH * (980 // self.smaller // PATCH), patch=PATCH)


@dataclass(frozen=True)
class Sample:
    """ids int64[L], `latents` of them the image token for each picture; pictures of uint8[R, C, 3, p, p]."""

    ids: torch.Tensor
    pictures: tuple[Picture, ...]
    look: Look

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def visual(self) -> torch.Tensor:
        return self.ids == self.look.vocabulary - 2

    @property
    def wanted(self) -> torch.Tensor:
        """The token at each position where it is a target: text, but the first and what marks pictures."""
        text = self.ids < self.look.vocabulary - 3
        text[0] = False
        return torch.where(text, self.ids, IGNORE)


def draw(kind: Kind, count: int, look: Look, seed: int = 0) -> list[Sample]:
    """`mixed`: a document to three captions, as many as the real data holds. `uniform`: photographs of one
    size, length / 8 tokens each, which rows and padded batches hold without any loss."""
    rng = np.random.default_rng(seed)
    samples = []
    for n in range(count):
        if kind == "uniform":
            sizes, text = [_PHOTOS[0]], look.length // 8 - look.latents - 3
        elif kind == "documents" or n % 4 == 0:
            sizes = [_FIGURES[rng.integers(10)] for _ in range(_PICTURES[rng.integers(10)])]
            room = look.length - 1 - len(sizes) * (look.latents + 2)
            text = min(room, _quantile(_DOCUMENT, rng.random()))
        else:
            sizes, text = [_PHOTOS[rng.integers(10)]], _quantile(_CAPTION, rng.random())
        samples.append(_sample(rng, [look.grid(s) for s in sizes], text, look))
    return [samples[n] for n in rng.permutation(count)]


def _quantile(deciles: np.ndarray, share: float) -> int:
    return int(np.interp(share, np.linspace(0, 1, len(deciles)), deciles))


def _sample(rng: np.random.Generator, grids: list[tuple[int, int]], text: int, look: Look) -> Sample:
    """Each picture, then its share of the text. The last three ids are Idefics2's own."""
    around, image = look.vocabulary - 3, look.vocabulary - 2
    parts = [np.array([1])]
    for share in np.array_split(rng.integers(3, around, text), len(grids)):
        parts += [np.array([around, *[image] * look.latents, around]), share]
    pictures = tuple(Picture(rng.integers(0, 256, (*g, 3, PATCH, PATCH), dtype=np.uint8)) for g in grids)
    return Sample(torch.from_numpy(np.concatenate(parts)), pictures, look)


def packed(samples: Sequence[Sample], rows: int) -> list[Batch]:
    """Batches of `rows` rows, by the stream's own packing; the last may have fewer."""
    costs = (
        [len(s) for s in samples],
        [len(s.pictures) for s in samples],
        [sum(p.grid[0] * p.grid[1] for p in s.pictures) for s in samples],
    )
    found = pack(*map(np.array, costs), Budget(tokens=samples[0].look.length))
    lines = [[samples[n] for n in row] for row in found]
    return [_batch(lines[at : at + rows]) for at in range(0, len(lines), rows)]


def _batch(lines: Sequence[Sequence[Sample]]) -> Batch:
    look = lines[0][0].look
    columns: dict[str, list[torch.Tensor]] = {}
    pictures: list[Picture] = []
    for line in lines:
        row: dict[str, list[torch.Tensor]] = {}
        for number, s in enumerate(line, start=1):
            which = (s.visual.cumsum(0) - 1) // look.latents + 1 + len(pictures)
            for name, values in (
                ("input_ids", s.ids),
                ("labels", torch.cat([s.wanted[1:], torch.tensor([IGNORE])])),
                ("positions", torch.arange(len(s))),
                ("document_ids", torch.full((len(s),), number)),
                ("image_ids", torch.where(s.visual, which, 0)),
            ):
                row.setdefault(name, []).append(values)
            pictures += s.pictures
        for name, values in row.items():
            joined, filling = torch.cat(values), IGNORE if name == "labels" else 0
            whole = F.pad(joined, (0, look.length - len(joined)), value=filling)
            columns.setdefault(name, []).append(whole)
    patches, index = flat(pictures, look.image)
    return Batch(
        **{name: torch.stack(rows) for name, rows in columns.items()},
        patches=patches,
        patch_index=index,
        grids=tuple(p.grid for p in pictures),
    )


def padded(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """What transformers' Idefics2Processor and a collator make of them: texts padded to the longest, pictures
    to the largest, samples to the most pictures; pixels from -1 to 1."""
    most = max(len(s.pictures) for s in samples)
    height, width = (PATCH * max(p.grid[d] for s in samples for p in s.pictures) for d in (0, 1))
    pixels = torch.zeros(len(samples), most, 3, height, width)
    mask = torch.zeros(len(samples), most, height, width, dtype=torch.int64)
    for b, s in enumerate(samples):
        for n, picture in enumerate(s.pictures):
            levels = torch.from_numpy(picture.blocks).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
            at = (b, n, ..., slice(levels.shape[1]), slice(levels.shape[2]))
            pixels[at] = levels.float() / 127.5 - 1
            mask[at] = 1
    return {
        "input_ids": pad_sequence([s.ids for s in samples], batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(s.ids) for s in samples], batch_first=True),
        "labels": pad_sequence([s.wanted for s in samples], batch_first=True, padding_value=IGNORE),
        "pixel_values": pixels,
        "pixel_attention_mask": mask,
    }
