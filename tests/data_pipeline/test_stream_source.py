"""Shards are read as they were written, or refused by name."""

import pickle
import struct
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import sha256_file
from data_pipeline.sample import SCHEMA, Media
from data_pipeline.stream.chat import Variant, render
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source
from data_pipeline.view import Exclusion, exclude


def test_samples_come_back_whole_and_in_order(dataset, samples) -> None:
    directory, manifest = dataset
    for name in ("caps", "docs", "chats"):
        source = Source.open(directory, manifest, name)
        written = [s for s in samples if s.source == name]
        assert len(source) == len(written)
        assert [source[i] for i in range(len(source))] == written
        with pytest.raises(IndexError, match=f"source '{name}' has {len(written)} samples"):
            source[len(source)]


def test_the_view_without_pixels_renders_alike(dataset, samples, tokenizer) -> None:
    directory, manifest = dataset
    for name in ("caps", "docs", "chats"):
        source = Source.open(directory, manifest, name)
        for i, written in enumerate(s for s in samples if s.source == name):
            light = source.without_pixels(i)
            assert light.id == written.id
            ours, theirs = (render(s, tokenizer, 4, "answers", Variant(caption=1)) for s in (light, written))
            assert ours.input_ids.tolist() == theirs.input_ids.tolist()
            assert ours.loss.tolist() == theirs.loss.tolist()
            pictures = [source.picture(i, m) for m in range(len(written.media))]
            assert tuple(pictures) == written.image_bytes
            assert source.picture(i, 99) is None


def test_stream_layout_of_ipc_is_read_too(make, tmp_path, samples) -> None:
    path = tmp_path / "s.arrow"
    captions = samples[:7]
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, SCHEMA) as writer:
        for part in (captions[:3], captions[3:4], captions[4:]):
            writer.write_batch(pa.RecordBatch.from_pylist([s.to_row() for s in part], schema=SCHEMA))
    manifest = make.dataset(tmp_path, captions)
    (tmp_path / manifest.shards()[0].path).write_bytes(path.read_bytes())
    with pytest.raises(DataError):
        Source.open(tmp_path, manifest, "caps")
    source = Source.open(tmp_path, remade(tmp_path, manifest), "caps")
    assert [source[i] for i in (6, 0, 3, 2, 4)] == [captions[i] for i in (6, 0, 3, 2, 4)]


def test_a_light_sample_says_how_large_its_pictures_are(make, tmp_path) -> None:
    written = replace(make.document(0), media=(Media(media_id="m", width=640, height=480, error="gone"),))
    light = Source.open(tmp_path, make.dataset(tmp_path, [written]), "docs").without_pixels(0)
    assert [(m.media_id, m.width, m.height, m.error) for m in light.media] == [("m", 640, 480, "gone")]
    assert light.source == "docs"
    assert light.image_bytes == (None,)


def test_a_sample_says_where_it_stands_and_where_it_came_from(make, tmp_path) -> None:
    written = [replace(make.caption(n), url=f"https://example.org/{n}") for n in range(9)]
    source = Source.open(tmp_path, make.dataset(tmp_path, written), "caps")
    assert source.place(0) == ("shards/caps-00000.arrow", 0)
    assert source.place(8) == ("shards/caps-00007.arrow", 1)
    assert source.head(8) == ("cap8", "caps", "https://example.org/8")


def test_unknown_source_names_the_nearest_and_all(dataset) -> None:
    directory, manifest = dataset
    with pytest.raises(ConfigError) as e:
        Source.open(directory, manifest, "cap")
    assert "no source 'cap' in split 'train'; did you mean 'caps'?" in str(e.value)
    assert "caps (17), chats (9), docs (11)" in str(e.value)
    with pytest.raises(ConfigError, match=r"split 'heldout'\n  It has: nothing"):
        Source.open(directory, manifest, "caps", "heldout")


def remade(directory, manifest):
    """The manifest with the sizes and hashes that the files have now: their content is the fault, then."""
    shards = tuple(
        replace(s, nbytes=(directory / s.path).stat().st_size, sha256=sha256_file(directory / s.path))
        for s in manifest.shards()
    )
    return replace(manifest, tasks=(replace(manifest.tasks[0], shards=shards),))


