"""The samples of a bad step as one can look at them: a beginning of their text, small pictures."""

import base64
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.image_spec import ImageSpec
from data_pipeline.sample import Sample
from data_pipeline.stream.decode import DecodeError, Picture, decode
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.source import Source
from trainer.config import Recipe, Stage
from trainer.explain import Entry
from trainer.stage_stream import open_datasets

SAMPLES, PICTURES, LETTERS = 24, 3, 400
"""Of a step and of a sample, at most."""

SIDE = 144  # pixels


def with_content(
    recipe: Recipe, stage: Stage, run_dir: Path, entries: tuple[Entry, ...]
) -> list[dict[str, Any]]:
    """The entries of a stage; the first ones with `text` and `thumbnails` (data URIs), where those can be
    read."""
    datasets, image = open_datasets(recipe, run_dir), recipe.model_of(stage).image
    sources: dict[str, Source] = {}
    found = []
    for n, entry in enumerate(entries):
        content: dict[str, Any] = {}
        if n < SAMPLES:
            if entry.source not in sources:
                sources[entry.source] = datasets.source(entry.source, "train")
            content = _content(image, sources[entry.source], entry.index)
        found.append(asdict(entry) | content)
    return found


def _content(image: ImageSpec, source: Source, index: int) -> dict[str, Any]:
    try:
        sample = source.without_pixels(index)
        numbers = list(dict.fromkeys(s.media for s in sample.segments if s.media is not None))[:PICTURES]
        pictures = [source.picture(index, number) for number in numbers]
    except BrokenSample as e:
        return {"text": f"({e.reason})", "thumbnails": []}
    thumbnails = []
    for data in pictures:
        try:
            thumbnails.append(_thumbnail(decode(data, image)[0]))
        except DecodeError:
            continue
    return {"text": _text(sample), "thumbnails": thumbnails}


def _text(sample: Sample) -> str:
    said = " ".join(f"[{s.role}] {s.text}" if s.role else s.text for s in sample.segments if s.text)
    return said if len(said) <= LETTERS else said[: LETTERS - 1] + "…"


def _thumbnail(picture: Picture) -> str:
    """What the tower sees, small, as a data URI."""
    rows, columns, _, side, _ = picture.blocks.shape
    pixels = picture.blocks.transpose(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
