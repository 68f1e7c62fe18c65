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


IS_COPY = bench.Copies(NearImages().distance, NearImages().similarity)


def test_recall_of_re_encoding_and_resizing_of_photographs():
    """Each fourth picture is altered in every way."""
    if not (images := bench.pictures(bench.PHOTOGRAPHS, every=4)):
        pytest.skip(f"no pictures in {bench.REALDATA}")
    found = bench.measure(images, IS_COPY)
    assert bench.keeps_bar(found), found
    assert found["recall"]["mirror"] >= 0.95
    assert found["recall_of_decontamination"]["mirror"] == 1


def test_recall_and_false_positives_of_the_small_drawings_of_old_books():
    """Without a stricter distance for pictures below 32 pixels, two pairs of 17,749 are taken for copies."""
    if not (images := bench.pictures(["html_gutenberg"])):
        pytest.skip(f"no pictures in {bench.REALDATA}")
    found = bench.measure(images, IS_COPY)
    assert bench.keeps_bar(found), found
    assert found["false_positives"] == []
    assert found["unrelated_pairs"] > 17_000


def test_false_positives_in_each_folder_and_in_all_together():
    every = {f: {n: bench.seen(i) for n, i in bench.pictures([f]).items()} for f in bench.FOLDERS}
    if not all(every.values()):
        pytest.skip(f"not all pictures in {bench.REALDATA}")
    for folder, seen in every.items():
        assert bench.compare(seen, IS_COPY)["false_positive_rate"] < bench.MOST_FALSE, folder
    photographs = {n: s for f in bench.PHOTOGRAPHS for n, s in every[f].items()}
    found = bench.compare(photographs, IS_COPY)
    assert found["known_copies_found"] == found["known_copies"] == 3
    together = bench.compare({n: s for seen in every.values() for n, s in seen.items()}, IS_COPY)
    assert together["unrelated_pairs"] > 100_000
    assert together["false_positive_rate"] < bench.MOST_FALSE / 2


def test_decontamination_uses_the_same_thresholds():
    assert (ImageSearch().distance, ImageSearch().similarity) == (
        NearImages().distance,
        NearImages().similarity,
    )
