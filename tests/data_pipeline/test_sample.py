"""The one sample: its rows, its rules, its ids."""

import pyarrow as pa
import pytest

from data_pipeline.sample import SCHEMA, Media, Sample, Segment, content_id


def full_sample() -> Sample:
    return Sample(
        id="0" * 32,
        kind="interleaved",
        source="books",
        segments=(
            Segment(type="text", text="Vor dem Bild — «naïve» 雪", bbox=[0.0, 0.25, 0.5, 1.0]),
            Segment(type="image", media=0, sim=0.5),
            Segment(type="text", text="who?", role="user", turn=0, loss=0.0),
            Segment(type="image", media=0),
            Segment(type="page_break"),
        ),
        media=(
            Media(
                media_id="m",
                mime="image/png",
                width=2,
                height=3,
                phash=2**64 - 1,
                scores={"clip": 0.5},
                source_ref={"path": "a.warc", "member": None, "offset": 7, "size": 9},
            ),
            Media(media_id="n", error="gone"),
        ),
        image_bytes=(b"\x89PNG", None),
        scores={"quality": 0.25},
        synthetic={
            "generator": "g",
            "generator_version": "1",
            "prompt_id": None,
            "seed": 3,
            "params_json": "{}",
            "parent_ids": ["a", "b"],
        },
        lineage=({"step": "s", "version": "1", "config_hash": "", "action": "a", "reason": "r"},),
        general_metadata="{}",
    )


def test_a_sample_with_every_field_survives_arrow():
    sample = full_sample()
    batch = pa.RecordBatch.from_pylist([sample.to_row()], schema=SCHEMA)
    assert Sample.from_row(batch.to_pylist()[0]) == sample


def test_a_row_of_another_schema_version_is_refused():
    with pytest.raises(ValueError, match="schema version 99"):
        Sample.from_row({**full_sample().to_row(), "schema_version": 99})


def test_a_segment_cannot_point_to_an_image_that_is_not_there():
    with pytest.raises(ValueError, match="points to media 1"):
        Sample(id="a", kind="caption", source="s", segments=(Segment(type="image", media=1),))


def test_content_ids_tell_apart_what_concatenation_does_not():
    assert content_id("ab", "c") != content_id("a", "bc")
    assert content_id("é") == content_id("é".encode())
    assert len(content_id("x")) == 32
