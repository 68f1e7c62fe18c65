"""Scores as columns and thresholds as views, against a naive walk over the samples."""

import json
import shutil
from dataclasses import dataclass, field, replace

import pytest

from data_pipeline.build.score.columns import column_names, read_column, score_dataset
from data_pipeline.build.score.scorer import Score, load_scorer
from data_pipeline.build.score.text import CaptionScorer, TextScorer
from data_pipeline.build.score.threshold import Rule, select, yield_curve
from data_pipeline.errors import ConfigError, DataError, PreflightError
from data_pipeline.sample import content_id
from data_pipeline.view import Exclusion, View, exclude, read_manifest, samples


@dataclass
class Bytes:
    """A value in 0..1 by the image's bytes; a sample without images gets one of its own."""

    name: str = "bytes"
    version: str = "1"
    columns: tuple[str, ...] = ("bytes",)
    reads_images: bool = True
    calls: list[int] = field(default_factory=list)

    def score(self, samples):
        self.calls.append(len(samples))
        for s in samples:
            if not s.media:
                yield Score("bytes", s.id, None, value(s.id.encode()))
            for m, data in zip(s.media, s.image_bytes, strict=True):
                yield Score("bytes", s.id, m.media_id, value(s.id.encode() + data))


def value(data: bytes) -> float:
    return int(content_id(data)[:4], 16) / 65536


class Lost(Exception):
    pass


def test_a_column_joins_by_id_and_holds_what_the_scorer_said(dataset):
    directory, _ = dataset
    counts = score_dataset(directory, Bytes())
    table = read_column(directory, "bytes")
    expected = {(s.id, m.media_id) for s in samples(directory) for m in s.media}
    expected |= {(s.id, None) for s in samples(directory) if not s.media}
    rows = table.to_pylist()
    assert {(r["id"], r["media_id"]) for r in rows} == expected
    assert len(rows) == counts["bytes"] == len(expected)
    by_id = {s.id: s for s in samples(directory)}
    for row in rows:
        s = by_id[row["id"]]
        assert row["images"] == len(s.media)
        assert row["chars"] == sum(len(x.text or "") for x in s.segments)
        assert row["document"] == (s.kind == "interleaved")
    record = json.loads((directory / "columns/bytes/COLUMN.json").read_text())
    assert record["rows"] == len(rows)
    assert column_names(directory) == ["bytes"]


def test_a_scorer_that_reads_no_images_gets_none(dataset):
    directory, _ = dataset
    seen = []

    class Blind(Bytes):
        def score(self, samples):
            seen.extend(b for s in samples for b in s.image_bytes)
            return []

    score_dataset(directory, Blind(reads_images=False))
    assert seen
    assert set(seen) == {None}


def test_a_killed_run_goes_on_at_the_next_shard_and_gives_the_same_bytes(dataset, tmp_path_factory):
    directory, manifest = dataset
    whole = tmp_path_factory.mktemp("whole") / "d"
    shutil.copytree(directory, whole)
    score_dataset(whole, Bytes())

    class Dies(Bytes):
        def score(self, samples):
            if sum(self.calls) > 15:
                raise Lost
            return super().score(samples)

    with pytest.raises(Lost):
        score_dataset(directory, Dies())
    with pytest.raises(ConfigError, match="no column"):
        read_column(directory, "bytes")
    done = len(list((directory / "columns/bytes").glob("*.arrow")))
    assert 0 < done < len(manifest.shards(format="arrow"))
    second = Bytes()
    score_dataset(directory, second)
    left = sorted(s.path for s in manifest.shards(format="arrow"))[done:]
    assert sum(second.calls) == sum(s.samples for s in manifest.shards(format="arrow") if s.path in left)
    for file in (whole / "columns").rglob("*.*"):
        assert (directory / file.relative_to(whole)).read_bytes() == file.read_bytes()
    third = Bytes()
    score_dataset(directory, third)
    assert third.calls == []


