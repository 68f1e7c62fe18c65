"""Streams over the tiny dataset. Property tests draw the same examples every time and leave no folder."""

from pathlib import Path

import pytest
from hypothesis import settings

from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.measure import sizes_of
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.shares import Shares
from streamed import LENGTH

settings.register_profile("fovea", derandomize=True, database=None, deadline=None)
settings.load_profile("fovea")


@pytest.fixture
def stream(dataset, tokenizer, tmp_path):
    """A maker of streams over the tiny dataset; all of them are closed at the end."""
    opened = []

    def make_stream(directory: Path = dataset[0], rendering: dict | None = None, **changes) -> Stream:
        datasets = Datasets.read([directory])
        look = Rendering(
            **{
                "tokenizer": tokenizer,
                "image": ImageSpec(longest_edge=16, patch=8),
                "image_tokens": 4,
                "loss_on": "all_text",
                "budget": Budget(tokens=LENGTH),
                **(rendering or {}),
            }
        )
        shares = changes.pop("shares", None) or Shares(weights=dict.fromkeys(datasets.names("train"), 1.0))
        sources = {name: datasets.source(name, "train") for name in datasets.names("train")}
        arguments = {
            "sources": sources,
            "sizes": {name: sizes_of(s, look, tmp_path / "sizes") for name, s in sources.items()},
            "shares": shares,
            "rendering": look,
            "global_rows": 4,
            "micro_rows": 1,
            "rank": 0,
            "world_size": 1,
            "seed": 0,
            "data_digest": datasets.digest,
        }
        opened.append(Stream(**{**arguments, **changes}))
        return opened[-1]

    yield make_stream
    for s in opened:
        s.close()
