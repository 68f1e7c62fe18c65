"""Each published layout as its rows are published: order, roles, what is kept where, and what is refused."""

import base64
import datetime
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.build.read.files import NOT_FETCHED, Tree
from data_pipeline.build.read.layouts.fields import MAX_TEXT
from data_pipeline.build.read.layouts.llava import conversations_of
from data_pipeline.build.read.layouts.messages import messages_of
from data_pipeline.sample import SCHEMA, Media, Sample, Segment, content_id

PICTURES = {"images/a.jpg": b"AAA", "images/b.png": b"BBB"}
A, B = content_id(b"AAA"), content_id(b"BBB")


@pytest.fixture
def read(place, rows):
    """A function: rows of JSON in, the samples and the reasons of the faults out."""

    def _read(kind, *records, keep_remote=False, **options):
        lines = "\n".join(json.dumps(r) for r in records).encode()
        tree = replace(place({"x.jsonl": lines, **PICTURES}), keep_remote=keep_remote)
        items = rows.items(tree, kind, files="*.jsonl", **options)
        assert len(items) == len(records)
        return [i.sample if i.fault is None else i.fault.reason for i in items]

    return _read


def shape(sample):
    """Texts as they are; images by their bytes."""
    return [s.text if s.type == "text" else sample.image_bytes[s.media] for s in sample.segments]


def test_llava_places_each_image_where_its_mark_stands(read):
    row = {
        "id": "7",
        "image": ["a.jpg", "b.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat.\n"},
            {"from": "human", "value": "And\n<image>"},
            {"from": "gpt", "value": "A dog."},
        ],
        "data_source": "d",
    }
    (sample,) = read("questions", row)
    assert shape(sample) == [b"AAA", "What is it?", "A cat.\n", "And", b"BBB", "A dog."]
    assert [(s.role, s.turn, s.loss) for s in sample.segments] == [
        ("user", 0, 0.0), ("user", 0, 0.0), ("assistant", 0, 1.0),
        ("user", 1, 0.0), ("user", 1, 0.0), ("assistant", 1, 1.0)]  # fmt: skip
    assert (sample.kind, [m.url for m in sample.media]) == ("instruct", ["images/a.jpg", "images/b.png"])
    assert json.loads(sample.general_metadata) == {"id": "7", "data_source": "d"}
    assert conversations_of(sample.segments) == row["conversations"]


@pytest.mark.parametrize(
    "value",
    ["<image> What?", "a <image> b", "<image><image>\nWhat?", "What? <image>\n", "\n<image>\nWhat?"],
)
def test_what_the_segments_of_llava_do_not_give_back_is_kept_as_it_was(read, value):
    talk = [{"from": "human", "value": value}, {"from": "gpt", "value": "x"}]
    (sample,) = read(
        "questions", {"image": ["a.jpg", "b.png"][: value.count("<image>")], "conversations": talk}
    )
    kept = json.loads(sample.general_metadata or "{}").get("conversations")
    assert (kept or conversations_of(sample.segments)) == talk
    assert kept == talk


Q, ANSWER = {"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.jpg", "conversations": [Q, ANSWER]}, None),
        ({"conversations": [{"from": "human", "value": "q"}, ANSWER]}, None),
        ({"conversations": [Q, ANSWER]}, "image count mismatch"),
        ({"image": ["a.jpg", "b.png"], "conversations": [Q, ANSWER]}, "image count mismatch"),
        ({"image": "a.jpg", "conversations": [ANSWER, Q]}, "roles out of order"),
        ({"image": "a.jpg", "conversations": [Q, Q, ANSWER]}, "image count mismatch"),
        ({"image": "a.jpg", "conversations": [Q, ANSWER, ANSWER]}, "roles out of order"),
        ({"image": "a.jpg", "conversations": [Q]}, "empty turn"),
        ({"image": "a.jpg", "conversations": [Q, {"from": "gpt", "value": " "}]}, "empty turn"),
        ({"image": "a.jpg", "conversations": [Q, {"from": "gpt", "value": None}]}, "empty turn"),
        ({"image": "a.jpg", "conversations": [Q, {"from": "gpt", "value": ["x"]}]}, "invalid text"),
        ({"image": "a.jpg", "conversations": [Q, {"from": "gpt", "value": "\ud800"}]}, "invalid text"),
        ({"image": "a.jpg", "conversations": [Q, {"from": "bard", "value": "x"}]}, "unknown role"),
        ({"image": "a.jpg", "conversations": [Q, {"from": "gpt"}]}, "invalid record"),
        ({"image": "a.jpg", "conversations": {"from": "gpt"}}, "invalid record"),
        ({"image": "a.jpg", "conversations": []}, "image count mismatch"),
        ({"conversations": []}, "invalid record"),
        ({"image": "gone.jpg", "conversations": [Q, ANSWER]}, "missing image"),
        ({"image": "../../x.jpg", "conversations": [Q, ANSWER]}, "path leaves the source"),
        ({"image": [None], "conversations": [Q, ANSWER]}, "missing image"),
        ({"image": "a.jpg", "bad": "\udfff", "conversations": [Q, ANSWER]}, "invalid record"),
    ],
)
def test_a_dialogue_that_breaks_a_rule_has_a_counted_reason(read, row, reason):
    (found,) = read("questions", row)
    assert (None if isinstance(found, Sample) else found) == reason


