"""Stats and preview show a dataset as its readers see it, and say what is hidden."""

import dataclasses
import re

import pytest

from data_pipeline.build.look.preview import preview
from data_pipeline.build.look.stats import curve, stats, table
from data_pipeline.build.score.columns import score_dataset
from data_pipeline.build.score.text import CaptionScorer
from data_pipeline.build.score.threshold import yield_curve
from data_pipeline.manifest import read_manifest
from data_pipeline.view import Exclusion, exclude, samples


def ids_on(page: str) -> set[str]:
    return set(re.findall(r"<header>\S+ · \S+ · \S+ · (\S+)", page))


def test_stats_count_what_is_seen_beside_what_is_stored(built):
    document = next(s for s in samples(built, source="documents-html") if len(s.media) > 1)
    gone = [s.id for s in samples(built, source="documents-captions")][:4]
    exclude(built, "opt-out", [Exclusion(i, None, "opted out") for i in gone], {})
    exclude(built, "dedup", [Exclusion(document.id, document.media[0].media_id, "copy")], {})
    found = stats(read_manifest(built))
    for name, source in found["sources"].items():
        seen = list(samples(built, source=name))
        images = sum(not m.error for s in seen for m in s.media)
        assert source["train"] + source["heldout"] == len(seen)
        assert source["heldout"] == len(list(samples(built, source=name, split="heldout")))
        assert source["images"] == images
        assert source["images_per_sample"] == round(images / len(seen), 3)
        assert source["text_chars"] == sum(len(t.text) for s in seen for t in s.segments if t.text)
    captions = found["sources"]["documents-captions"]
    assert captions["stored"]["samples"] == captions["train"] + captions["heldout"] + 4
    assert captions["excluded"]["opt-out"] == {"samples": {"opted out": 4}, "images": {}}
    lines = table(found)
    assert "  documents-captions: 4 samples excluded by opt-out: opted out" in lines
    assert "  documents-html: 1 images excluded by dedup: copy" in lines
    assert "  documents-html: 1 images dropped: image too elongated" in lines
    row = next(line for line in lines if line.startswith("documents-captions"))
    assert row.split()[-1] == "4"


def test_yield_against_threshold_is_shown_as_lines(built):
    score_dataset(built, CaptionScorer())
    yields = yield_curve(built, "caption_words")
    lines = curve("caption_words", yields)
    assert len(lines) == 1 + len(yields)
    assert "100.0%" in lines[1]
    assert curve("nothing", []) == ["nothing: no sample that is shown has this score"]


def test_a_preview_shows_no_excluded_sample_and_no_excluded_image(built):
    document = next(s for s in samples(built, source="documents-html") if len(s.media) > 1)
    gone = [s.id for s in samples(built, source="documents-captions")]
    exclude(built, "opt-out", [Exclusion(i, None, "opted out") for i in gone[2:]], {})
    before = preview(built, n=1000).count("<img")
    exclude(built, "dedup", [Exclusion(document.id, document.media[0].media_id, "copy")], {})
    page = preview(built, n=1000)
    assert ids_on(page) == {s.id for s in samples(built)}
    assert page.count("<img") == before - 1


def test_what_is_excluded_is_shown_on_demand_with_its_reason(built):
    document = next(s for s in samples(built, source="documents-html") if len(s.media) > 1)
    gone = [s.id for s in samples(built, source="documents-captions")][:2]
    exclude(built, "opt-out", [Exclusion(i, None, "opted out") for i in gone], {})
    exclude(built, "dedup", [Exclusion(document.id, document.media[0].media_id, "copy")], {})
    page = preview(built, n=1000, excluded=True)
    assert ids_on(page) == {*gone, document.id}
    assert page.count("excluded: opted out") == 2
    assert page.count("excluded: copy") == 1
    assert ids_on(preview(built, n=1000, excluded=True, source="documents-html")) == {document.id}


def test_a_preview_shows_scores_lineage_synthetic_marks_and_addresses(make, tmp_path):
    one = make.caption(1)
    told = dataclasses.replace(
        one,
        url="https://example.org/<page>",
        scores={"quality": 0.625},
        media=(dataclasses.replace(one.media[0], scores={"clip": 0.3125}, width=24, height=16),),
        synthetic={"generator": "some-model", "generator_version": "2", "prompt_id": "dense", "seed": 7,
                   "params_json": None, "parent_ids": ["p1"]},
        lineage=({"step": "check_images", "version": "1", "config_hash": "", "action": "drop 2 image(s)",
                  "reason": "image too small"},),
    )  # fmt: skip
    make.dataset(tmp_path, [told])
    page = preview(tmp_path)
    for words in (
        "https://example.org/&lt;page&gt;", "quality 0.625", "clip 0.312", "24x16", "some-model", "seed: 7",
        "check_images: drop 2 image(s), image too small", ">synthetic</span>",
    ):  # fmt: skip
        assert words in page


@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_preview_draws_evenly_and_the_same_every_time(built, n):
    page = preview(built, n=n)
    assert page == preview(built, n=n)
    sources = re.findall(r"<header>(\S+) ·", page)
    assert len(sources) == n
    assert abs(sources.count("documents-html") - sources.count("documents-captions")) <= 1
    assert ids_on(preview(built, n=n, seed=1)) != ids_on(page)


def test_an_empty_dataset_has_a_preview(built):
    exclude(built, "opt-out", [Exclusion(s.id, None, "opted out") for s in samples(built)], {})
    assert "Nothing to show" in preview(built)
