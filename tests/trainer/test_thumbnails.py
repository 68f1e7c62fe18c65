"""What an incident keeps of its samples: the text and the pictures that the step was made of."""

import base64
import io
import re

import numpy as np
from PIL import Image

from data_pipeline.stream.faults import BrokenSample
from trainer import thumbnails
from trainer.config import load_recipe
from trainer.explain import explain
from trainer.stage_stream import open_datasets
from trainer.thumbnails import with_content


def test_text_and_pictures_are_those_of_the_dataset(trained):
    recipe = load_recipe(trained / "recipe.yaml")
    stage = recipe.stage("align")
    entries = explain(recipe, stage, trained, 3, 2).entries
    datasets = open_datasets(recipe, trained)
    found = with_content(recipe, stage, trained, entries)
    assert [f["id"] for f in found] == [e.id for e in entries]
    for entry, shown in zip(entries, found, strict=True):
        source = datasets.source(entry.source, "train")
        sample = source.without_pixels(entry.index)
        images = [source.picture(entry.index, n) for n in range(len(sample.media))]
        for segment in sample.segments:
            assert not segment.text or segment.text[:200] in shown["text"]
        assert len(shown["thumbnails"]) == min(thumbnails.PICTURES, len(images)) > 0
        for uri, data in zip(shown["thumbnails"], images, strict=False):
            assert re.match("data:image/jpeg;base64,", uri)
            small = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
            assert max(small.size) <= thumbnails.SIDE
            whole = Image.open(io.BytesIO(data)).convert("RGB").resize(small.size)
            assert np.abs(np.asarray(small, float) - np.asarray(whole, float)).mean() < 25


def test_only_so_many_samples_have_content_and_an_unreadable_one_says_so(trained, monkeypatch):
    recipe = load_recipe(trained / "recipe.yaml")
    stage = recipe.stage("align")
    entries = explain(recipe, stage, trained, 3, 2).entries
    monkeypatch.setattr(thumbnails, "SAMPLES", 1)
    first, second = with_content(recipe, stage, trained, entries)[:2]
    assert "text" in first
    assert "text" not in second

    class Broken:
        def without_pixels(self, index):
            raise BrokenSample("shard is torn", "bytes 3 to 7")

    assert thumbnails._content(recipe, Broken(), 0) == {"text": "(shard is torn)", "thumbnails": []}
