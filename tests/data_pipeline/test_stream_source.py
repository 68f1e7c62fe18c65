"""Shards are read as they were written, or refused by name."""

from dataclasses import replace

import pyarrow as pa
import pytest

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import sha256_file
from data_pipeline.sample import SCHEMA
from data_pipeline.stream.chat import Variant, render
from data_pipeline.stream.source import Source


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
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([samples[0].to_row()], schema=SCHEMA))
    manifest = make.dataset(tmp_path, [samples[0]])
    shard = manifest.shards()[0]
    (tmp_path / shard.path).write_bytes(path.read_bytes())
    with pytest.raises(DataError):
        Source.open(tmp_path, manifest, "caps")
    manifest = remade(tmp_path, manifest)
    assert Source.open(tmp_path, manifest, "caps")[0] == samples[0]


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


def test_flipped_byte_and_truncation_name_the_file(dataset) -> None:
    directory, manifest = dataset
    path = directory / manifest.shards(source="docs")[-1].path
    good = path.read_bytes()
    path.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
    with pytest.raises(DataError, match=f"{path.name} was altered"):
        Source.open(directory, manifest, "docs")
    path.write_bytes(good[:-9])
    with pytest.raises(DataError, match=rf"{path.name} has [\d,]+ bytes.*truncated"):
        Source.open(directory, manifest, "docs")
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is missing"):
        Source.open(directory, manifest, "docs")
    Source.open(directory, manifest, "caps")


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"<html>not found</html>", None])
def test_files_that_are_no_shard_are_refused(dataset, content: bytes | None) -> None:
    directory, manifest = dataset
    path = directory / manifest.shards(source="docs")[0].path
    if content is None:  # a proper Arrow file of another schema
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, pa.schema([("id", pa.string())])) as w:
            w.write_batch(pa.record_batch({"id": ["a"]}))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        Source.open(directory, remade(directory, manifest), "docs")


def test_a_wrong_count_is_refused(make, dataset, samples) -> None:
    directory, manifest = dataset
    shard = manifest.shards(source="docs")[0]
    make.shard(directory / shard.path, [s for s in samples if s.source == "docs"][:3])
    with pytest.raises(DataError, match="holds 3 samples, the manifest says 7"):
        Source.open(directory, remade(directory, manifest), "docs")
