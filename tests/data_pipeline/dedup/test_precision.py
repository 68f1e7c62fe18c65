"""The bar: altered real pictures are found, unrelated ones are not taken for copies."""

import importlib.util
from pathlib import Path

import pytest

from data_pipeline.build.decontaminate.config import ImageSearch
from data_pipeline.build.dedup.config import NearImages

_path = Path(__file__).parents[2] / "benchmarks" / "bench_precision.py"
_spec = importlib.util.spec_from_file_location("bench_precision", _path)
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)


def test_recall_of_re_encoding_and_resizing_at_few_false_positives():
    """All pairs of 292 pictures count for false positives; each fourth picture is altered in every way."""
    if not (images := bench.pictures()):
        pytest.skip(f"no pictures in {bench.REALDATA}")
    is_copy = bench.Copies(NearImages().distance, NearImages().similarity)
    few = bench.measure(dict(list(images.items())[::4]), is_copy)
    for name in bench.RE_ENCODING_AND_RESIZING:
        assert few["recall"][name] >= 0.95, name
        assert few["recall_of_decontamination"][name] >= 0.95, name
    assert few["recall"]["mirror"] >= 0.95
    assert few["recall_of_decontamination"]["mirror"] == 1
    every = bench.compare({name: bench.seen(image) for name, image in images.items()}, is_copy)
    assert every["unrelated_pairs"] > 40_000
    assert every["false_positive_rate"] < 1e-4
    assert every["known_copies_found"] == every["known_copies"] == 3


def test_decontamination_uses_the_same_thresholds():
    assert (ImageSearch().distance, ImageSearch().similarity) == (
        NearImages().distance,
        NearImages().similarity,
    )
