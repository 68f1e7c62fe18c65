"""Each reader on a document made by hand: order, roles, and what it refuses."""

import io
import json
import tarfile

import pyarrow as pa
import pytest
from PIL import Image

from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.scenes.documents import write_documents
from data_pipeline.errors import DataError
from data_pipeline.sample import Sample


def picture(path, colour="red", size=(40, 30), format=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format)
    return path


def built(root, out, heldout=0.0, bad="stop", **source):
    recipe = BuildRecipe(name="t", tasks=1, heldout=heldout, sources=[{"name": "s", **source}])
    manifest = build(recipe, out, root=root, bad_inputs=bad)
    samples = []
    for shard in manifest.shards(format="arrow"):
        with pa.memory_map(str(out / shard.path)) as f:
            samples += [(shard.split, Sample.from_row(r)) for r in pa.ipc.open_file(f).read_all().to_pylist()]
    return manifest, [s for _, s in samples], [split for split, _ in samples]


def shape(sample):
    """The sequence, short: texts as they are, images by the name of their file."""
    return [s.text if s.type == "text" else (s.type, s.media) for s in sample.segments]


def test_html_keeps_text_and_images_in_reading_order(tmp_path):
    picture(tmp_path / "in/img/a b.png", "red")
    picture(tmp_path / "in/img/b.jpg", "blue")
    (tmp_path / "in/x.html").write_text(
        "<html><head><title>no</title><style>p{}</style></head><body><nav>menu</nav>"
        "<p>one <b>bold</b> word</p>"
        "<div>two<img src='img/a%20b.png' alt='the  alt'>three<br>four</div><script>alert(1)</script>"
        "<table><tr><td>l</td><td>r</td></tr></table>"
        "<p><a href='#'><img src='img/b.jpg'></a>five &amp; six</p></body>"
    )
    _, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="html", path=".")
    assert [shape(s) for s in samples] == [
        ["one bold word", "two", ("image", 0), "three four", "l r", ("image", 1), "five & six"]
    ]
    assert [m.alt for m in samples[0].media] == ["the alt", None]
    assert [m.url for m in samples[0].media] == ["img/a b.png", "img/b.jpg"]
    assert [(m.mime, m.width, m.height) for m in samples[0].media] == [
        ("image/png", 40, 30),
        ("image/jpeg", 40, 30),
    ]


def test_html_is_cut_at_headings_at_size_and_at_the_number_of_images(tmp_path):
    for n in range(3):
        picture(tmp_path / f"in/{n}.png", (n, 0, 0))
    (tmp_path / "in/x.html").write_text(
        "<h1>Book</h1><h2>First</h2><p>" + "word " * 30 + "</p><h2>Second</h2>"
        "<p>see these</p><img src=0.png><img src=1.png><img src=2.png>"
    )
    _, samples, _ = built(
        tmp_path / "in", tmp_path / "out", kind="html", path=".", max_chars=100, max_images=2, min_chars=1
    )
    texts = [s.text for s in samples]
    assert texts[0] == "Book\nFirst"
    assert all(len(t) <= 110 for t in texts)
    assert [len(s.media) for s in samples if s.media] == [2, 1]
    assert any(t.startswith("Second\nsee these") for t in texts)
    assert " ".join(texts).count("word") == 30, "no text is lost and none comes twice"


def test_a_document_is_cut_where_the_split_changes_so_that_no_sample_mixes(tmp_path):
    for n in range(12):
        picture(tmp_path / f"in/{n}.png", (n * 20, 9, 9))
    (tmp_path / "in/x.html").write_text("".join(f"<p>text {n}</p><img src={n}.png>" for n in range(12)))
    manifest, samples, splits = built(tmp_path / "in", tmp_path / "out", heldout=0.5, kind="html", path=".")
    seen = {}
    for sample, split in zip(samples, splits, strict=True):
        for media in sample.media:
            assert seen.setdefault(media.media_id, split) == split
    assert len(seen) == 12
    assert set(seen.values()) == {"train", "heldout"}
    assert manifest.funnel["s"].dropped == {}


