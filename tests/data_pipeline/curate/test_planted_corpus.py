"""Each plant of a small corpus meets its one fate, and all else is kept.

Build, deduplicate, decontaminate, withdraw, report, stream: by the real verbs, on real files.
"""

import io
import json
from collections import Counter

import imagehash
import pytest
from PIL import Image

from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.verify import verify
from data_pipeline.stream.datasets import Datasets
from data_pipeline.view import samples
from planted import Curated, prose, stream, tag


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Curated:
    return Curated(tmp_path_factory.mktemp("curate"))


def test_each_plant_meets_its_fate_and_all_else_is_kept(curated):
    names = {s.id: tag(s) for s in curated.all}
    lines = [json.loads(x) for x in (curated.corpus.root / "interleaved.jsonl").read_text().splitlines()]
    pages = [json.loads(page["general_metadata"])["url"].rsplit("/", 1)[-1] for page in lines]
    found = Counter((tag(s), None) for s in curated.shown)
    found.update((names[i], reason) for i, reason in curated.view.samples.items())
    found.update(
        (pages[int(d["where"].split()[1]) - 1], d["class"]) for d in curated.dropped if d["part"] == "sample"
    )
    assert found == curated.corpus.fates


def test_pictures_that_come_too_often_or_opted_out_leave_their_documents(curated):
    names = {s.id: tag(s) for s in curated.all}
    found = {names[i]: sorted(reasons.values()) for i, reasons in curated.view.images.items()}
    assert found == {
        **{f"bytes{n}": ["image too frequent"] for n in range(11)},
        **{f"address{n}": ["image address too frequent"] for n in range(11)},
        "image": ["opted out"],
    }
    for s in curated.shown:
        if tag(s) in found:
            assert not any(segment.type == "image" for segment in s.segments)
            assert s.image_bytes == (None,)
        elif tag(s).startswith("ten"):
            assert s.image_bytes[0] is not None


def test_personal_data_is_replaced_and_nothing_else_of_the_text(curated):
    (pii,) = [s for s in curated.shown if tag(s) == "pii"]
    assert "Write to [EMAIL] or call [PHONE], host [IP] now." in pii.text
    everything = json.dumps([vars(x) for s in curated.shown for x in s.segments])
    for secret in ("jane.doe", "1234567", "8.8.8.8"):
        assert secret not in everything
        assert secret not in (curated.directory / "report.html").read_text()
    plain = next(s for s in curated.shown if tag(s) == "plain3")
    assert plain.text.replace("\n", "") == prose(3)


def test_no_picture_and_no_near_copy_of_one_is_on_both_sides(curated):
    sides = {split: list(samples(curated.directory, split=split)) for split in ("train", "heldout")}
    ids = {k: {m.media_id for s in v for m in s.media} for k, v in sides.items()}
    assert not ids["train"] & ids["heldout"]
    assert min(map(len, ids.values())) > 5
    hashes = {
        side: [imagehash.phash(Image.open(io.BytesIO(b))) for s in shown for b in s.image_bytes if b]
        for side, shown in sides.items()
    }
    assert min(a - b for a in hashes["train"] for b in hashes["heldout"]) > 10


def test_the_books_balance_and_the_report_names_every_reason(curated):
    assert balanced(funnel(curated.manifest)) == []
    verify(curated.directory)
    report = (curated.directory / "report.html").read_text()
    page = json.loads((curated.directory / "funnel.json").read_text())
    reasons = {reason for _, reason in curated.corpus.fates if reason}
    reasons |= {"image too frequent", "image address too frequent"}
    for reason in reasons:
        assert reason in report, reason
        assert reason in json.dumps(page), reason
    assert "question.jpg" in curated.pairs
    assert "narrow stone bridge" in curated.pairs.lower()


def test_training_sees_the_view_and_nothing_of_what_was_excluded(curated, tokenizer, tmp_path):
    opened = Datasets.read([curated.directory])
    shown = {s.id: s for s in samples(curated.directory, split="train")}
    seen = {}
    for name in ("caps", "docs"):
        source = opened.source(name, "train")
        for i in range(len(source)):
            sample, planned = source[i], source.without_pixels(i)
            assert sample == shown[sample.id]
            assert [(s.type, s.text, s.media) for s in planned.segments] == [
                (s.type, s.text, s.media) for s in sample.segments
            ]
            seen[sample.id] = sample
    assert seen == shown
    training = stream(curated.directory, tokenizer, ["caps", "docs"], tmp_path, length=1024)
    drawn, pictures, spans = Counter(), 0, 0
    while min((drawn[i] for i in shown), default=0) < 1:
        (batch,) = training.next()
        drawn.update({i for row in batch.sample_ids for i in row})
        pictures += len(batch.grids)
        spans += int((batch.input_ids == tokenizer.image_start_id).sum())
        assert sum(drawn.values()) < 3000, "some samples never come"
    training.close()
    assert set(drawn) == set(shown)
    assert pictures == spans > 0
    assert training.skipped == {}, "a document that lost a picture is whole without it"
