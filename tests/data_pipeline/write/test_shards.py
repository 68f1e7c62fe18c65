"""What is written is what came in, in every format, and the libraries that own the formats read it."""

import dataclasses
import io
import json
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.write import shard as shard_module
from data_pipeline.build.write import shards as shards_module
from data_pipeline.build.write.shard import ShardWriter
from data_pipeline.manifest import sha256_file
from data_pipeline.sample import SCHEMA, SCHEMA_VERSION, Sample
from data_pipeline.view import samples

FORMATS = ("arrow", "webdataset", "parquet")


def write(directory, rows, formats=FORMATS):
    writer = ShardWriter(directory, "s-train-00000-000", "s", "train", formats)
    for sample in rows:
        writer.add(sample)
    return {s.format: s for s in writer.finish()}, writer.files


def noise(seed: int, side: int = 40) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((side, side), 40 + seed).convert("RGB").save(out, "JPEG", quality=83)
    return out.getvalue()


@pytest.fixture
def rows(make):
    return [
        *(
            dataclasses.replace(make.caption(n, noise(n)), id=f"{n:032x}", scores={"b": 0.5, "a": n / 4})
            for n in range(40)
        ),
        *(dataclasses.replace(make.document(n, pictures=n % 3), id=f"{n:032x}d") for n in range(40)),
    ]


def read_arrow(path):
    with pa.memory_map(str(path)) as f:
        return pa.ipc.open_file(f).read_all()


def test_every_format_holds_the_same_rows(tmp_path, rows):
    shards, _ = write(tmp_path, rows)
    arrow = read_arrow(tmp_path / shards["arrow"].path)
    parquet = pq.read_table(tmp_path / shards["parquet"].path)
    assert parquet.schema.names == SCHEMA.names
    assert parquet.schema.metadata == SCHEMA.metadata
    assert parquet.schema.equals(arrow.schema)
    assert parquet.to_pylist() == arrow.to_pylist()
    assert [Sample.from_row(r) for r in parquet.to_pylist()] == rows


def test_every_format_is_byte_identical_on_a_rerun(tmp_path, rows):
    first, first_files = write(tmp_path / "a", rows)
    again, again_files = write(tmp_path / "b", rows)
    assert {f: s.sha256 for f, s in first.items()} == {f: s.sha256 for f, s in again.items()}
    assert first_files == again_files
    assert list(first_files) == ["shards/s-train-00000-000.tar.idx"]
    assert first_files["shards/s-train-00000-000.tar.idx"] == sha256_file(
        tmp_path / "a/shards/s-train-00000-000.tar.idx"
    )


def test_parquet_leaves_image_bytes_alone_and_compresses_the_rest(tmp_path, rows):
    shards, _ = write(tmp_path, rows, ("parquet",))
    metadata = pq.ParquetFile(tmp_path / shards["parquet"].path).metadata
    assert metadata.metadata[b"fovea_schema_version"] == str(SCHEMA_VERSION).encode()
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        assert group.num_rows <= 64
        columns = {group.column(c).path_in_schema: group.column(c) for c in range(group.num_columns)}
        pixels = columns.pop("images.list.element.bytes")
        assert pixels.compression == "UNCOMPRESSED"
        assert pixels.statistics is None
        assert not {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(pixels.encodings)
        assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert metadata.num_row_groups == 2


def test_a_row_group_of_parquet_is_closed_by_bytes(tmp_path, make):
    picture = make.png() + b"\0" * 3_000_000  # what follows the image is kept as well
    big = [dataclasses.replace(make.caption(n, picture), id=str(n)) for n in range(7)]
    shards, _ = write(tmp_path, big, ("parquet",))
    metadata = pq.ParquetFile(tmp_path / shards["parquet"].path).metadata
    assert [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)] == [2, 2, 2, 1]


def test_a_batch_of_arrow_is_closed_by_bytes(tmp_path, make, monkeypatch):
    monkeypatch.setattr(shard_module, "BATCH_BYTES", 10_000)
    big = [dataclasses.replace(make.caption(n, make.png() + b"\0" * 4000), id=str(n)) for n in range(5)]
    shards, _ = write(tmp_path, big, ("arrow",))
    with pa.memory_map(str(tmp_path / shards["arrow"].path)) as f:
        reader = pa.ipc.open_file(f)
        assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("format", ["arrow", "parquet"])