def test_images_that_are_remote_missing_or_outside_leave_the_page_with_a_note(tmp_path):
    picture(tmp_path / "secret.png")
    picture(tmp_path / "in/ok.png")
    (tmp_path / "in/x.html").write_text(
        "<p>a text that is long enough</p><img src='https://h/x.png'><img src=gone.png>"
        "<img src='../secret.png'><img src='%2e%2e/secret.png'><img src='file:///etc/passwd'>"
        "<img src=logo.svg><img src='data:image/png;base64,AA'><img src='//[bad'><img src=ok.png>"
    )
    (tmp_path / "in/link.png").symlink_to(tmp_path / "secret.png")
    _, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="html", path=".")
    (sample,) = samples
    assert [m.url for m in sample.media] == ["ok.png"]
    assert {(e["action"], e["reason"]) for e in sample.lineage} == {
        ("drop 3 image(s)", "remote image"),
        ("drop 1 image(s)", "embedded image"),
        ("drop 1 image(s)", "unsupported image format"),
        ("drop 1 image(s)", "missing image"),
        ("drop 2 image(s)", "path leaves the source"),
    }
    listed = (tmp_path / "out/dropped/00000.jsonl").read_text().splitlines()
    assert len(listed) == 8


def test_a_link_to_a_file_outside_is_not_followed(tmp_path):
    picture(tmp_path / "secret.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in/captions.json").write_text('[{"file": "link.png", "caption": "x"}]')
    with pytest.raises(DataError, match="outside the source's folder"):
        built(tmp_path / "in", tmp_path / "out", kind="captions", path="captions.json")


def test_html_in_latin_1_and_deeply_nested_is_read(tmp_path):
    (tmp_path / "in").mkdir()
    nested = "<div>" * 5000 + "tief" + "</div>" * 5000
    page = f"<html><meta charset=iso-8859-1><body><p>Gabriël und die schönen Bücher</p>{nested}"
    (tmp_path / "in/x.htm").write_bytes(page.encode("latin-1"))
    _, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="html", path="x.htm")
    assert samples[0].text.startswith("Gabriël und die schönen Bücher")
    assert "tief" in samples[0].text


def test_captions_become_one_sample_per_image_with_roles(tmp_path):
    picture(tmp_path / "in/images/a.jpg")
    picture(tmp_path / "in/b.png", "blue")
    (tmp_path / "in/captions.json").write_text(
        json.dumps(
            [
                {
                    "file_name": "a.jpg",
                    "captions": ["one", " two "],
                    "alt": "al",
                    "license": {"name": "L", "url": "u"},
                },
                {"image": "b.png", "caption": "three"},
            ]
        )
    )
    _, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="captions", path=".", license="S")
    assert [[(s.type, s.text, s.role) for s in x.segments] for x in samples] == [
        [
            ("image", None, None),
            ("text", "one", "recaption"),
            ("text", "two", "recaption"),
            ("text", "al", "alt"),
        ],
        [("image", None, None), ("text", "three", "recaption")],
    ]
    assert [s.license for s in samples] == ["L u", "S"]


def test_captions_in_the_format_of_coco_are_joined_with_their_images(tmp_path):
    picture(tmp_path / "in/images/a.jpg")
    page = {
        "images": [{"id": 9, "file_name": "a.jpg", "license": 4}],
        "annotations": [{"image_id": 9, "caption": "one"}, {"image_id": 9, "caption": "two"}],
        "licenses": [{"id": 4, "name": "BY", "url": "u"}],
    }
    (tmp_path / "in/captions_val2017.json").write_text(json.dumps(page))
    _, (sample,), _ = built(tmp_path / "in", tmp_path / "out", kind="captions", path=".")
    assert [s.text for s in sample.segments] == [None, "one", "two"]
    assert sample.license == "BY u"


