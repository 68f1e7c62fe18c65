"""Which samples and images are asked about, and which of several answers is kept."""

import json

import pytest

from data_pipeline.build.synthesize.source import SyntheticSource
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.view import Exclusion, View, exclude
from endpoint import items, reader, said, written_samples


def test_questions_become_turns_whose_answers_alone_carry_loss(dataset, serve):
    directory, _ = dataset
    answer = json.dumps(
        [{"question": "What colour?", "answer": "red"}, {"question": "How many?", "answer": 2}]
    )
    endpoint = serve(lambda *_: said(f"```json\n{answer}\n```"))
    sample = items(reader(directory, directory / "c.sqlite", endpoint, task="qa"))[0].sample
    assert sample.kind == "instruct"
    assert [(s.type, s.role, s.turn, s.loss, s.text) for s in sample.segments] == [
        ("image", "user", 0, 0.0, None),
        ("text", "user", 0, 0.0, "What colour?"),
        ("text", "assistant", 0, 1.0, "red"),
        ("text", "user", 1, 0.0, "How many?"),
        ("text", "assistant", 1, 1.0, "2"),
    ]
    prose = serve(lambda *_: said("There is a red car."))
    found = items(reader(directory, directory / "d.sqlite", prose, task="qa"))
    assert {i.fault.reason for i in found} == {"no question-answer pairs"}


def test_of_several_answers_the_most_typical_is_kept_with_its_agreement(dataset, serve):
    directory, _ = dataset
    texts = {0: "a red square", 1: "two blue dogs on grass", 2: "a red square here"}
    endpoint = serve(lambda request, _: said(texts[request["seed"]]))
    keys = {"samples": 3, "temperature": 0.7}
    sample = items(reader(directory, directory / "c.sqlite", endpoint, **keys))[0].sample
    assert sample.segments[-1].text == "a red square"
    assert sample.synthetic["seed"] == 0
    assert sample.scores["agreement"] == pytest.approx((0 + 6 / 7) / 2)
    keep = {"min_agreement": 0.9}
    found = items(reader(directory, directory / "c.sqlite", endpoint, **keys, keep=keep))
    assert {i.fault.reason for i in found} == {"answers disagree"}


def test_every_image_of_a_document_is_asked_about_with_its_own_alt_text(tmp_path, make, serve):
    document = Sample(
        id="d",
        kind="interleaved",
        source="docs",
        segments=(
            Segment(type="image", media=0),
            Segment(type="text", text="t"),
            Segment(type="image", media=1),
        ),
        media=(Media(media_id="a", alt="a first square"), Media(media_id="b")),
        image_bytes=(make.png(), make.png(color="blue")),
    )
    make.dataset(tmp_path / "data", [document])
    endpoint = serve(lambda *_: said("A square."))
    r = reader(tmp_path / "data", tmp_path / "c", endpoint, from_sources=[], prompt="Beside it: {caption}!")
    found = [i.sample for i in items(r)]
    assert [[s.text for s in x.segments] for x in found] == [
        [None, "a first square", "A square."],
        [None, "A square."],
    ]
    assert [x.media[0].media_id for x in found] == ["a", "b"]
    assert sorted(q["messages"][0]["content"][1]["text"] for q in endpoint.seen) == [
        "Beside it: !", "Beside it: a first square!",
    ]  # fmt: skip


def test_excluded_samples_and_samples_without_images_are_not_asked_about(dataset, serve):
    directory, _ = dataset
    exclude(directory, "withdraw", [Exclusion("cap0", None, "withdrawn")], {})
    endpoint = serve(lambda *_: said("A square."))
    found = items(reader(directory, directory / "c.sqlite", endpoint, from_sources=["caps", "docs"]))
    parents = [i.sample.synthetic["parent_ids"][0] for i in found if i.sample]
    assert "cap0" not in parents
    assert len([p for p in parents if p.startswith("cap")]) == 16
    texts = sum(not s.media for s in written_samples(directory) if s.source == "docs")
    assert [i.fault.reason for i in found if i.fault] == ["no image to describe"] * texts
    assert texts > 0


def test_exclusions_are_read_once_for_all_chunks_and_anew_when_they_change(dataset, serve, monkeypatch):
    directory, _ = dataset
    exclude(directory, "withdraw", [Exclusion("cap0", None, "withdrawn")], {})
    opened = []
    whole = View.open
    monkeypatch.setattr(View, "open", lambda *a, **keys: opened.append(a) or whole(*a, **keys))
    r = reader(directory, directory / "c.sqlite", serve(lambda *_: said("A square.")), chunk=2)
    assert len(r.units()) > 5
    items(r)
    assert len(opened) == 1
    exclude(directory, "withdraw", [Exclusion("cap1", None, "withdrawn")], {})
    parents = [i.sample.synthetic["parent_ids"][0] for i in items(r) if i.sample]
    assert "cap0" in parents
    assert "cap1" not in parents


def test_chunks_cover_every_row_once(dataset, serve):
    directory, _ = dataset
    endpoint = serve(lambda *_: said("A square."))
    found = items(reader(directory, directory / "c.sqlite", endpoint, chunk=2))
    assert sorted(i.sample.synthetic["parent_ids"][0] for i in found) == sorted(f"cap{n}" for n in range(17))


@pytest.mark.parametrize(
    "keys",
    [
        {"endpoint": None},
        {"checkpoint": "x"},
        {"endpoint": "ftp://h/v1"},
        {"endpoint": "http://user:pw@h/v1"},
        {"endpoint": "http://h/v1?key=1"},
        {"samples": 2},
        {"prompt": "dens"},
        {"unknown": 1},
    ],
)
def test_a_faulty_page_is_refused(keys):
    page = {"name": "s", "path": "d", "task": "caption", "endpoint": "http://h/v1", **keys}
    with pytest.raises(ValueError):
        SyntheticSource.model_validate(page)