def test_another_version_of_a_scorer_writes_its_column_again(dataset):
    directory, _ = dataset
    score_dataset(directory, Bytes())
    again = Bytes(version="2")
    score_dataset(directory, again)
    assert sum(again.calls) == 37
    assert json.loads((directory / "columns/bytes/COLUMN.json").read_text())["version"] == "2"


def test_a_column_that_is_being_replaced_does_not_exist(dataset):
    directory, _ = dataset
    score_dataset(directory, Bytes())

    class Dies(Bytes):
        def score(self, samples):
            raise Lost

    with pytest.raises(Lost):
        score_dataset(directory, Dies(version="2"))
    with pytest.raises(ConfigError, match="no column"):
        read_column(directory, "bytes")


def test_a_document_of_images_alone_goes_with_its_last_image(tmp_path, make):
    spoken = make.document(4, pictures=2)
    pictures = make.document(3, pictures=2)
    silent = replace(pictures, segments=tuple(s for s in pictures.segments if s.type == "image"))
    make.dataset(tmp_path, [silent, spoken, make.document(5, pictures=1)])

    class Named(Bytes):
        def score(self, samples):
            return [Score("bytes", s.id, m.media_id, float(s.id == "doc5")) for s in samples for m in s.media]

    score_dataset(tmp_path, Named())
    highest = yield_curve(tmp_path, "bytes", points=2)[-1]
    exclude(tmp_path, "filter", select(tmp_path, "bytes>=1"), {})
    assert [s.id for s in samples(tmp_path)] == ["doc4", "doc5"]
    assert (highest.threshold, highest.samples, highest.images) == (1.0, 2, 1)


@pytest.mark.parametrize(
    "broken",
    [
        lambda s: Score("other", s.id, None, 0.0),
        lambda s: Score("bytes", "nobody", None, 0.0),
        lambda s: Score("bytes", s.id, "no image of it", 0.0),
        lambda s: Score("bytes", s.id, None, float("nan")),
    ],
)
def test_a_score_that_joins_nothing_or_is_no_number_is_refused(dataset, broken):
    directory, _ = dataset

    class Broken(Bytes):
        def score(self, samples):
            return [broken(s) for s in samples]

    with pytest.raises(ConfigError, match="gave a score"):
        score_dataset(directory, Broken())
    assert column_names(directory) == []