def test_questions_become_turns_where_only_answers_carry_loss(tmp_path):
    picture(tmp_path / "in/a.jpg")
    records = [
        {"qid": 7, "image": "a.jpg", "question": "q?", "answer": 3, "question_type": "COUNT"},
        {"image": "a.jpg", "turns": [["q1", "a1"], {"question": "q2", "answer": "a2"}]},
    ]
    (tmp_path / "in/qa.jsonl").write_text("\n".join(map(json.dumps, records)))
    _, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="questions", path="qa.jsonl")
    assert [[(s.text, s.role, s.turn, s.loss) for s in x.segments] for x in samples] == [
        [(None, "user", 0, 0.0), ("q?", "user", 0, 0.0), ("3", "assistant", 0, 1.0)],
        [
            (None, "user", 0, 0.0),
            ("q1", "user", 0, 0.0),
            ("a1", "assistant", 0, 1.0),
            ("q2", "user", 1, 0.0),
            ("a2", "assistant", 1, 1.0),
        ],
    ]
    assert json.loads(samples[0].general_metadata) == {"qid": 7, "question_type": "COUNT"}


def test_an_interleaved_sequence_keeps_its_order_and_stores_a_repeated_image_once(tmp_path):
    picture(tmp_path / "in/images/a.png")
    sequence = [
        {"text": "t1"},
        {"image": "images/a.png", "alt": "al", "caption": "cap"},
        {"image": "images/a.png"},
    ]
    (tmp_path / "in/interleaved.jsonl").write_text(json.dumps({"title": "T", "sequence": sequence}) + "\n")
    _, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="interleaved", path="interleaved.jsonl")
    assert [shape(s) for s in samples] == [["T", "t1", ("image", 0), "cap", ("image", 0)]]
    assert [m.alt for m in samples[0].media] == ["al"]


def test_a_pdf_page_is_its_picture_then_its_text_then_a_break(tmp_path):
    write_documents(tmp_path / "in", pages=0, pdfs=2, seed=1)
    _, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="pdf", path="pdf", page_pixels=30_000)
    for sample in samples:
        assert [s.type for s in sample.segments][:2] == ["image", "text"]
        assert sample.segments[-1].type == "page_break"
        assert sample.text.startswith("a ")
        assert " at the " in sample.text
        x0, y0, x1, y1 = sample.segments[1].bbox
        assert 0 <= x0 < x1 <= 1
        assert 0.5 < y0 < y1 <= 1, "the text stands in the lower half of the page"
        assert sample.media[0].kind == "page"
        assert sample.media[0].width * sample.media[0].height <= 31_000


def test_small_and_elongated_images_are_filtered_and_counted(tmp_path):
    picture(tmp_path / "in/small.png", size=(8, 8))
    picture(tmp_path / "in/long.png", size=(400, 20))
    records = [{"file": f, "caption": "c"} for f in ("small.png", "long.png")]
    (tmp_path / "in/captions.json").write_text(json.dumps(records))
    manifest, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="captions", path=".")
    assert samples == []
    assert manifest.funnel["s"].dropped == {"image too small": 1, "image too elongated": 1}


def test_webdataset_library_reads_the_tar_and_the_tar_holds_the_same_bytes(tmp_path):
    wds = pytest.importorskip("webdataset")
    picture(tmp_path / "in/a.jpg")
    picture(tmp_path / "in/b.webp", "blue")
    records = [{"file": f, "caption": f"c {f}"} for f in ("a.jpg", "b.webp")]
    (tmp_path / "in/captions.json").write_text(json.dumps(records))
    manifest, samples, _ = built(tmp_path / "in", tmp_path / "out", kind="captions", path=".")
    (shard,) = manifest.shards(format="webdataset")
    read = list(wds.WebDataset(str(tmp_path / "out" / shard.path), shardshuffle=False))
    assert [r["__key__"] for r in read] == [s.id for s in samples]
    assert [r.get("000.jpg") or r.get("000.webp") for r in read] == [s.image_bytes[0] for s in samples]
    assert json.loads(read[0]["json"])["segments"][1]["text"] == "c a.jpg"
    data = (tmp_path / "out" / shard.path).read_bytes()
    offsets = (tmp_path / "out" / f"{shard.path}.idx").read_bytes()
    start = int.from_bytes(offsets[8:16], "little")
    assert (
        tarfile.TarInfo.frombuf(data[start : start + 512], "utf-8", "strict").name == f"{samples[1].id}.json"
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert all(m.mtime == m.uid == m.gid == 0 for m in tar)
