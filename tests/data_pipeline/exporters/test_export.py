"""Exports say what the dataset says: judged by the formats' own libraries and by our readers."""

import dataclasses
import io
import json
import tarfile

import datasets
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from data_pipeline.build.exporters.export import describe, export
from data_pipeline.build.exporters.mint1t import _put
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.row_reader import RowOptions, RowReader
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import read_manifest
from data_pipeline.sample import Segment
from data_pipeline.view import Exclusion, exclude, samples


@pytest.fixture
def documents(make):
    """A text before, between and after the pictures; pictures side by side; one that ends with a picture."""
    plain = [make.document(n, pictures=n % 3) for n in range(4)]
    d = make.document(9, pictures=2)
    i, t = [s for s in d.segments if s.type == "image"], [s for s in d.segments if s.type == "text"]
    media = tuple(
        dataclasses.replace(m, url=f"http://x.org/{k}.png", alt="an alt" if k else None)
        for k, m in enumerate(d.media)
    )
    order = [t[0], i[1], i[0], t[1], Segment(type="page_break"), i[1]]
    mixed = dataclasses.replace(
        d, id="mixed", segments=tuple(order), media=media, url="http://x.org/page", kind="pdf"
    )
    return [*plain, mixed]


@pytest.fixture
def dialogues(make):
    plain = [make.dialogue(n, turns=1 + n % 3) for n in range(4)]
    d = make.dialogue(7)
    later = dataclasses.replace(
        d,
        id="later",
        segments=(*d.segments[1:3], dataclasses.replace(d.segments[0], turn=1), *d.segments[3:]),
    )
    system = dataclasses.replace(
        d, id="system", segments=(Segment(type="text", text="be kind", role="system", turn=0), *d.segments)
    )
    mark = dataclasses.replace(
        d,
        id="mark",
        segments=(*d.segments[:1], dataclasses.replace(d.segments[1], text="<image>?"), *d.segments[2:]),
    )
    return [*plain, later, system, mark]


def sequence(sample):
    """Texts and image bytes in order: what every format of documents must keep."""
    return [
        sample.image_bytes[s.media] if s.type == "image" else s.text
        for s in sample.segments
        if s.type in ("text", "image")
    ]


def spoken(sample):
    found = []
    for s in sample.segments:
        found.append((s.role, s.turn, sample.image_bytes[s.media] if s.type == "image" else s.text))
    return found


def read_back(folder, kind, **options):
    reader = RowReader("docs", kind, None, Tree.at(folder), RowOptions(**options))
    items = [i for u in reader.units() for i in reader.read(u)]
    assert [i.fault for i in items if i.fault] == []
    return [i.sample for i in items]


@pytest.mark.parametrize("format", ["obelics", "mmc4"])
def test_documents_come_back_as_they_were(tmp_path, make, documents, format):
    make.dataset(tmp_path / "data", documents)
    exported = export(tmp_path / "data", tmp_path / "out", format)
    assert (exported.samples, exported.left_out) == (5, {})
    assert exported.images == sum(s.type == "image" for d in documents for s in d.segments)
    files = "train*.jsonl" if format == "mmc4" else "*.parquet"
    found = read_back(tmp_path / "out", "interleaved", layout=format, files=files)
    assert [sequence(s) for s in found] == [sequence(s) for s in documents]
    last = found[-1]
    assert last.url == "http://x.org/page"
    assert [m.url for m in last.media] == ["http://x.org/1.png", "http://x.org/0.png"]
    if format == "obelics":
        assert [m.alt for m in last.media] == ["an alt", None]
    # What was imported is exported to the same rows again, but for the ids that the import gave.
    make.dataset(tmp_path / "again", found)
    export(tmp_path / "again", tmp_path / "out2", format)
    back = read_back(tmp_path / "out2", "interleaved", layout=format, files=files)
    assert [sequence(s) for s in back] == [sequence(s) for s in documents]


@pytest.mark.parametrize(
    ("format", "left_out"),
    [
        ("messages", {}),
        ("llava", {"a text with <image> in it": 1}),
        ("cauldron", {"an image inside the dialogue": 2}),
    ],
)
def test_dialogues_come_back_as_they_were(tmp_path, make, dialogues, format, left_out):
    make.dataset(tmp_path / "data", dialogues)
    exported = export(tmp_path / "data", tmp_path / "out", format)
    assert exported.left_out == left_out
    assert exported.samples == len(dialogues) - sum(left_out.values())
    gone = {"llava": {"mark"}, "cauldron": {"later", "system"}}.get(format, set())
    found = read_back(tmp_path / "out", "questions", layout=format)
    assert [spoken(s) for s in found] == [spoken(s) for s in dialogues if s.id not in gone]


