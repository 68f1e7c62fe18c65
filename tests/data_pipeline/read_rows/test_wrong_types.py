"""Rows with values of the wrong type in any place: a counted reason, or a sample that can be written."""

import dataclasses
import random

import pyarrow as pa

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.row_reader import LAYOUTS, RowReader
from data_pipeline.build.read.rows.row import Row
from data_pipeline.sample import SCHEMA

CHAT = [
    {"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "q"}]},
    {"role": "assistant", "content": "a"},
]
SOUND = [
    {"image": "a.jpg", "captions": ["c"], "url": "https://h/a", "original_width": 4, "similarity": 0.1},
    {"images": ["a.jpg"], "texts": [{"user": "q", "assistant": "a", "source": "s"}], "x_ratings": [1]},
    {
        "image": "a.jpg",
        "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}],
    },
    {"messages": CHAT},
    {"texts": ["t", None], "images": [None, "a.jpg"], "metadata": "[null, {}]", "general_metadata": "{}"},
    {
        "text_list": ["a"],
        "image_info": [{"image_name": "a.jpg", "matched_text_index": 0, "matched_sim": 0.1}],
    },
    {"title": "t", "sequence": [{"text": "t"}, {"image": "a.jpg", "alt": "x", "caption": "y"}]},
    {"question": "q", "answer": "a", "image": "a.jpg", "license": {"name": "n"}},
    {
        "schema_version": 2,
        "id": "i",
        "kind": "text",
        "segments": [{"type": "text", "text": "t"}],
        "media": [],
    },
]
ODD = [
    None,
    True,
    -5,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "\ud800",
    "\0",
    "../x",
    "https://[",
    "[",
    "{}",
]
ODD += [b"\xff", [], {}, [None], [[]], [{}], {"bytes": b"x", "path": "\ud800"}, {"bytes": 3, "path": 4}]


def damaged(value, rng):
    if rng.random() < 0.12:
        return rng.choice(ODD)
    if isinstance(value, dict):
        return {k: damaged(v, rng) for k, v in value.items()}
    return [damaged(v, rng) for v in value] if isinstance(value, list) else value


def test_no_value_of_a_wrong_type_ends_a_reader_or_a_writer(folder):
    (folder / "a.jpg").write_bytes(b"x")
    rng, tree, sound, faults = random.Random(11), Tree.at(folder), 0, set()
    keeping = dataclasses.replace(tree, keep_remote=True)
    readers = [RowReader("s", kind, None, t) for kind in LAYOUTS for t in (tree, keeping)]
    for n in range(2500):
        row = damaged(SOUND[n % len(SOUND)], rng)
        for reader in readers if isinstance(row, dict) else ():
            item = reader._item(Row("f", "w", row))
            if item.fault is None:
                pa.RecordBatch.from_pylist([item.sample.to_row()], schema=SCHEMA)
                sound += 1
            else:
                faults.add(item.fault.reason)
    assert sound > 1000
    assert {"invalid record", "invalid text", "missing image", "empty turn", "unknown role"} <= faults