def test_a_damaged_shard_is_not_scored_and_a_damaged_column_not_read(dataset):
    directory, manifest = dataset
    score_dataset(directory, Bytes())
    file = next((directory / "columns/bytes").glob("*.arrow"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="was altered"):
        read_column(directory, "bytes")
    file.unlink()
    with pytest.raises(DataError, match="is missing"):
        list(select(directory, "bytes>=0.5"))
    shutil.rmtree(directory / "columns")
    shard = directory / manifest.shards(format="arrow")[0].path
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(DataError, match="truncated"):
        score_dataset(directory, Bytes())


def test_a_column_of_another_dataset_is_refused(dataset, make, tmp_path_factory):
    directory, _ = dataset
    score_dataset(directory, Bytes())
    other = tmp_path_factory.mktemp("other")
    make.dataset(other, [make.caption(5)])
    shutil.copytree(directory / "columns", other / "columns")
    with pytest.raises(DataError, match="another dataset"):
        read_column(other, "bytes")


def test_a_threshold_opens_no_shard(dataset):
    directory, _ = dataset
    score_dataset(directory, Bytes())
    before = list(select(directory, "bytes>=0.5"))
    curve = yield_curve(directory, "bytes")
    shutil.rmtree(directory / "shards")
    assert list(select(directory, "bytes>=0.5")) == before
    assert yield_curve(directory, "bytes") == curve


def test_a_threshold_excludes_images_of_documents_and_samples_elsewhere(dataset):
    directory, _ = dataset
    score_dataset(directory, Bytes())
    rows = read_column(directory, "bytes").to_pylist()
    found = list(select(directory, "bytes >= 0.5"))
    assert {(e.id, e.media_id) for e in found} == {(r["id"], r["media_id"]) for r in rows if r["value"] < 0.5}
    assert {e.reason for e in found} == {"bytes < 0.5"}
    exact = rows[0]["value"]
    kept = {(e.id, e.media_id) for e in select(directory, f"bytes>{exact!r}")}
    assert (rows[0]["id"], rows[0]["media_id"]) in kept
    assert (rows[0]["id"], rows[0]["media_id"]) not in {
        (e.id, e.media_id) for e in select(directory, f"bytes>={exact!r}")
    }


def test_the_yield_curve_says_what_the_view_then_shows(dataset):
    directory, _ = dataset
    score_dataset(directory, Bytes())
    curve = yield_curve(directory, "bytes", points=7)
    assert [y.threshold for y in curve] == sorted(y.threshold for y in curve)
    assert (curve[0].samples, curve[0].images) == (37, sum(len(s.media) for s in samples(directory)))
    for point in curve:
        exclude(directory, "filter", [], {})
        exclude(directory, "filter", select(directory, f"bytes>={point.threshold!r}"), {})
        shown = list(samples(directory))
        assert point.samples == len(shown)
        assert point.images == sum(b is not None for s in shown for b in s.image_bytes)
        assert point.text_chars == sum(len(x.text or "") for s in shown for x in s.segments)
        assert yield_curve(directory, "bytes", points=7, step="filter") == curve


def test_what_another_step_excluded_is_not_counted(dataset):
    directory, _ = dataset
    score_dataset(directory, Bytes())
    exclude(directory, "withdraw", [Exclusion("cap0", None, "gone"), Exclusion("doc2", "d2.0", "gone")], {})
    assert not View.open(directory, read_manifest(directory)).apply(_sample(directory, "cap0"))
    assert yield_curve(directory, "bytes", points=2)[0].samples == 36


def _sample(directory, key):
    whole = replace(read_manifest(directory), exclusions=())
    return next(s for s in samples(directory, manifest=whole) if s.id == key)


@pytest.mark.parametrize(
    "text", ["clip", "clip=1", "clip>=", "clip>=nan", "../x>=1", "clip>=0x1", "clip>=1;ls"]
)
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(ConfigError, match="expected COLUMN"):
        Rule.parse(text)


def test_text_scores_against_plain_counting(dataset):
    directory, _ = dataset
    score_dataset(directory, TextScorer())
    by_id = {s.id: s for s in samples(directory)}
    values = {r["id"]: r["value"] for r in read_column(directory, "text_words").to_pylist()}
    assert values == {k: len(s.text.split()) for k, s in by_id.items()}
    alpha = {r["id"]: r["value"] for r in read_column(directory, "text_alpha").to_pylist()}
    for key, s in by_id.items():
        with_letter = [w for w in s.text.split() if w.upper() != w.lower()]
        assert alpha[key] == pytest.approx(len(with_letter) / len(s.text.split()))


def test_caption_scores_speak_of_the_longest_caption(dataset):
    directory, _ = dataset
    score_dataset(directory, CaptionScorer())
    rows = read_column(directory, "caption_words").to_pylist()
    assert {r["id"] for r in rows} == {f"cap{n}" for n in range(17)}
    assert {(r["segment"], r["value"]) for r in rows} == {(2, 10.0)}


def test_a_plug_in_is_named_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "my_plugin.py").write_text(
        "class Mine:\n    name = 'mine'\n    version = '1'\n"
        "    columns = ('mine',)\n    reads_images = False\n"
        "    def __init__(self, argument=''):\n        self.argument = argument\n"
        "    def score(self, samples):\n        return []\n"
        "class NoScorer:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_scorer("my_plugin:Mine").argument == ""
    assert load_scorer("my_plugin:Mine:a:b").argument == "a:b"
    assert load_scorer("text").name == "text"
    for spec, error in {
        "my_plugin:NoScorer": ConfigError,
        "my_plugin:Absent": ConfigError,
        "my_plugin": ConfigError,
        "no_such_module:X": PreflightError,
        "text:argument": ConfigError,
    }.items():
        with pytest.raises(error):
            load_scorer(spec)