def test_opening_reads_no_shard(dataset) -> None:
    directory, manifest = dataset
    path = directory / manifest.shards(source="docs")[-1].path
    path.write_bytes(bytes(path.stat().st_size))
    source = Source.open(directory, manifest, "docs")
    assert len(source) == 11
    assert source[0].id == "doc0"  # of another shard
    with pytest.raises(DataError, match=f"{path.name} was altered"):
        source[10]


@pytest.mark.parametrize("read", ["__getitem__", "without_pixels", "head"])
def test_a_flipped_byte_names_the_file_whatever_is_read_first(dataset, read: str) -> None:
    directory, manifest = dataset
    path = directory / manifest.shards(source="docs")[-1].path
    good = path.read_bytes()
    path.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
    source = Source.open(directory, manifest, "docs")
    for _ in range(2):  # a failed proof is not remembered as one that held
        with pytest.raises(DataError, match=f"{path.name} was altered"):
            getattr(source, read)(10)


def test_a_truncated_or_missing_shard_is_named_when_the_source_is_opened(dataset) -> None:
    directory, manifest = dataset
    path = directory / manifest.shards(source="docs")[-1].path
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{path.name} has [\d,]+ bytes.*truncated"):
        Source.open(directory, manifest, "docs")
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is missing"):
        Source.open(directory, manifest, "docs")
    Source.open(directory, manifest, "caps")


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"<html>not found</html>"])
def test_files_that_are_no_shard_are_refused(dataset, content: bytes) -> None:
    directory, manifest = dataset
    path = directory / manifest.shards(source="docs")[0].path
    path.write_bytes(content)
    source = Source.open(directory, remade(directory, manifest), "docs")
    with pytest.raises(DataError, match=path.name):
        source[0]


@pytest.mark.parametrize("layout", [pa.ipc.new_file, pa.ipc.new_stream])
def test_samples_of_another_schema_are_refused(dataset, samples, layout) -> None:
    directory, manifest = dataset
    shard = manifest.shards(source="docs")[0]
    rows = [s.to_row() for s in samples if s.source == "docs"][: shard.samples]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA).drop_columns(["lineage"])
    with pa.OSFile(str(directory / shard.path), "wb") as f, layout(f, batch.schema) as writer:
        writer.write_batch(batch)
    source = Source.open(directory, remade(directory, manifest), "docs")
    with pytest.raises(DataError, match="does not have the schema"):
        source[0]


def test_a_wrong_count_is_refused(make, dataset, samples) -> None:
    directory, manifest = dataset
    shard = manifest.shards(source="docs")[0]
    make.shard(directory / shard.path, [s for s in samples if s.source == "docs"][:3])
    source = Source.open(directory, remade(directory, manifest), "docs")
    with pytest.raises(DataError, match="holds 3 samples, the manifest says 7"):
        source[0]


@pytest.mark.parametrize("layout", [pa.ipc.new_file, pa.ipc.new_stream])
def test_a_buffer_whose_offsets_lie_is_refused_behind_a_good_digest(dataset, samples, layout) -> None:
    """Arrow follows offsets without a look: unproven, this ends the process and not only the sample."""
    directory, manifest = dataset
    path = directory / manifest.shards(source="caps")[0].path
    rows = [s.to_row() for s in samples if s.source == "caps"][:7]
    with pa.OSFile(str(path), "wb") as f, layout(f, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    ids = [row["id"] for row in rows][:3]
    good = path.read_bytes()
    at = good.index(struct.pack("<4i", 0, *accumulate(len(i) for i in ids)))
    path.write_bytes(good[:at] + struct.pack("<4i", 0, 1 << 30, 1 << 30, 1 << 30) + good[at + 16 :])
    source = Source.open(directory, remade(directory, manifest), "caps")
    with pytest.raises(DataError, match=path.name):
        source[0]


def test_a_row_that_is_no_sample_is_one_broken_sample(make, tmp_path) -> None:
    good = make.caption(1).to_row()
    bad = [
        {**good, "kind": "riddle"},
        {**good, "schema_version": 1},
        {**good, "segments": [{"type": "image", "media": 7}]},
        {**good, "media": []},
    ]
    manifest = make.dataset(tmp_path, [make.caption(n) for n in range(6)])
    path = tmp_path / manifest.shards()[0].path
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([good, *bad, good], schema=SCHEMA))
    source = Source.open(tmp_path, remade(tmp_path, manifest), "caps")
    assert source[0] == source[5] == make.caption(1)
    for i in range(1, 5):
        with pytest.raises(BrokenSample, match="row cannot be decoded: ValueError: sample cap1") as e:
            source[i]
        assert pickle.loads(pickle.dumps(e.value)).reason == e.value.reason == "row cannot be decoded"
        assert source.place(i) == (manifest.shards()[0].path, i)


