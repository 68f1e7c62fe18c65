"""Packed rows written in short, and a tiny model that reads them.

A document is its parts: g given text, w written text (targets), i an image and its control tokens; "i g2 w4"
is a captioned picture.
"""

import numpy as np
import torch

from data_pipeline.batch import IGNORE, Batch
from data_pipeline.image_spec import ImageSpec, PixelShuffle
from data_pipeline.stream.collate import flat
from data_pipeline.stream.decode import Picture
from toy_backbones import toy_mistral, toy_tower
from trainer.models.build import build_model
from trainer.models.config import Model

SPEC = ImageSpec(longest_edge=32, patch=8)
VOCABULARY, START, END, IMAGE = 40, 40, 41, 42


def pack(*rows, length=None, seed=0):
    """Rows of documents -> Batch. Ids of text and pixels follow from `seed`."""
    draw = np.random.default_rng(seed)
    fields = {k: [] for k in ("input_ids", "labels", "positions", "document_ids", "image_ids")}
    pictures = []
    for row in rows:
        line = {k: [] for k in fields}
        for number, document in enumerate(row, start=1):
            ids, written, images = [], [], []
            for kind, *count in document.split():
                if kind == "i":
                    pictures.append(Picture(draw.integers(0, 256, (4, 4, 3, 8, 8), dtype=np.uint8)))
                    ids += [START, IMAGE, IMAGE, IMAGE, IMAGE, END]
                    images += [0, *[len(pictures)] * 4, 0]
                    written += [False] * 6
                else:
                    n = int("".join(count))
                    ids += draw.integers(0, VOCABULARY, n).tolist()
                    images += [0] * n
                    written += [kind == "w"] * n
            after = zip(ids[1:], written[1:], strict=True)
            line["input_ids"] += ids
            line["labels"] += [token if mine else IGNORE for token, mine in after] + [IGNORE]
            line["positions"] += range(len(ids))
            line["document_ids"] += [number] * len(ids)
            line["image_ids"] += images
        for name, values in line.items():
            fields[name].append(values)
    length = length or max(map(len, fields["input_ids"]))
    fillers = {"labels": IGNORE}
    patches, patch_index = flat(pictures, SPEC)
    return Batch(
        **{
            name: torch.tensor([v + [fillers.get(name, 0)] * (length - len(v)) for v in values])
            for name, values in fields.items()
        },
        patches=patches,
        patch_index=patch_index,
        grids=tuple(p.grid for p in pictures),
    )


def make_model(mask, **language):
    torch.manual_seed(0)
    lm = toy_mistral(VOCABULARY, **({"initializer_range": 0.2, "sliding_window": None} | language))
    config = Model(image=SPEC, connector=PixelShuffle(factor=2))
    return build_model(config, toy_tower(), lm, mask).eval()