def test_the_cauldron_keeps_texts_to_the_character_and_sources_and_ratings(read):
    row = {
        "images": ["a.jpg", "b.png"],
        "texts": [
            {"user": " Q1?\n", "assistant": "A1", "source": "vqa"},
            {"user": "Q2", "assistant": "A2 ", "source": "vqa"},
        ],
        "source": "subset",
        "relevance_ratings": [5, None, 3],
        "relevance_min": 3,
        "formatting_ratings": [4, 2],
        "visual_dependency_ratings": None,
    }
    (sample,) = read("questions", row)
    assert shape(sample) == [b"AAA", b"BBB", " Q1?\n", "A1", "Q2", "A2 "]
    assert sample.scores == {"relevance_min": 3.0, "formatting_min": 2.0}
    kept = json.loads(sample.general_metadata)
    assert kept["texts"] == [{"source": "vqa"}, {"source": "vqa"}]
    assert {k: v for k, v in row.items() if k not in ("texts", "images") and v is not None} == {
        k: v for k, v in kept.items() if k != "texts"
    }


def test_text_only_rows_of_the_cauldron_are_dialogues_without_pictures(read):
    turn = {"user": "q", "assistant": "a"}
    samples = read("questions", {"images": [], "texts": [turn]}, {"images": None, "texts": [turn]})
    assert [shape(s) for s in samples] == [["q", "a"]] * 2
    assert all(s.general_metadata is None for s in samples)
    assert read("questions", {"images": [None], "texts": [turn]}) == ["missing image"]
    assert read("questions", {"images": [], "texts": [{"user": "q", "assistant": ""}]}) == ["empty turn"]


def test_messages_take_pictures_from_their_parts_or_from_beside_them(read):
    uri = "data:image/png;base64," + base64.b64encode(b"CCC").decode()
    image, words = {"type": "image"}, {"type": "text", "text": "q"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    talk = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [image, words, image]},
        answer,
    ]
    inline = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "image", "image": "b.png"}, words]
    samples = read(
        "questions",
        {"messages": talk, "images": ["a.jpg", "b.png"]},
        {"messages": [{"role": "user", "content": inline}, answer]},
        {"messages": [{"role": "user", "content": "<image>\nq"}, answer], "images": ["a.jpg"]},
        {"messages": [{"role": "user", "content": "q"}, answer], "images": ["a.jpg", "b.png"]},
    )
    assert [shape(s) for s in samples] == [
        ["be kind", b"AAA", "q", b"BBB", "a"],
        [b"CCC", b"BBB", "q", "a"],
        [b"AAA", "q", "a"],
        [b"AAA", b"BBB", "q", "a"],
    ]
    assert [s.role for s in samples[0].segments] == ["system", "user", "user", "user", "assistant"]
    assert "base64" not in samples[1].general_metadata
    assert messages_of(samples[0].segments)[1:] == talk[1:]
    assert json.loads(samples[0].general_metadata)["messages"] == talk


def test_messages_whose_pictures_do_not_match_are_refused(read):
    def ask(*parts):
        talk = [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "a"}]
        return {"messages": talk, "images": ["a.jpg"]}

    image, words = {"type": "image"}, {"type": "text", "text": "q"}
    assert [
        x if isinstance(x, str) else shape(x)
        for x in read("questions", ask(image, words), ask(image, image), ask({"type": "video"}), ask(3))
    ] == [[b"AAA", "q", "a"], "image count mismatch", "invalid record", "invalid record"]