def test_what_a_format_cannot_say_is_counted_and_told(tmp_path, make, samples):
    make.dataset(tmp_path / "data", samples)
    exported = export(tmp_path / "data", tmp_path / "out", "llava")
    assert (exported.samples, exported.left_out) == (9, {"no dialogue": 28})
    assert describe(exported) == ["9 samples (9 train) with 9 images", "  left out, no dialogue: 28"]
    exported = export(tmp_path / "data", tmp_path / "out2", "obelics")
    assert (exported.samples, exported.left_out) == (28, {"a dialogue": 9})


def test_a_format_that_can_say_nothing_of_a_dataset_makes_no_export(tmp_path, make, dialogues):
    make.dataset(tmp_path / "d", dialogues)
    with pytest.raises(DataError, match=rf"'obelics' can say\n  left out, a dialogue: {len(dialogues)}"):
        export(tmp_path / "d", tmp_path / "out", "obelics")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_datasets_reads_the_tables(tmp_path, make, documents, dialogues):
    make.dataset(tmp_path / "data", [*documents, *dialogues])
    pictures = {s.id: [s.image_bytes[x.media] for x in s.segments if x.type == "image"] for s in documents}
    for format in ("obelics", "cauldron", "messages"):
        export(tmp_path / "data", tmp_path / format, format)
        table = datasets.load_dataset(
            "parquet",
            data_files=str(tmp_path / format / "train-00000.parquet"),
            split="train",
            cache_dir=str(tmp_path / "cache"),
        ).cast_column("images", datasets.List(datasets.Image()))
        row = table[len(documents) - 1 if format == "obelics" else 0]
        if format == "obelics":
            assert [t is None for t in row["texts"]] == [p is not None for p in row["images"]]
            shown = [p.tobytes() for p in row["images"] if p is not None]
            assert shown == [Image.open(io.BytesIO(b)).tobytes() for b in pictures["mixed"]]
            assert json.loads(row["metadata"])[1]["src"] == "http://x.org/1.png"
        else:
            assert row["images"][0].size == (24, 16)


def test_a_folder_of_llava_is_one_list_and_pictures_with_their_bytes(tmp_path, make, dialogues):
    make.dataset(tmp_path / "data", dialogues)
    export(tmp_path / "data", tmp_path / "out", "llava")
    entries = json.loads((tmp_path / "out/train-dialogues.json").read_text())
    assert entries[0]["conversations"][0] == {"from": "human", "value": "<image>\nwhat is 0 0?"}
    assert (tmp_path / "out" / entries[0]["image"]).read_bytes() == dialogues[0].image_bytes[0]
    assert len(list((tmp_path / "out/images").rglob("*.png"))) == 1, "equal pictures are stored once"


def test_mint1t_names_pages_from_0_as_the_published_files_do(tmp_path, make):
    d = make.document(5, paragraphs=2, pictures=2)
    d = dataclasses.replace(d, media=tuple(dataclasses.replace(m, page=n + 1) for n, m in enumerate(d.media)))
    make.dataset(tmp_path / "data", [d])
    export(tmp_path / "data", tmp_path / "out", "mint1t")
    (row,) = webdataset.WebDataset(str(tmp_path / "out/train-00000.tar"), shardshuffle=False)
    page = json.loads(row["json"])
    assert [i for i in page["images"] if i] == ["page_0_image_0", "page_1_image_1"]
    assert [(m["page"], m["xref"]) for m in page["image_metadata"]] == [(0, 0), (1, 1)]


def test_mint1t_keeps_every_pixel(tmp_path, make, documents):
    colours = make.png(20, 30, (1, 2, 3, 99), "RGBA")
    palette = io.BytesIO()
    Image.open(io.BytesIO(make.png(20, 30, (9, 8, 7)))).quantize(4).save(palette, "GIF")
    d = make.document(5, paragraphs=2, pictures=2)
    d = dataclasses.replace(d, id="modes", image_bytes=(colours, palette.getvalue()))
    make.dataset(tmp_path / "data", [*documents, d])
    exported = export(tmp_path / "data", tmp_path / "out", "mint1t")
    assert exported.left_out == {}
    found = list(webdataset.WebDataset(str(tmp_path / "out/train-00000.tar"), shardshuffle=False))
    assert len(found) == len(documents) + 1
    for row, sample in zip(found, [*documents, d], strict=True):
        page = json.loads(row["json"])
        wanted = sequence(sample)
        assert page["texts"] == [e if isinstance(e, str) else None for e in wanted]
        assert [i is None for i in page["images"]] == [isinstance(e, str) for e in wanted]
        pictures = [e for e in wanted if isinstance(e, bytes)]
        assert ("tiff" in row) == bool(pictures)
        if pictures:
            tiff = Image.open(io.BytesIO(row["tiff"]), formats=("TIFF",))
            assert tiff.n_frames == len(pictures)
            for n, data in enumerate(pictures):
                tiff.seek(n)
                image = Image.open(io.BytesIO(data))
                assert tiff.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_a_tar_in_writing_keeps_no_header_in_memory(tmp_path):
    with tarfile.open(tmp_path / "out.tar", "w") as tar:
        _put(tar, "a.json", b"{}")
        assert tar.getmembers() == []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    styles = ("questions", "alt", "text")
    sources = [{"name": s, "kind": "scenes", "style": s, "count": 12} for s in styles]
    build(BuildRecipe(name="t", tasks=2, heldout=0.3, sources=sources, shard_samples=7), root / "data")
    ids = [s.id for s in samples(root / "data", source="alt")]
    exclude(root / "data", "dedup", [Exclusion(i, None, "copy") for i in ids[:3]], {})
    exclude(root / "data", "withdraw", [Exclusion(i, None, "opted out") for i in ids[2:5]], {})
    return root / "data"


