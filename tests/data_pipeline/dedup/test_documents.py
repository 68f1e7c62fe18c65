"""Whole copies of samples, and the order in which deduplication looks."""

import dataclasses
from pathlib import Path

from data_pipeline.build.dedup.config import DedupConfig
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.run import exclusions
from data_pipeline.view import Exclusion, View, exclude


def run(directory: Path, manifest, **config) -> list[Exclusion]:
    return list(
        exclusions(Corpus.of(directory, manifest), DedupConfig.model_validate(config), directory / "w")
    )


def test_equal_text_around_equal_images_is_a_copy_and_the_held_out_one_stays(tmp_path, copies):
    one, two = (copies.encoded(copies.picture(n)) for n in (1, 2))
    manifest = copies.dataset(
        tmp_path,
        [
            (
                "train",
                [
                    copies.document("a", "Some  words", one, "and\u00a0more"),
                    copies.document("b", "some words", one, "and MORE"),
                    copies.document("c", "some words", two, "and more"),
                    copies.document("d", "some words and more", one),
                    copies.document("e", "plain text"),
                ],
            ),
            ("heldout", [copies.document("z", "Plain text")]),
        ],
    )
    assert {(e.id, e.media_id, e.detail) for e in run(tmp_path, manifest)} == {
        ("b", None, "of sample a"),
        ("e", None, "of sample z"),
    }


def test_of_documents_with_one_image_set_the_latest_stays(tmp_path, copies):
    one, two, three = (copies.encoded(copies.picture(n)) for n in (1, 2, 3))
    manifest = copies.dataset(
        tmp_path,
        [
            (
                "train",
                [
                    copies.document("a", "one", one, two, date="2024-01-02"),
                    copies.document("b", "two", two, "x", one, date="2024-03-01"),
                    copies.document("c", "three", one, two, date="2023-12-31"),
                    copies.document("d", "four", one, two, three, date="2025-01-01"),
                    copies.document("e", "five", three),
                    copies.document("f", "six", three),
                ],
            )
        ],
    )
    two_or_more = {"documents": {"exact": False, "image_sets": 2}}
    assert {e.id for e in run(tmp_path, manifest, **two_or_more)} == {"a", "c"}
    any_number = {"documents": {"exact": False, "image_sets": 1}}
    assert {e.id for e in run(tmp_path, manifest, **any_number)} == {"a", "c", "e"}
    assert run(tmp_path, manifest, documents={"exact": False}) == []
    held = [copies.document("old", "held out", one, two, date="2020-01-01")]
    manifest = copies.dataset(
        tmp_path, [("train", [copies.document("new", "n", one, two, date="2025-01-01")]), ("heldout", held)]
    )
    assert {e.id for e in run(tmp_path, manifest, **two_or_more)} == {"new"}


def test_a_step_does_not_see_what_an_earlier_one_took_out(tmp_path, copies):
    """`a` and `b` are equal: b goes. Of one image set the latest stays: that must be `a`, or none is left."""
    one = copies.encoded(copies.picture(1))
    parts = [copies.document("a", "same", one), copies.document("b", "same", one)]
    manifest = copies.dataset(tmp_path, [("train", parts)])
    assert [e.id for e in run(tmp_path, manifest, documents={"image_sets": 1})] == ["b"]


def test_what_the_view_leaves_out_is_neither_kept_nor_removed_again(tmp_path, copies):
    parts = [copies.document(n, "same words") for n in "abc"]
    manifest = copies.dataset(tmp_path, [("train", parts)])
    manifest = exclude(tmp_path, "opt-out", [Exclusion("a", None, "opted out")], {})
    assert [(e.id, e.detail) for e in run(tmp_path, manifest)] == [("c", "of sample b")]
    corpus = Corpus.of(tmp_path, manifest, View())
    assert {e.id for e in exclusions(corpus, DedupConfig(), tmp_path / "w")} == {"b", "c"}


def test_sources_come_in_the_order_of_the_recipe(tmp_path, copies):
    manifest = copies.dataset(
        tmp_path,
        [
            ("train", [copies.document("low", "same", source="abc")]),
            ("train", [copies.document("high", "same", source="xyz")]),
        ],
    )
    assert [e.id for e in run(tmp_path, manifest)] == ["high"]
    manifest = dataclasses.replace(manifest, recipe={"sources": [{"name": "xyz"}, {"name": "abc"}]})
    assert [e.id for e in run(tmp_path, manifest)] == ["low"]


def test_numbers_lead_back_to_samples_images_and_bytes(tmp_path, copies):
    data = [copies.encoded(copies.picture(n)) for n in range(7)]
    docs = [
        copies.document("a", data[0], "t", data[1]),
        copies.document("b", "t"),
        copies.document("c", data[2]),
        copies.document("d", data[3], data[4], data[5]),
    ]
    manifest = copies.dataset(tmp_path, [("train", docs), ("heldout", [copies.document("h", data[6])])])
    corpus = Corpus.of(tmp_path, manifest)
    assert [r["id"] for _, _, r in corpus.rows(("id",))] == ["h", "a", "b", "c", "d"]
    assert [corpus.picture(i) for i in range(7)] == [data[6], *data[:6]]
    assert [corpus.locate(i) for i in range(7)] == [(0, 0), (1, 0), (1, 1), (3, 0), (4, 0), (4, 1), (4, 2)]
    assert [corpus.describe(i)[0] for i in range(7)] == ["h", "a", "a", "c", "d", "d", "d"]
    assert [corpus.images_of(r) for r in range(5)] == [(0, 1), (1, 2), (3, 0), (3, 1), (4, 3)]
    corpus.exclude_image(5, "r", "d")
    assert [i for b in corpus.media() for i in b.image.tolist()] == [0, 1, 2, 3, 4, 6]
