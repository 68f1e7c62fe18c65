"""Build, export, and build again from the export: every format gives back what it says that it keeps."""

import dataclasses
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from data_pipeline.build.exporters.export import export
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.score.columns import read_column, score_dataset
from data_pipeline.build.score.text import TextScorer
from data_pipeline.build.verify import verify
from data_pipeline.cli import main
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import read_manifest
from data_pipeline.sample import Media, Sample, Segment, content_id
from data_pipeline.view import Exclusion, exclude, samples

HELDOUT = 0.3


def picture(seed: int, kind: str = "JPEG") -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((64 + seed, 48)).save(out, kind)
    return out.getvalue()


def say(n: int, what: str = "paragraph") -> str:
    return f"This is {what} number {n}, it has \t odd  spaces, ünïcode 漢字 and <image> in it."


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Pages, captions and dialogues: texts and pictures in every order that a format may trip over."""
    root = tmp_path_factory.mktemp("round") / "in"
    (root / "images").mkdir(parents=True)
    for n in range(24):
        kind = ("JPEG", "PNG", "GIF", "WEBP")[n % 4]
        (root / f"images/{n}.{kind.lower()}").write_bytes(picture(n, kind))
    names = sorted((f"images/{p.name}" for p in (root / "images").iterdir()), key=lambda s: (len(s), s))
    orders = ["ti", "it", "tiit", "iti", "titit", "iit", "t", "ttit", "tii", "i"]
    with (root / "interleaved.jsonl").open("w") as f:
        for n, order in enumerate(orders):
            sequence = [
                {"text": say(10 * n + k)}
                if c == "t"
                else {"image": names[(n + 3 * k) % 12], "alt": f"alt {k}"}
                for k, c in enumerate(order)
            ]
            f.write(json.dumps({"sequence": sequence}) + "\n")
    with (root / "captions.jsonl").open("w") as f:
        for n in range(12):
            f.write(
                json.dumps({"image": names[12 + n], "caption": say(n, "caption"), "alt": f"an alt {n}"})
                + "\n"
            )
    with (root / "dialogs.jsonl").open("w") as f:
        for n in range(12):
            user = [{"type": "image", "image": names[n]}, {"type": "text", "text": f"What is {n}?\n"}]
            messages = [
                *([{"role": "system", "content": "be brief"}] if n % 4 == 3 else []),
                {"role": "user", "content": user if n % 3 else f"Without a picture, {n}?"},
                {"role": "assistant", "content": f"It is {n}."},
                {"role": "user", "content": f"And {n + 1}?"},
                {"role": "assistant", "content": f"\nThat is {n + 1}\n"},
            ]
            f.write(json.dumps({"messages": messages}) + "\n")
    page = {
        "name": "origin",
        "heldout": HELDOUT,
        "formats": ["arrow", "webdataset", "parquet"],
        "sources": [
            {"name": "docs", "kind": "interleaved", "path": "interleaved.jsonl"},
            {"name": "caps", "kind": "captions", "path": "captions.jsonl"},
            {"name": "chats", "kind": "questions", "path": "dialogs.jsonl"},
        ],
    }
    build(BuildRecipe.model_validate(page), root.parent / "data", root=root)
    return root.parent / "data"


def shown(sample: Sample) -> tuple:
    """Texts and image bytes, in order."""
    return tuple(sample.image_bytes[s.media] if s.type == "image" else s.text for s in sample.segments)


def spoken(sample: Sample) -> tuple:
    """The same with who says it when."""
    turns = [(s.role, s.turn) for s in sample.segments]
    return tuple(zip(turns, shown(sample), strict=True))


def bare(sample: Sample) -> tuple:
    return tuple((who, s.strip() if isinstance(s, str) else s) for who, s in spoken(sample))


def everything(sample: Sample) -> Sample:
    return dataclasses.replace(sample, source="", license=None)


def of(directory: Path, view, **which) -> Counter:
    """What is shown, with its split: that of a sample without a picture follows its text."""
    return Counter(
        (split, view(s)) for split in ("train", "heldout") for s in samples(directory, split=split, **which)
    )


def again(folder: Path, kind: str, out: Path, **options) -> Path:
    """A build over an export; every file in it must be read without a fault."""
    source = {"name": "back", "kind": kind, "path": str(folder), **options}
    page = {"name": "back", "heldout": HELDOUT, "bad_inputs": "stop", "sources": [source]}
    manifest = build(BuildRecipe.model_validate(page), out)
    assert all(f.dropped == {} and f.images_dropped == {} for f in manifest.funnel.values())
    verify(out)
    return out


def test_the_origin_has_both_splits_and_every_kind(built):
    kinds = Counter(s.kind for s in samples(built))
    assert kinds == {
        "interleaved": kinds["interleaved"],
        "text": kinds["text"],
        "caption": 12,
        "instruct": 12,
    }
    assert min(len(list(samples(built, split=s))) for s in ("train", "heldout")) > 5


@pytest.mark.parametrize("format", ["obelics", "mmc4"])
@pytest.mark.parametrize("source", ["docs", "caps"])
def test_documents_and_captions_come_back_in_their_splits(built, tmp_path, format, source):
    exported = export(built, tmp_path / "out", format, source=source)
    assert exported.left_out == {}
    back = again(tmp_path / "out", "interleaved", tmp_path / "back", min_chars=0)
    assert of(back, shown) == of(built, shown, source=source)


@pytest.mark.parametrize(
    ("format", "left_out"),
    [
        ("messages", {}),
        ("llava", {}),
        ("cauldron", {"an image inside the dialogue": 2, "instructions of the system": 1}),
    ],
)
def test_dialogues_come_back_with_roles_and_turns(built, tmp_path, format, left_out):
    exported = export(built, tmp_path / "out", format, source="chats")
    assert exported.left_out == left_out
    back = again(tmp_path / "out", "questions", tmp_path / "back")
    wanted = of(built, spoken, source="chats")
    if format == "llava":  # a line break beside the mark of an image belongs to the mark
        assert sum(of(back, spoken).values()) == 12
        assert of(back, bare) == of(built, bare, source="chats")
        return
    if left_out:
        wanted = Counter({k: n for k, n in wanted.items() if k[1][0][0][0] != "system"})
    assert of(back, spoken) == wanted


@pytest.mark.parametrize(
    ("format", "files"),
    [
        ("fovea", "*.arrow"),
        ("fovea", "*.tar"),
        ("fovea", "*.parquet"),
        ("webdataset", None),
        ("parquet", None),
    ],
)
@pytest.mark.parametrize("source", ["docs", "caps", "chats"])
def test_rows_of_our_own_come_back_whole(built, tmp_path, format, files, source):
    export(built, tmp_path / "out", format, source=source)
    if format == "fovea":
        assert verify(tmp_path / "out").samples == sum(1 for _ in samples(built, source=source))
    kind = {"docs": "interleaved", "caps": "captions", "chats": "questions"}[source]
    options = {"max_chars": 10**6, "max_images": 10**6, "min_chars": 0} if source == "docs" else {}
    back = again(tmp_path / "out", kind, tmp_path / "back", files=files, **options)
    if source == "docs":  # documents are cut once more, which gives their parts ids of their own
        assert of(back, shown) == of(built, shown, source=source)
        return
    found = {s.id: everything(s) for s in samples(back)}
    assert found == {s.id: everything(s) for s in samples(built, source=source)}


def test_a_copy_read_as_a_source_gives_each_sample_once(built, tmp_path):
    export(built, tmp_path / "out", "fovea", source="caps")
    back = again(tmp_path / "out", "captions", tmp_path / "back")
    assert of(back, shown) == of(built, shown, source="caps")


def test_what_a_dataset_leaves_out_does_not_come_back_by_reading_its_shards(built, tmp_path):
    export(built, tmp_path / "copy", "fovea", source="caps")
    first = next(samples(tmp_path / "copy"))
    exclude(tmp_path / "copy", "withdraw", [Exclusion(first.id, None, "opted out")], {})
    shard = next((tmp_path / "copy" / "shards").glob("*.arrow"))
    (tmp_path / "above").mkdir()
    shutil.copytree(tmp_path / "copy", tmp_path / "above" / "copy")
    for place in (tmp_path / "copy", shard.parent, shard, tmp_path / "above"):
        with pytest.raises(DataError, match="leaves out samples its shards still hold"):
            again(place, "captions", tmp_path / "back")
    export(tmp_path / "copy", tmp_path / "shown", "fovea")
    assert sum(of(again(tmp_path / "shown", "captions", tmp_path / "back"), shown).values()) == 11


def test_mint1t_keeps_the_order_and_every_pixel_for_other_readers(built, tmp_path):
    export(built, tmp_path / "out", "mint1t", source="docs")
    tars = sorted(str(p) for p in (tmp_path / "out").glob("*.tar"))
    found = Counter()
    for row in webdataset.WebDataset(tars, shardshuffle=False):
        page = json.loads(row["json"])
        tiff = Image.open(io.BytesIO(row["tiff"]), formats=("TIFF",)) if "tiff" in row else None
        sequence, n = [], 0
        for text, image in zip(page["texts"], page["images"], strict=True):
            assert (text is None) != (image is None)
            if image is not None:
                tiff.seek(n)
                n += 1
            sequence.append(text if image is None else tiff.convert("RGB").tobytes())
        found[tuple(sequence)] += 1
    pixels = {}
    for s in samples(built, source="docs"):
        for data in s.image_bytes:
            pixels[data] = Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert found == Counter(tuple(pixels.get(e, e) for e in shown(s)) for s in samples(built, source="docs"))


def test_our_reader_of_mint1t_counts_the_pictures_that_it_cannot_open(built, tmp_path):
    export(built, tmp_path / "out", "mint1t", source="docs")
    source = {"name": "back", "kind": "interleaved", "path": str(tmp_path / "out"), "min_chars": 0}
    page = {"name": "back", "heldout": HELDOUT, "bad_inputs": "drop", "sources": [source]}
    (funnel,) = build(BuildRecipe.model_validate(page), tmp_path / "back").funnel.values()
    shown_images = sum(x.type == "image" for s in samples(built, source="docs") for x in s.segments)
    assert funnel.balanced
    assert (funnel.images_read, funnel.images_dropped) == (shown_images, {"missing image": shown_images})


# ---- readers of others ----
@pytest.mark.parametrize(
    ("format", "source"),
    [("obelics", "docs"), ("cauldron", "chats"), ("messages", "chats"), ("parquet", "caps")],
)
def test_datasets_loads_the_tables_with_their_pictures(built, tmp_path, format, source):
    export(built, tmp_path / "out", format, source=source, split="train")
    files = [str(p) for p in sorted((tmp_path / "out").rglob("*.parquet"))]
    table = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    table = table.cast_column("images", datasets.List(datasets.Image()))
    kept = [
        s
        for s in samples(built, source=source, split="train")
        if format != "cauldron" or s.segments[0].role != "system"
    ]
    assert len(table) == len(kept) > 3
    for row, sample in zip(table, kept, strict=True):
        wanted = [Image.open(io.BytesIO(b)).size for b in shown(sample) if isinstance(b, bytes)]
        assert [i.size for i in row["images"] if i is not None] == wanted


@pytest.mark.parametrize("format", ["arrow", "parquet"])
def test_datasets_loads_the_shards_whole(built, tmp_path, format):
    """Texts, pictures and all that is known of them; and the scores can be asked for."""
    files = [str(built / s.path) for s in read_manifest(built).shards(format=format)]
    found = datasets.load_dataset(format, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [Sample.from_row(r) for r in found] == list(samples(built))
    plain = {e["value"] for r in found for m in r["media"] for e in m["scores"] if e["key"] == "uniform"}
    assert plain == {m.scores["uniform"] for s in samples(built) for m in s.media}
    pictures = found.cast_column("images", datasets.List(datasets.Image()))
    shapes = [[i.size for i in r["images"]] for r in pictures]
    assert shapes == [[(m.width, m.height) for m in s.media] for s in samples(built)]


def test_webdataset_reads_the_tars_and_pyarrow_the_tables(built, tmp_path):
    for format in ("webdataset", "parquet"):
        export(built, tmp_path / format, format)
    tars = sorted(str(p) for p in (tmp_path / "webdataset/shards").glob("*.tar"))
    found = {r["__key__"]: r for r in webdataset.WebDataset(tars, shardshuffle=False)}
    rows = {}
    for path in (tmp_path / "parquet/shards").glob("*.parquet"):
        rows |= {r["id"]: r for r in pq.read_table(path).to_pylist()}
    everyone = {s.id: s for s in samples(built)}
    assert found.keys() == rows.keys() == everyone.keys()
    for key, sample in everyone.items():
        members = [v for k, v in sorted(found[key].items()) if k.endswith((".jpg", ".png", ".webp", ".gif"))]
        assert members == [i["bytes"] for i in rows[key]["images"]] == list(sample.image_bytes)


# ---- pictures beyond the thousandth ----
def test_a_sample_of_more_than_a_thousand_pictures_keeps_their_order_in_a_tar(tmp_path, make):
    images = [make.png(1, 1, (n % 256, n // 256, 7)) for n in range(1010)]
    sample = Sample(
        id="many",
        kind="interleaved",
        source="docs",
        segments=tuple(Segment(type="image", media=n) for n in range(1010)),
        media=tuple(Media(media_id=content_id(b)) for b in images),
        image_bytes=tuple(images),
    )
    make.dataset(tmp_path / "data", [sample])
    export(tmp_path / "data", tmp_path / "out", "webdataset")
    source = {"name": "back", "kind": "interleaved", "path": "out", "max_images": 2000}
    page = {"name": "b", "heldout": 0, "images": {"min_side": 1}, "sources": [source]}
    build(BuildRecipe.model_validate(page), tmp_path / "back", root=tmp_path)
    (found,) = samples(tmp_path / "back")
    assert [content_id(b) for b in shown(found)] == [content_id(b) for b in images]


# ---- columns ----
def test_columns_bind_thresholds_to_the_shards_and_exports_honour_them(built, tmp_path, capsys):
    copy = tmp_path / "copy"
    export(built, copy, "fovea")
    scores = score_dataset(copy, TextScorer())
    column = sorted(scores)[0]
    values = {r["id"]: r["value"] for r in read_column(copy, column).to_pylist() if r["media_id"] is None}
    middle = sorted(values.values())[len(values) // 2]
    below = {i for i, v in values.items() if v < np.float32(middle)}
    before = {s.id for s in samples(copy)}
    assert 0 < len(below) < len(before)
    assert main(["data", "filter", str(copy), "--keep", f"{column}>={middle:.9g}"]) == 0
    assert {s.id for s in samples(copy)} == before - below
    # Exclusions come and go: the column is of the shards, and holds.
    some = min(before - below)
    exclude(copy, "withdraw", [Exclusion(some, None, "opted out")], {})
    assert len(read_column(copy, column)) == scores[column]
    left = before - below - {some}
    assert main(["data", "export", str(copy), "--to", "webdataset", "--out", str(tmp_path / "tars")]) == 0
    tars = sorted(str(p) for p in (tmp_path / "tars/shards").glob("*.tar"))
    assert {r["__key__"] for r in webdataset.WebDataset(tars, shardshuffle=False)} == left
    assert main(["data", "filter", str(copy), "--clear", column]) == 0
    assert {s.id for s in samples(copy)} == before - {some}
    verify(copy)
    # A copy without what is excluded has other shards: the column does not follow them.
    export(copy, tmp_path / "other", "fovea")
    with pytest.raises(ConfigError, match="has no column"):
        read_column(tmp_path / "other", column)
    capsys.readouterr()
