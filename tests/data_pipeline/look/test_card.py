"""The data card is one of the Hub's, its commands work as they stand, and nobody's text breaks out of it."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import yaml

from data_pipeline.build.look.card import size_category
from data_pipeline.build.look.report import write_report
from data_pipeline.manifest import read_manifest
from data_pipeline.view import Exclusion, exclude, samples


def card(directory) -> str:
    write_report(directory)
    return (directory / "card.md").read_text()


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_hub_s_own_library_reads_the_card(built):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.DatasetCard(card(built), ignore_metadata_errors=False).data
    assert data.pretty_name == "documents"
    assert data.size_categories == ["n<1K"]
    assert data.task_categories == ["image-text-to-text", "image-to-text", "text-generation"]
    assert data.license == "other"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"a": "CC-BY-4.0", "b": "cc-by-4.0"}, "cc-by-4.0"),
        ({"a": "CC-BY-4.0", "b": "CC0-1.0"}, ["cc-by-4.0", "cc0-1.0"]),
        ({"a": "CC-BY-4.0", "b": "not stated"}, "other"),
        ({"a": "mine: all [rights]\nreserved", "b": "CC0-1.0"}, "other"),
    ],
)
def test_licences_become_those_of_the_hub_or_other(make, tmp_path, stated, expected):
    made = [
        dataclasses.replace(
            make.caption(n), source=source, license=None if licence == "not stated" else licence
        )
        for n, (source, licence) in enumerate(stated.items())
    ]
    make.dataset(tmp_path, made)
    assert front(card(tmp_path))["license"] == expected


def test_counts_are_those_that_a_reader_sees(built):
    ids = [s.id for s in samples(built, source="documents-captions")]
    exclude(built, "opt-out", [Exclusion(i, None, "opted out") for i in ids[:3]], {"list": "optout.txt"})
    text = card(built)
    seen = list(samples(built))
    assert f"{len(seen)} samples with {sum(len(s.media) for s in seen)} images" in text
    for split in ("train", "heldout"):
        assert f"| {split} | {sum(1 for _ in samples(built, split=split))} |" in text
    assert "- opt-out: 3 samples, opted out" in text
    assert "The shards hold 3 samples that are excluded" in text


def test_text_of_others_cannot_break_the_card(make, tmp_path):
    hostile = "x\n---\n# Fake | `a` <img src=x> [l](javascript:1)"
    make.dataset(tmp_path, [dataclasses.replace(make.caption(1), license=hostile)])
    text = card(tmp_path)
    assert front(text)["license"] == "other"
    assert "\n# Fake" not in text
    assert re.search(r"(?<!\\)<img", text) is None
    assert re.search(r"(?<!\\)\[l\]", text) is None


def test_the_card_s_commands_read_the_dataset_as_they_stand(built):
    excluded = next(samples(built, source="documents-captions", split="train"))
    exclude(built, "opt-out", [Exclusion(excluded.id, None, "opted out")], {})
    blocks = re.findall(r"```python\n(.*?)```", card(built), re.DOTALL)
    assert len(blocks) == 3
    train = [s.id for s in samples(built, split="train")]
    stored = sum(s.samples for s in read_manifest(built).shards(format="arrow", split="train"))
    ends = (
        "",
        "\nprint(json.dumps([[row['id'], [i.size for i in row['images']]] for row in rows]))",
        "\n    print(len(images), record['id'])",
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", block + end],
            cwd=built,
            env={"PATH": "/usr/bin", "HF_HOME": str(built / "cache"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        for block, end in zip(blocks, ends, strict=True)
    ]
    assert [o.stderr for o in outputs if o.returncode] == []
    outputs = [o.stdout for o in outputs]
    assert [line.split()[0] for line in outputs[0].splitlines() if re.match(r"[0-9a-f]{32} ", line)] == train
    sizes = {s.id: [[m.width, m.height] for m in s.media] for s in samples(built, split="train")}
    assert dict(json.loads(outputs[1])) == sizes
    assert len(outputs[2].splitlines()) == stored


@pytest.mark.parametrize(
    ("n", "word"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M"),
     (10**11, "100B<n<1T"), (10**13, "n>1T")],
)  # fmt: skip
def test_sizes_have_the_hub_s_words(n, word):
    assert size_category(n) == word
