"""A dataset shows its shards without its exclusions, to every reader alike."""

import dataclasses
from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import read_manifest
from data_pipeline.stream.source import Source
from data_pipeline.view import Exclusion, View, exclude, light_rows, samples


@pytest.fixture
def built(dataset) -> Path:
    return dataset[0]


def test_an_excluded_sample_is_seen_by_nobody_and_its_shard_is_untouched(built):
    before = read_manifest(built)
    all_samples = list(samples(built, source="caps"))
    gone = all_samples[1]
    after = exclude(built, "opt-out", [Exclusion(gone.id, None, "opted out")], {})
    assert [s.id for s in samples(built, source="caps")] == [s.id for s in all_samples if s.id != gone.id]
    assert gone.id not in {row["id"] for _, row in light_rows(built)}
    source = Source.open(built, after, "caps")
    assert [source[i].id for i in range(len(source))] == [
        s.id for s in samples(built, source="caps", split="train")
    ]
    assert after.shards() == before.shards()
    assert after.digest != before.digest
    assert after.sources()["caps"] == before.sources()["caps"] - 1


def test_an_excluded_image_leaves_its_document_and_the_other_numbers_hold(built):
    document = next(s for s in samples(built, source="docs") if len(s.media) > 1)
    gone = document.media[0].media_id
    after = exclude(built, "dedup", [Exclusion(document.id, gone, "copy")], {})
    seen = next(s for s in samples(built) if s.id == document.id)
    assert seen.image_bytes[0] is None
    assert seen.image_bytes[1:] == document.image_bytes[1:]
    assert [s for s in document.segments if s.media != 0] == list(seen.segments)
    source = Source.open(built, after, "docs")
    streamed = next(source[i] for i in range(len(source)) if source[i].id == document.id)
    planned = next(
        source.without_pixels(i) for i in range(len(source)) if source.without_pixels(i).id == document.id
    )
    assert streamed == seen
    assert [s.media for s in planned.segments] == [s.media for s in seen.segments]


def test_an_image_taken_from_a_caption_takes_the_sample(built):
    caption = next(samples(built, source="caps"))
    after = exclude(built, "dedup", [Exclusion(caption.id, caption.media[0].media_id, "copy")], {})
    assert caption.id not in {s.id for s in samples(built)}
    assert after.excluded("caps", "train", "samples") == 1
    assert after.excluded("caps", "train", "images") == 1


def test_a_document_of_which_nothing_is_left_is_excluded_whole(built, make, tmp_path):
    picture = dataclasses.replace(make.document(0, paragraphs=1, pictures=1), source="plates")
    only_picture = dataclasses.replace(picture, segments=picture.segments[:1])
    make.dataset(tmp_path / "plates", [only_picture])
    after = exclude(
        tmp_path / "plates", "dedup", [Exclusion(only_picture.id, only_picture.media[0].media_id, "copy")], {}
    )
    assert after.exclusions[0].reasons == {"plates": {"samples": {"copy": 1}, "images": {}}}
    assert list(samples(tmp_path / "plates")) == []


def test_a_step_repeated_replaces_its_exclusions_and_others_stay(built):
    ids = [s.id for s in samples(built, source="caps")]
    exclude(built, "opt-out", [Exclusion(ids[0], None, "opted out")], {})
    exclude(built, "dedup", [Exclusion(ids[0], None, "copy"), Exclusion(ids[1], None, "copy")], {})
    assert set(View.open(built, read_manifest(built)).samples) == {ids[0], ids[1]}
    after = exclude(built, "dedup", [Exclusion(ids[2], None, "copy")], {})
    assert set(View.open(built, after).samples) == {ids[0], ids[2]}
    assert len(list((built / "exclusions").iterdir())) == 2
    after = exclude(built, "dedup", [], {})
    assert set(View.open(built, after).samples) == {ids[0]}


def test_a_sample_excluded_by_two_steps_is_counted_once(built):
    ids = [s.id for s in samples(built, source="caps", split="train")]
    exclude(built, "opt-out", [Exclusion(ids[0], None, "opted out")], {})
    after = exclude(built, "dedup", [Exclusion(ids[0], None, "copy")], {})
    assert after.excluded("caps", "train", "samples") == 1


def test_what_one_step_found_stays_out_when_another_finds_it_no_more(built):
    ids = [s.id for s in samples(built, source="caps")]
    exclude(built, "dedup", [Exclusion(ids[0], None, "copy"), Exclusion(ids[1], None, "copy")], {})
    exclude(built, "withdraw", [Exclusion(ids[0], None, "opted out")], {})
    after = exclude(built, "dedup", [Exclusion(ids[1], None, "copy")], {})
    assert set(View.open(built, after).samples) == {ids[0], ids[1]}
    assert {e.step: e.counts["caps"]["train"]["samples"] for e in after.exclusions} == {
        "withdraw": 1,
        "dedup": 1,
    }


def test_counts_of_other_steps_follow_when_a_step_is_repeated(built):
    document = next(s for s in samples(built, source="docs") if len(s.media) > 1)
    exclude(built, "dedup", [Exclusion(document.id, document.media[0].media_id, "copy")], {})
    after = exclude(built, "withdraw", [Exclusion(document.id, None, "opted out")], {})
    images = {e.step: e.counts["docs"]["train"]["images"] for e in after.exclusions}
    assert images == {"dedup": 1, "withdraw": len(document.media) - 1}
    after = exclude(built, "dedup", [], {})
    assert after.excluded("docs", "train", "images") == len(document.media)


def test_an_altered_file_of_exclusions_is_refused(built):
    first = next(samples(built))
    after = exclude(built, "opt-out", [Exclusion(first.id, None, "opted out")], {})
    path = built / after.exclusions[0].path
    path.write_text(path.read_text().replace("opted", "OPTED"))
    with pytest.raises(DataError, match="was altered"):
        list(samples(built))
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        list(samples(built))


def test_a_source_of_which_all_is_excluded_is_refused_by_name(built):
    found = [Exclusion(s.id, None, "opted out") for s in samples(built, source="caps")]
    after = exclude(built, "opt-out", found, {})
    with pytest.raises(ConfigError, match="every sample of source 'caps'"):
        Source.open(built, after, "caps")


def test_an_exclusion_of_what_is_not_there_is_no_exclusion(built):
    before = read_manifest(built)
    after = exclude(built, "opt-out", [Exclusion("0" * 32, None, "opted out")], {})
    assert dataclasses.asdict(after) == dataclasses.asdict(before)
