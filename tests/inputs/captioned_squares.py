"""The least run directory that a recipe can be looked at with: one source of pictures, and a tokenizer."""

import io
from pathlib import Path

from PIL import Image

import shards
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.tokens import train_tokenizer

PAGE = """
name: small
data: {datasets: [data]}
backbones: {path: backbones}
model:
  image: {longest_edge: 32, patch: 8}
  connector: {kind: pixel_shuffle, factor: 2}
defaults: {global_batch: 4, micro_batch: 2, sequence_length: 96, lr: 1.0e-3, train: {connector: 1.0}}
stages:
  - {name: align, init_from: backbones, mixture: {docs: 1}, steps: 8}
"""


def lay_out(run: Path) -> Path:
    """recipe.yaml, data/ and backbones/tokenizer/ in `run`."""
    (run / "recipe.yaml").write_text(PAGE)
    dataset(run / "data", 50, _square())
    learned = train_tokenizer(["A square, number 12. What is it? A tree."] * 3, 320)
    learned.save(run / "backbones" / "tokenizer")
    return run


def dataset(directory: Path, samples: int, picture: bytes) -> None:
    """The source `docs`: one picture, with as many captions as samples."""
    shards.build(directory, [_caption(n, picture) for n in range(samples)], ("arrow",))


def _caption(n: int, picture: bytes) -> Sample:
    text = Segment(type="text", text=f"A square, number {n}.", role="alt")
    return Sample(
        id=f"s{n}",
        kind="caption",
        source="docs",
        segments=(Segment(type="image", media=0), text),
        media=(Media(media_id=f"m{n}", width=32, height=32, mime="image/png"),),
        image_bytes=(picture,),
    )


def _square() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 40, 40)).save(file, "PNG")
    return file.getvalue()