def test_obelics_keeps_order_and_its_json_texts_unchanged(read):
    about = '[{"src": "https://h/1.jpg", "alt_text": "one"},  null, {"src": "https://h/2.jpg"}, null]'
    page = '{"url":  "https://site.org/p", "warc_filename": "w"}'
    row = {
        "images": ["a.jpg", None, "gone.jpg", None],
        "texts": [None, "first\n\nsecond ", None, "third"],
        "metadata": about,
        "general_metadata": page,
        "extra": 1,
    }
    (sample,) = read("interleaved", row)
    assert shape(sample) == [b"AAA", "first\n\nsecond ", "third"]
    assert (sample.url, sample.domain, sample.kind) == ("https://site.org/p", "site.org", "interleaved")
    assert (sample.media[0].url, sample.media[0].alt) == ("https://h/1.jpg", "one")
    assert json.loads(sample.general_metadata) == {"metadata": about, "general_metadata": page, "extra": 1}
    assert [(e["reason"], e["action"]) for e in sample.lineage] == [("missing image", "drop 1 image(s)")]


def test_addresses_are_kept_for_the_step_that_fetches_or_refused(read):
    row = {"images": ["https://h/1.jpg", None], "texts": [None, "words"], "metadata": None}
    (kept,) = read("interleaved", row, keep_remote=True)
    assert [(m.url, m.error) for m in kept.media] == [("https://h/1.jpg", NOT_FETCHED)]
    assert shape(kept) == [None, "words"]
    (cut,) = read("interleaved", row)
    assert [e["reason"] for e in cut.lineage] == ["remote image"]
    assert read("captions", {"url": "https://h/1.jpg", "caption": "c"}) == ["remote image"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": [None], "texts": ["a", "b"]}, "invalid record"),
        ({"images": [None], "texts": ["a"], "metadata": "{"}, "invalid record"),
        ({"images": [None], "texts": ["\ud800"]}, "invalid text"),
        ({"images": [None], "texts": ["x" * (MAX_TEXT + 1)]}, "text too long"),
        ({"images": [None, None], "texts": [None, None]}, "too little text"),
        ({"images": ["gone.jpg"], "texts": [None]}, "too little text"),
        ({"something": 1}, "invalid record"),
        ({"sequence": ["text"]}, "invalid record"),
        ({"text_list": "abc"}, "invalid record"),
        ({"text_list": ["a"], "image_info": [1]}, "invalid record"),
    ],
)
def test_a_document_that_breaks_a_rule_has_a_counted_reason(read, row, reason):
    assert read("interleaved", row) == [reason]


def test_mmc4_puts_an_image_before_its_sentence_with_its_similarity(read):
    infos = [
        {
            "image_name": "b.png",
            "raw_url": "https://h/b",
            "matched_text_index": 1,
            "matched_sim": 0.25,
            "face": None,
        },
        {"image_name": "a.jpg", "raw_url": "https://h/a", "matched_text_index": 0, "matched_sim": 0.5},
        {"image_base64": base64.b64encode(b"CCC").decode(), "matched_text_index": 1, "matched_sim": 0.125},
        {"image_name": "a.jpg", "matched_text_index": 9, "matched_sim": 0.1},
    ]
    row = {"text_list": ["one", "two "], "image_info": infos, "similarity_matrix": [[0.1, 0.5]],
           "url": "https://s.org/x", "could_have_url_duplicate": 0}  # fmt: skip
    (sample,) = read("interleaved", row)
    assert shape(sample) == [b"AAA", "one", b"BBB", b"CCC", "two "]
    assert [s.sim for s in sample.segments if s.type == "image"] == [0.5, 0.25, 0.125]
    assert [m.url for m in sample.media] == ["https://h/a", "https://h/b", None]
    assert [e["reason"] for e in sample.lineage] == ["no place in the text"]
    kept = json.loads(sample.general_metadata)
    assert kept["similarity_matrix"] == [[0.1, 0.5]]
    assert kept["image_info"][1] == infos[1]
    assert all("image_base64" not in i for i in kept["image_info"])


