"""The funnel shows every step and proves that nothing was lost on the way."""

import copy
from pathlib import Path

import pytest

from data_pipeline.build.cut import CutDocuments
from data_pipeline.build.look.funnel import balanced, funnel, table
from data_pipeline.build.run import build
from data_pipeline.manifest import Exclusions, Funnel, Manifest, StepCount, TaskRecord, read_manifest
from data_pipeline.view import Exclusion, exclude, samples

REALDATA = Path(__file__).parents[4] / "shared" / "realdata"


def manifest(*, exclusions=()) -> Manifest:
    """10 documents are read; 1 is dropped; 9 become 20 samples, of which 2 are too short; 18 are written."""
    web = Funnel(
        read=21,
        written=18,
        dropped={"not HTML": 1, "too little text": 2},
        images_read=8,
        images_written=6,
        images_dropped={"image too small": 2},
        steps=(
            StepCount(step="read", samples=9, images=8, text_chars=900, dropped={"not HTML": 1}),
            StepCount(
                step="images", samples=9, images=6, text_chars=900, images_dropped={"image too small": 2}
            ),
            StepCount(
                step=CutDocuments.name, samples=18, images=6, text_chars=880, dropped={"too little text": 2}
            ),
        ),
    )
    caps = Funnel(
        read=5,
        written=5,
        images_read=5,
        images_written=5,
        steps=tuple(
            StepCount(step=s, samples=5, images=5, text_chars=50)
            for s in ("read", "images", CutDocuments.name)
        ),
    )
    record = TaskRecord(task=0, tasks=1, fingerprint="f", shards=(), funnel={"web": web, "caps": caps})
    return Manifest(
        name="m",
        fingerprint="f",
        recipe={},
        licences={},
        unread=(),
        tasks=(record,),
        exclusions=exclusions,
    )


DEDUP = Exclusions(
    step="dedup",
    path="exclusions/dedup.jsonl",
    sha256="",
    counts={"web": {"train": {"samples": 3, "images": 4, "text_chars": 30}}},
    reasons={"web": {"samples": {"copy": 3}, "images": {"copy of an image": 1}}},
    made={},
)


def test_each_step_takes_in_what_the_step_before_let_out():
    found = funnel(manifest())
    web = found["sources"]["web"]["steps"]
    assert [s["samples"] for s in web] == [
        {"in": 10, "added": 0, "out": 9, "dropped": {"not HTML": 1}},
        {"in": 9, "added": 0, "out": 9, "dropped": {}},
        {"in": 9, "added": 11, "out": 18, "dropped": {"too little text": 2}},
    ]
    assert [(s["images"]["in"], s["images"]["out"]) for s in web] == [(8, 8), (8, 6), (6, 6)]
    assert web[1]["images"]["dropped"] == {"image too small": 2}
    total = found["total"]["steps"][2]["samples"]
    assert (total["in"], total["added"], total["out"]) == (14, 11, 23)
    assert balanced(found) == []


def test_exclusions_follow_the_steps_of_the_build():
    found = funnel(manifest(exclusions=(DEDUP,)))
    step = found["sources"]["web"]["steps"][-1]
    assert (step["step"], step["stage"]) == ("dedup", "exclusion")
    assert step["samples"] == {"in": 18, "added": 0, "out": 15, "dropped": {"copy": 3}}
    assert step["images"]["out"] == 2
    assert step["images"]["dropped"] == {"copy of an image": 1, "went with its sample": 3}
    assert step["text_chars"] == {"in": 880, "out": 850}
    assert found["sources"]["caps"]["seen"] == {"samples": 5, "images": 5}
    assert found["total"]["seen"] == {"samples": 20, "images": 7}
    assert balanced(found) == []


@pytest.mark.parametrize("unit", ["samples", "images"])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("what", ["in", "added", "out"])
def test_a_count_that_is_one_off_at_any_step_is_found(unit, step, what):
    found = funnel(manifest(exclusions=(DEDUP,)))
    off = copy.deepcopy(found)
    off["sources"]["web"]["steps"][step][unit][what] += 1
    assert balanced(found) == []
    assert any(f.startswith(f"web, {unit}: step") for f in balanced(off))


def test_a_sample_that_is_lost_unsaid_is_found_in_source_and_total():
    lost = manifest()
    web = lost.tasks[0].funnel["web"]
    lost.tasks[0].funnel["web"] = Funnel(**{**vars(web), "written": 17})
    faults = balanced(funnel(lost))
    assert "web, samples: 21 read, but 17 written and 3 dropped" in faults
    assert "all, samples: 26 read, but 22 written and 3 dropped" in faults


def test_a_step_that_keeps_no_books_is_found():
    silent = manifest()
    web = silent.tasks[0].funnel["web"]
    steps = (web.steps[0], StepCount(step="silent"), *web.steps[1:])
    silent.tasks[0].funnel["web"] = Funnel(**{**vars(web), "steps": steps})
    assert any("step 'silent' took in 9, but let out 0" in f for f in balanced(funnel(silent)))


def test_the_table_names_every_step_and_reason_in_plain_aligned_lines():
    lines = table(funnel(manifest(exclusions=(DEDUP,))))
    text = "\n".join(lines)
    for word in ("all sources", "web", "caps", "read", "cut into samples", "excluded by dedup", "90.0%"):
        assert word in text
    assert "    2 samples dropped: too little text" in lines
    assert all(line.isprintable() for line in lines)
    head = lines[0]
    rows = [line for line in lines[: lines.index("")] if not line.startswith("    ")]
    assert {line.rstrip()[: head.index("samples") + 7][-1:].isdigit() for line in rows[1:]} == {True}


def test_a_build_of_documents_balances_with_and_without_exclusions(inputs, tmp_path):
    made = build(inputs, tmp_path, bad_inputs="drop", overrides=["heldout=0.2"])
    found = funnel(made)
    assert balanced(found) == []
    ledger = found["sources"]["documents-html"]
    assert ledger["written"]["samples"] == len(list(samples(tmp_path, source="documents-html")))
    document = next(s for s in samples(tmp_path, source="documents-html") if s.media)
    gone = [Exclusion(s.id, None, "opted out") for s in samples(tmp_path, source="documents-captions")][:2]
    exclude(tmp_path, "opt-out", gone, {})
    exclude(tmp_path, "dedup", [Exclusion(document.id, document.media[0].media_id, "copy")], {})
    seen = list(samples(tmp_path))
    total = funnel(read_manifest(tmp_path))["total"]["seen"]
    assert total["samples"] == len(seen)
    assert total["images"] == sum(not m.error for s in seen for m in s.media)


def test_a_build_of_captions_and_documents_balances(inputs, tmp_path):
    assert balanced(funnel(build(inputs, tmp_path, bad_inputs="drop"))) == []


@pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real data at {REALDATA.name}")
@pytest.mark.parametrize("source", ["coco_cc", "openstax_astronomy", "pdf", "vqa_rad"])
def test_builds_of_real_sources_balance(source, tmp_path):
    assert balanced(funnel(build(REALDATA / source, tmp_path, bad_inputs="drop"))) == []