def test_an_exclusion_hides_its_row_from_every_number(make, dataset, samples) -> None:
    directory, _ = dataset
    captions = [s for s in samples if s.source == "caps"]
    for gone in ({0}, {16}, {0, 1, 2, 6, 7, 8, 13}, {3, 4, 16, 15}, set(range(16))):
        found = [Exclusion(captions[i].id, None, "copy") for i in gone]
        source = Source.open(directory, exclude(directory, "dedup", found, {}), "caps")
        left = [i for i in range(17) if i not in gone]
        assert [source[i].id for i in range(len(source))] == [captions[i].id for i in left]
        assert [source.place(i)[1] for i in range(len(source))] == [i % 7 for i in left]


def test_how_many_are_left_is_known_without_a_shard(dataset, samples, tmp_path) -> None:
    directory, _ = dataset
    manifest = exclude(directory, "dedup", [Exclusion("cap3", None, "copy")], {})
    for shard in manifest.shards():
        path = directory / shard.path
        path.write_bytes(bytes(path.stat().st_size))
    assert len(Source.open(directory, manifest, "caps")) == 16


def test_hidden_rows_are_found_once_for_a_machine_and_travel_to_workers(dataset, tmp_path) -> None:
    directory, _ = dataset
    manifest = exclude(directory, "dedup", [Exclusion("cap3", None, "copy")], {})
    proofs = tmp_path / "proofs"
    first = Source.open(directory, manifest, "caps", shards=Shards(proofs))
    assert first[3].id == "cap4"
    [kept] = proofs.glob("hidden-*")
    for torn in (b"", kept.read_bytes()[:-9]):
        kept.write_bytes(torn)
        assert Source.open(directory, manifest, "caps", shards=Shards(proofs))[3].id == "cap4"
    np.save(kept, np.array([1, 2]))
    assert Source.open(directory, manifest, "caps", shards=Shards(proofs))[3].id == "cap4"
    copied = pickle.loads(pickle.dumps(Source.open(directory, manifest, "caps")))
    assert not copied._view.samples
    second = Source.open(directory, manifest, "caps", shards=Shards(proofs))
    for shard in manifest.shards():  # whoever read ids again would find nothing, and say so
        (directory / shard.path).write_bytes(b"")
    for source in (copied, second):
        assert source.place(3) == ("shards/caps-00000.arrow", 4)


def test_the_digest_is_of_what_the_source_shows(dataset) -> None:
    directory, manifest = dataset
    before = {name: Source.open(directory, manifest, name).digest for name in ("caps", "docs")}
    after = exclude(directory, "dedup", [Exclusion("doc2", "d2.1", "copy")], {})
    assert Source.open(directory, after, "caps").digest == before["caps"]
    assert Source.open(directory, after, "docs").digest != before["docs"]
    assert before["caps"] != before["docs"]


def test_exclusions_that_miscount_are_refused(dataset) -> None:
    directory, _ = dataset
    manifest = exclude(directory, "dedup", [Exclusion("cap3", None, "copy")], {})
    counts = {"caps": {"train": {"samples": 2, "images": 2, "text_chars": 9}}}
    wrong = replace(manifest, exclusions=(replace(manifest.exclusions[0], counts=counts),))
    with pytest.raises(DataError, match=r"1 samples of source 'caps'.*the manifest says 2"):
        Source.open(directory, wrong, "caps")[0]


def test_a_shard_outside_of_its_dataset_is_refused(dataset, tmp_path) -> None:
    directory, manifest = dataset
    shard = replace(manifest.shards(source="docs")[0], path="../docs-00000.arrow")
    evil = replace(manifest, tasks=(replace(manifest.tasks[0], shards=(shard,)),))
    with pytest.raises(DataError, match="lies outside"):
        Source.open(directory, evil, "docs")
