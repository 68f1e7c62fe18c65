"""Every format gives what was written, and other libraries read the same."""

import json
import re
import tarfile
from dataclasses import replace

import datasets
import pyarrow.parquet as pq
import pytest
import webdataset

from data_pipeline.errors import ConfigError
from data_pipeline.sample import Sample
from data_pipeline.stream.source import Source
from shards import FORMATS, PER_SHARD, SUFFIX, build, opened


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_what_was_written_from_every_place(root, written, format: str) -> None:
    source = opened(root, format)
    assert (source.format, len(source)) == (format, len(written))
    for i in reversed(range(len(written))):
        sample = written[i]
        assert source[i] == sample
        light = source.without_pixels(i)
        assert (light.id, light.kind, light.source) == (sample.id, sample.kind, "docs")
        assert [(s.type, s.text, s.media, s.role, s.turn, s.loss) for s in light.segments] == [
            (s.type, s.text, s.media, s.role, s.turn, s.loss) for s in sample.segments
        ]
        assert [(x.media_id, x.width, x.height, x.error) for x in light.media] == [
            (x.media_id, x.width, x.height, x.error) for x in sample.media
        ]
        assert light.image_bytes == (None,) * len(sample.media)
        pictures = tuple(source.picture(i, k) for k in range(len(sample.media)))
        assert pictures == sample.image_bytes
        assert source.picture(i, 99) is None
        assert source.head(i) == (sample.id, sample.source, sample.url)
        start = i // PER_SHARD * PER_SHARD
        assert source.place(i) == (f"shards/docs-train-{start:05d}.{SUFFIX[format]}", i - start)


def test_the_tar_library_and_tarfile_read_the_same_samples(built) -> None:
    directory, manifest = built
    source = opened(directory, "webdataset")
    tars = [str(directory / s.path) for s in manifest.shards(format="webdataset")]
    theirs = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(theirs) == len(source)
    for i, their in enumerate(theirs):
        sample = source[i]
        assert json.loads(their["json"])["id"] == sample.id
        pictures = [their[k] for k in sorted(their) if re.fullmatch(r"\d{3}\.\w+", k)]
        assert pictures == [b for b in sample.image_bytes if b]
    with tarfile.open(tars[1]) as tar:
        members = tar.getmembers()
        columns = [x for x in members if x.name.endswith(".json")]
        for row in (0, 7, 39):
            told = json.loads(tar.extractfile(columns[row]).read())
            assert told["segments"] == [vars(s) for s in source[PER_SHARD + row].segments]


def test_parquets_own_reader_and_datasets_read_the_same_samples(built) -> None:
    directory, manifest = built
    files = [str(directory / s.path) for s in manifest.shards(format="parquet")]
    source = opened(directory, "parquet")
    rows = [row for f in files for row in pq.read_table(f).to_pylist()]
    theirs = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(directory / "hf")
    )
    for i, row in enumerate(rows):
        assert source[i] == Sample.from_row(row)
        assert source[i].id == theirs[i]["id"]
        assert source[i].image_bytes == tuple(image["bytes"] for image in theirs[i]["images"])


def test_the_quickest_format_that_holds_all_is_taken_unless_one_is_named(built, server, tmp_path, written):
    directory, manifest = built
    assert opened(directory).format == "arrow"
    assert opened(server.url).format == "webdataset"  # a sample is one request there
    assert len({opened(directory, format).digest for format in FORMATS}) == 1
    partly = [s for s in manifest.shards() if s.format != "arrow" or "00000" in s.path]
    task = replace(manifest.tasks[0], shards=tuple(partly))
    assert Source.open(directory, replace(manifest, tasks=(task,)), "docs").format == "webdataset"
    only = build(tmp_path, written[:3], ("arrow",))
    with pytest.raises(ConfigError, match="as arrow, not as 'parquet'"):
        Source.open(tmp_path, only, "docs", format="parquet")