def test_datasets_loads_every_column_as_it_was_written(tmp_path, rows, make, format):
    picture = make.caption(99, noise(99))
    (media,) = picture.media
    media = dataclasses.replace(media, phash=2**64 - 1, scores={"clip": 0.25}, source_ref={"path": "a.tar"})
    rows = [*rows, dataclasses.replace(picture, media=(media,))]
    shards, _ = write(tmp_path, rows)
    found = datasets.load_dataset(
        format,
        data_files=str(tmp_path / shards[format].path),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert found.column_names == SCHEMA.names
    assert found[:40]["scores"][3] == [{"key": "b", "value": 0.5}, {"key": "a", "value": 0.75}]
    assert found.to_list() == read_arrow(tmp_path / shards["arrow"].path).to_pylist()
    assert [Sample.from_row(r).text for r in found] == [s.text for s in rows]
    assert [Sample.from_row(r).image_bytes for r in found] == [s.image_bytes for s in rows]
    assert found[80]["media"][0]["scores"] == [{"key": "clip", "value": 0.25}]
    pictures = found.cast_column("images", datasets.List(datasets.Image()))[3]["images"]
    assert pictures[0].tobytes() == Image.open(io.BytesIO(rows[3].image_bytes[0])).tobytes()


def test_webdataset_reads_the_tar(tmp_path, rows):
    shards, _ = write(tmp_path, rows)
    found = list(
        webdataset.WebDataset(str(tmp_path / shards["webdataset"].path), shardshuffle=False).decode("pil")
    )
    assert [f["__key__"] for f in found] == [s.id for s in rows]
    assert [f["json"]["kind"] for f in found] == [s.kind for s in rows]
    assert found[3]["000.jpg"].size == (40, 40)


@pytest.mark.parametrize("name", ["a.b", "../../etc/passwd", "/abs", "x" * 200, "ä ö", "pipe:ls", ""])
def test_an_id_that_is_no_key_gets_one_and_stays_in_the_record(tmp_path, make, name):
    sample = dataclasses.replace(make.caption(1), id=name)
    shards, _ = write(tmp_path, [sample], ("webdataset",))
    with tarfile.open(tmp_path / shards["webdataset"].path) as tar:
        names = tar.getnames()
        assert all(n.split(".")[0].isalnum() and len(n) < 100 for n in names)
        assert json.loads(tar.extractfile(names[0]).read())["id"] == name
    (found,) = webdataset.WebDataset(str(tmp_path / shards["webdataset"].path), shardshuffle=False)
    assert found["000.png"] == sample.image_bytes[0]


def test_more_than_a_thousand_images_keep_their_order(tmp_path, make):
    many = make.document(1, paragraphs=1100, pictures=1100)
    shards, _ = write(tmp_path, [many])
    with tarfile.open(tmp_path / shards["webdataset"].path) as tar:
        data = [tar.extractfile(m).read() for m in tar.getmembers()[1:]]
    assert tuple(data) == many.image_bytes
    (found,) = webdataset.WebDataset(str(tmp_path / shards["webdataset"].path), shardshuffle=False)
    assert found["1099.png"] == many.image_bytes[1099]


def test_image_bytes_are_those_of_the_input_file(tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(6):
        # A comment and bytes after the end: whoever encodes again loses them.
        (tmp_path / f"in/{n}.jpg").write_bytes(noise(n) + b"after the end")
    records = [{"file": f"{n}.jpg", "caption": f"number {n}"} for n in range(6)]
    (tmp_path / "in/captions.json").write_text(json.dumps(records))
    build(tmp_path / "in", tmp_path / "out")
    found = {b for s in samples(tmp_path / "out") for b in s.image_bytes}
    assert found == {(tmp_path / f"in/{n}.jpg").read_bytes() for n in range(6)}


def recipe(**settings) -> BuildRecipe:
    sources = [{"name": "qa", "kind": "scenes", "style": "questions", "count": 20}]
    return BuildRecipe(name="t", tasks=1, heldout=0, sources=sources, **settings)


def test_a_shard_closes_by_count_or_by_bytes(tmp_path):
    by_count = build(recipe(shard_samples=15), tmp_path / "count")
    assert [s.samples for s in by_count.shards(format="arrow")] == [15, 15, 10]
    by_bytes = build(recipe(shard_bytes=1), tmp_path / "bytes")
    assert [s.samples for s in by_bytes.shards(format="arrow")] == [1] * 40


def test_a_sample_that_no_row_can_hold_is_dropped_and_counted(tmp_path, monkeypatch):
    sizes = [shard_module.sample_bytes(s) for s in _built(tmp_path / "all")]
    limit = sorted(sizes)[len(sizes) // 2]
    monkeypatch.setattr(shards_module, "MAX_SAMPLE_BYTES", limit)
    funnel = build(recipe(), tmp_path / "few").funnel["qa"]
    assert funnel.dropped == {"sample too large": sum(s > limit for s in sizes)}
    assert funnel.images_dropped == funnel.dropped
    assert funnel.balanced
    assert funnel.written == sum(s <= limit for s in sizes) > 0


def _built(directory):
    build(recipe(), directory)
    return list(samples(directory))