def test_captions_of_the_web_are_alt_texts_and_their_scores_are_columns(read):
    row = {
        "image": "a.jpg",
        "URL": "https://h/a.jpg",
        "TEXT": "t",
        "similarity": 0.31,
        "punsafe": float("nan"),
        "original_width": 640,
        "original_height": 480,
        "key": "000",
    }
    (sample,) = read("captions", row)
    assert [(s.text, s.role) for s in sample.segments] == [(None, None), ("t", "alt")]
    assert (sample.media[0].url, sample.media[0].orig_width, sample.media[0].alt) == (
        "https://h/a.jpg",
        640,
        "t",
    )
    assert sample.scores == {"similarity": pytest.approx(0.31)}
    assert json.loads(sample.general_metadata)["key"] == "000"


def test_captions_that_say_nothing_or_no_text_are_refused(read):
    rows = [
        {"image": "a.jpg", "caption": c}
        for c in (float("nan"), None, " ", ["x"], {"a": 1}, "\udc00", "a\0b", 7)
    ]
    found = read("captions", *rows)
    assert found[:6] == ["invalid record"] * 3 + ["invalid text"] * 3
    assert [s.segments[1].text for s in found[6:]] == ["ab", "7"]
    assert read("captions", {"image": "a.jpg", "caption": "x" * 10_000_000}) == ["text too long"]
    assert (
        read("captions", {"image": "a.jpg", "caption": "x", "original_width": 1e300})[0].media[0].orig_width
        is None
    )


def test_columns_of_other_names_are_read_as_the_recipe_says(read):
    row = {"img": "a.jpg", "beschreibung": "Katze"}
    (sample,) = read("captions", row, columns={"img": "image", "beschreibung": "caption"})
    assert shape(sample) == [b"AAA", "Katze"]


def test_metadata_of_any_type_becomes_json(rows, folder):
    when = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    table = {"image": [{"bytes": b"x", "path": "/home/me/p.jpg"}], "text": ["t"], "when": [when],
             "raw": [b"\xff"], "nan": [float("nan")], "vector": [np.array([1.5, 2.5])]}  # fmt: skip
    pq.write_table(pa.table(table), folder / "x.parquet")
    (item,) = rows.items(Tree.at(folder))
    assert json.loads(item.sample.general_metadata) == {
        "when": "2024-01-02 00:00:00+00:00", "raw": "/w==", "nan": None, "vector": [1.5, 2.5]}  # fmt: skip
    assert item.sample.media[0].url == "p.jpg", "no folder of the machine where it was made"


def own_sample():
    return Sample(
        id="abc",
        kind="caption",
        source="elsewhere",
        license="CC",
        scores={"clip": 0.5},
        segments=(Segment(type="image", media=0), Segment(type="text", text="t", role="alt", sim=0.5)),
        media=(Media(media_id="m", phash=2**63 + 1, scores={"x": 1.0}),),
        image_bytes=(b"AAA",),
    )


@pytest.mark.parametrize("kind", ["captions", "questions", "interleaved"])
def test_own_rows_come_back_whole_from_arrow_parquet_and_tar(rows, folder, kind):
    row = own_sample().to_row()
    table = pa.Table.from_pylist([row], schema=SCHEMA)
    pq.write_table(table, folder / "z.parquet")
    with pa.ipc.new_file(folder / "x.arrow", SCHEMA) as writer:
        writer.write_table(table)
    page = json.dumps({k: v for k, v in row.items() if k != "images"}).encode()
    with tarfile.open(folder / "y.tar", "w") as tar:
        for name, data in (("abc.json", page), ("abc.000.jpg", b"AAA")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    items = rows.items(Tree.at(folder), kind)
    assert [i.sample for i in items] == [Sample(**{**vars(own_sample()), "source": "s"})] * 3
    # A shard that stands there in several formats is read once.
    (folder / "y.tar").rename(folder / "x.tar")
    (folder / "z.parquet").rename(folder / "x.parquet")
    assert len(rows.items(Tree.at(folder), kind)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 9},
        {"id": "../../x"},
        {"id": None},
        {"kind": "film"},
        {"segments": [{"type": "image", "media": 7}]},
        {"segments": [{"type": "text", "text": "\ud800"}]},
        {"segments": [{"nonsense": 1}]},
        {"segments": 3},
        {"media": [{"media_id": None, "scores": None}]},
        {"media": [{"media_id": "m", "width": "wide", "scores": None}]},
        {"lang_score": "high"},
    ],
)
def test_own_rows_that_break_the_schema_are_refused(read, change):
    row = {**own_sample().to_row(), "images": [{"bytes": None, "path": None}], **change}
    assert read("captions", row)[0] in ("invalid record", "invalid text")
