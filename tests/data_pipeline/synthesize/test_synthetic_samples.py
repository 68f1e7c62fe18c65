"""A caption beside the originals names its origin, and is asked for once."""

import base64
import json

import pytest

from data_pipeline.errors import TransientError
from data_pipeline.sample import Sample
from endpoint import items, reader, said, written_samples


def test_a_caption_stands_beside_the_originals_and_names_its_origin(dataset, serve):
    directory, _ = dataset
    endpoint = serve(lambda request, _: said("A small square in one colour."))
    found = items(reader(directory, directory / "c.sqlite", endpoint, prompt="dense", max_tokens=50))
    assert len(found) == 17
    sample = next(i.sample for i in found if i.sample.synthetic["parent_ids"] == ["cap3"])
    parent = next(s for s in written_samples(directory) if s.id == "cap3")
    assert sample.segments[:3] == parent.segments
    new = sample.segments[3]
    assert (new.type, new.role, new.text) == ("text", "recaption", "A small square in one colour.")
    assert sample.image_bytes == parent.image_bytes
    assert sample.media == parent.media
    made = sample.synthetic
    assert made["generator"] == "tiny-vlm"
    assert made["generator_version"] == "tiny-vlm-2026@fp1"
    assert made["prompt_id"].startswith("dense@")
    assert json.loads(made["params_json"])["max_tokens"] == 50
    assert sample.scores["words"] == 6
    assert len({i.sample.id for i in found}) == 17
    assert Sample.from_row(sample.to_row()) == sample


def test_the_request_carries_the_very_bytes_of_the_image_and_the_seed(dataset, serve):
    directory, _ = dataset
    endpoint = serve(lambda request, _: said("One square."))
    items(reader(directory, directory / "c.sqlite", endpoint, seed=7, model="m"))
    sent = {
        base64.b64decode(r["messages"][0]["content"][0]["image_url"]["url"].split(",")[1])
        for r in endpoint.seen
    }
    assert sent == {b for s in written_samples(directory) if s.source == "caps" for b in s.image_bytes}
    assert {(r["seed"], r["model"], r["temperature"]) for r in endpoint.seen} == {(7, "m", 0.0)}


def test_a_repeat_asks_nothing_again_and_gives_the_same_samples(dataset, serve):
    directory, _ = dataset
    count = iter(range(1000))
    endpoint = serve(lambda request, _: said(f"Answer number {next(count)}."))
    first = items(reader(directory, directory / "c.sqlite", endpoint))
    asked = len(endpoint.seen)
    again = items(reader(directory, directory / "c.sqlite", endpoint))
    assert len(endpoint.seen) == asked == 17
    assert first == again
    other = items(reader(directory, directory / "c.sqlite", endpoint, seed=1))
    assert len(endpoint.seen) == 34
    assert not {i.sample.id for i in first} & {i.sample.id for i in other}


def test_what_was_answered_before_a_stop_is_not_asked_again(dataset, serve):
    directory, _ = dataset
    broken = True

    def reply(request, times):
        bad = broken and len(endpoint.seen) > 9
        return (503, {}, b"") if bad else said("A square.")

    endpoint = serve(reply)
    r = reader(directory, directory / "c.sqlite", endpoint, retries=0, concurrency=1)
    with pytest.raises(TransientError, match="endpoint busy or broken"):
        items(r)
    broken = False
    before = len(endpoint.seen)
    assert len(items(r)) == 17
    assert len(endpoint.seen) - before == 17 - 9