def test_a_copy_is_a_dataset_of_its_own_without_what_is_excluded(built, tmp_path):
    exported = export(built, tmp_path / "copy", "fovea")
    assert verify(tmp_path / "copy").samples == exported.samples == 24 + 12 + 12 - 5
    copy = read_manifest(tmp_path / "copy")
    assert copy.exclusions == ()
    assert copy.funnel["alt"].dropped == {"excluded: copy": 3, "excluded: opted out": 2}
    assert {s.format for s in copy.shards()} == {"arrow", "webdataset"}
    assert max(s.samples for s in copy.shards()) == 7
    for split in ("train", "heldout"):
        assert sorted(samples(tmp_path / "copy", split=split), key=lambda s: s.id) == sorted(
            samples(built, split=split), key=lambda s: s.id
        )
    for tar in (tmp_path / "copy/shards").glob("alt*.tar"):
        gone = {e.id for e in samples(built, source="alt")}
        with tarfile.open(tar) as t:
            assert {n.split(".")[0] for n in t.getnames()} <= gone


def test_a_copy_holds_nothing_of_an_excluded_image(tmp_path, make):
    document = make.document(3, pictures=2)
    media = tuple(dataclasses.replace(m, url=f"http://secret.org/{m.media_id}") for m in document.media)
    make.dataset(tmp_path / "data", [dataclasses.replace(document, media=media)])
    exclude(tmp_path / "data", "withdraw", [Exclusion(document.id, "d3.0", "opted out")], {})
    export(tmp_path / "data", tmp_path / "copy", "fovea")
    (found,) = samples(tmp_path / "copy")
    assert [m.media_id for m in found.media] == ["d3.1"]
    assert found.image_bytes == document.image_bytes[1:]
    assert [s.media for s in found.segments if s.type == "image"] == [0]
    assert all(b"secret.org/d3.0" not in f.read_bytes() for f in (tmp_path / "copy").rglob("*.arrow"))


def test_one_source_or_split_is_exported_alone_and_the_books_still_balance(built, tmp_path):
    exported = export(built, tmp_path / "copy", "fovea", source="questions", split="heldout")
    assert exported.samples == sum(1 for _ in samples(built, source="questions", split="heldout")) > 0
    assert verify(tmp_path / "copy").samples == exported.samples
    assert list(read_manifest(tmp_path / "copy").funnel) == ["questions"]
    with pytest.raises(ConfigError, match="did you mean 'questions'"):
        export(built, tmp_path / "x", "fovea", source="question")


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_shards_alone_are_read_by_other_tools(built, tmp_path, format):
    export(built, tmp_path / "out", format)
    if format == "parquet":
        ids = [i for p in (tmp_path / "out/shards").iterdir() for i in pq.read_table(p)["id"].to_pylist()]
    else:
        tars = sorted(str(p) for p in (tmp_path / "out/shards").glob("*.tar"))
        ids = [s["__key__"] for s in webdataset.WebDataset(tars, shardshuffle=False).decode("pil")]
    assert sorted(ids) == sorted(s.id for s in samples(built))


def test_an_export_is_the_same_on_every_run(built, tmp_path):
    for format in ("fovea", "obelics", "mmc4", "messages", "mint1t"):
        for name in ("a", "b"):
            export(built, tmp_path / name / format, format)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 20
    for f in files:
        assert (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes(), f


def test_an_export_goes_nowhere_where_something_is(built, tmp_path):
    (tmp_path / "out").mkdir()
    export(built, tmp_path / "out", "obelics")
    with pytest.raises(ConfigError, match="holds something already"):
        export(built, tmp_path / "out", "obelics")
    with pytest.raises(ConfigError, match="did you mean 'obelics'"):
        export(built, tmp_path / "new", "obelix")


def test_a_failed_export_leaves_nothing(tmp_path, make, documents):
    make.dataset(tmp_path / "data", documents, per_shard=2)
    last = sorted((tmp_path / "data/shards").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read"):
        export(tmp_path / "data", tmp_path / "out", "mmc4")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
