"""Commit protocol and manifest: whole or not at all, and never another dataset's."""

import dataclasses
import json

import pytest

from data_pipeline.build.run import build
from data_pipeline.errors import DataError
from data_pipeline.manifest import (
    Funnel,
    Manifest,
    Shard,
    TaskRecord,
    check_shard,
    commit,
    read_manifest,
    sha256_file,
    write_manifest,
)
from data_pipeline.sample import SCHEMA_VERSION


def manifest_with(directory) -> Manifest:
    with commit(directory / "shards/a.arrow") as f:
        f.write(b"0123456789")
    shard = Shard(
        path="shards/a.arrow",
        format="arrow",
        split="train",
        source="s",
        nbytes=10,
        sha256=sha256_file(directory / "shards/a.arrow"),
        samples=1,
        images=0,
        text_chars=3,
    )
    task = TaskRecord(
        task=0, tasks=1, fingerprint="f", shards=(shard,), funnel={"s": Funnel(read=1, written=1)}
    )
    return Manifest(name="n", fingerprint="f", recipe={}, licences={"s": "CC0"}, unread=("x",), tasks=(task,))


def test_a_manifest_survives_the_disk(tmp_path):
    manifest = manifest_with(tmp_path)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest.sources() == {"s": 1}


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    (tmp_path / "f").write_bytes(b"old")

    def crash_in_mid_write():
        with commit(tmp_path / "f") as f:
            f.write(b"new")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash_in_mid_write()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]


def test_no_manifest_means_no_dataset_and_says_how_to_build(tmp_path):
    with pytest.raises(DataError, match="fovea data build"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"name": 1}', '{"schema_version": 99}'])
def test_a_damaged_manifest_is_an_error_of_data(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_damaged_manifest_is_mended_as_its_message_says(tmp_path, make):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(make.png())
    (tmp_path / "in/captions.jsonl").write_text('{"image": "a.png", "caption": "a red one"}')
    build(tmp_path / "in", tmp_path / "d")
    whole = (tmp_path / "d/manifest.json").read_bytes()
    (tmp_path / "d/manifest.json").write_text("{")
    with pytest.raises(DataError, match="delete it and repeat the build command, which keeps shards"):
        build(tmp_path / "in", tmp_path / "d")
    shards = {p: p.stat().st_mtime_ns for p in (tmp_path / "d/shards").iterdir()}
    (tmp_path / "d/manifest.json").unlink()
    build(tmp_path / "in", tmp_path / "d")
    assert (tmp_path / "d/manifest.json").read_bytes() == whole
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "d/shards").iterdir()} == shards


def test_a_dataset_of_another_schema_version_is_refused_and_says_what_to_do(tmp_path):
    write_manifest(tmp_path, dataclasses.replace(manifest_with(tmp_path), schema_version=SCHEMA_VERSION - 1))
    with pytest.raises(
        DataError,
        match=rf"version {SCHEMA_VERSION - 1}, this release reads {SCHEMA_VERSION}.*\n.*build it again",
    ):
        read_manifest(tmp_path)


def test_shards_that_are_gone_short_or_altered_are_told_apart(tmp_path):
    shard = manifest_with(tmp_path).shards()[0]
    check_shard(tmp_path, shard)
    file = tmp_path / shard.path
    file.write_bytes(b"012345678X")
    with pytest.raises(DataError, match="altered"):
        check_shard(tmp_path, shard)
    file.write_bytes(b"01234")
    with pytest.raises(DataError, match="truncated"):
        check_shard(tmp_path, shard)
    file.unlink()
    with pytest.raises(DataError, match="missing"):
        check_shard(tmp_path, shard)


def test_the_digest_follows_the_content_and_nothing_else(tmp_path):
    manifest = manifest_with(tmp_path)
    renamed = dataclasses.replace(manifest, name="other", unread=())
    assert renamed.digest == manifest.digest
    raw = json.loads(json.dumps(dataclasses.asdict(manifest)))
    shard = Shard(**{**raw["tasks"][0]["shards"][0], "sha256": "0"})
    altered = dataclasses.replace(manifest, tasks=(dataclasses.replace(manifest.tasks[0], shards=(shard,)),))
    assert altered.digest != manifest.digest


def test_funnels_add_up():
    total = Funnel(read=3, written=2, dropped={"a": 1}) + Funnel(read=2, written=0, dropped={"a": 1, "b": 1})
    assert total == Funnel(read=5, written=2, dropped={"a": 2, "b": 1})
    assert total.balanced
    assert not Funnel(read=2, written=1).balanced
