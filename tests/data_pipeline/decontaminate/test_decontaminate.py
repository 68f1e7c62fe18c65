"""A dataset with planted pieces of a benchmark: each is found, nothing else, and the page shows the pairs."""

import base64
import csv
import html.parser
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from data_pipeline.build.decontaminate.benchmark import Fault, Item, Picture, item_texts, read_benchmark
from data_pipeline.build.decontaminate.config import DecontaminateConfig
from data_pipeline.build.decontaminate.page import marked, page
from data_pipeline.build.decontaminate.search import decontaminate, step_name
from data_pipeline.build.images.phash import perceptual_hash
from data_pipeline.errors import ConfigError
from data_pipeline.view import exclude, samples

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrst"]


def words(seed: int, n: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(n))


QUESTION, ANSWER = words(1, 20), words(2, 4)
SHORT = ("Which of these boats is red?", "The second")


@pytest.fixture
def benchmark(tmp_path: Path, copies) -> Path:
    folder = tmp_path / "My Bench 2"
    (folder / "images").mkdir(parents=True)
    for n in (1, 2, 3):
        (folder / "images" / f"{n}.jpg").write_bytes(copies.encoded(copies.picture(n), 95))
    rows = [
        {"id": "q1", "image": "images/1.jpg", "question": QUESTION, "answer": ANSWER},
        {"id": "q2", "image": "images/2.jpg", "question": SHORT[0], "answer": SHORT[1]},
        {"id": "q3", "image": "images/3.jpg", "question": "Yes or no?", "answer": "no"},
        {"id": "q4", "question": words(30, 15), "answer": words(31, 15)},
    ]
    (folder / "qa.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def built(tmp_path: Path, copies) -> Path:
    image = {n: copies.picture(n) for n in (1, 2, 3, 11, 12, 13, 14)}
    docs = [
        copies.document("same", "clean", copies.encoded(image[1], 95)),
        copies.document(
            "near", "clean too", copies.encoded(image[11]), copies.encoded(image[2].resize((90, 70)), 60)
        ),
        copies.document("clean", words(5, 60), copies.encoded(image[12])),
        copies.document("leak", f"{words(6, 30)} {QUESTION.upper()}! {words(7, 30)}"),
        copies.document("part", f"{words(8, 9)} {' '.join(QUESTION.split()[:12])} {words(9, 9)}"),
    ]
    pairs = [
        copies.caption("mirrored", copies.encoded(ImageOps.mirror(image[3]), 80), "a text"),
        copies.caption("fine", copies.encoded(image[13]), "no"),
        copies.caption("asked", copies.encoded(image[14]), "which of these boats is RED -- the second."),
        copies.caption("longer", copies.encoded(copies.picture(15)), f"Look: {SHORT[0]} {SHORT[1]} one"),
    ]
    copies.dataset(tmp_path / "data", [("train", docs), ("heldout", pairs)])
    return tmp_path / "data"


def test_planted_pictures_and_texts_are_found_and_nothing_else(built, benchmark):
    report = decontaminate(built, benchmark, DecontaminateConfig())
    found = {
        (report.corpus.describe(h.image)[0], report.picture_names[h.picture], h.how) for h in report.images
    }
    assert found == {
        ("same", "images/1.jpg", "bytes"),
        ("near", "images/2.jpg", "perceptual hash"),
        ("mirrored", "images/3.jpg", "perceptual hash"),
    }
    texts = {(report.corpus.row(h.row, ("id",))["id"], report.item_list[h.item].name) for h in report.texts}
    assert texts == {("leak", "qa.json, row 1"), ("asked", "qa.json, row 2")}
    assert (report.pictures, report.items, report.too_short) == (3, 4, 1)
    assert report.exclusions == ()


@pytest.mark.parametrize(("size", "found"), [((34, 28), 0), ((170, 140), 1)])
def test_of_small_pictures_only_half_the_bits_may_differ(tmp_path, copies, size, found):
    first = copies.picture(1, size)
    others = (Image.blend(first, copies.picture(2, size), share / 100) for share in range(5, 50))
    other = next(o for o in others if 6 <= differing(first, o) <= 10)
    copies.dataset(tmp_path / "data", [("train", [copies.caption("a", copies.encoded(other), "text")])])
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "b.png").write_bytes(copies.encoded(first))
    assert len(decontaminate(tmp_path / "data", folder, DecontaminateConfig()).images) == found


def differing(a: Image.Image, b: Image.Image) -> int:
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


def test_what_is_found_is_left_out_only_where_asked_and_a_repeated_search_finds_the_same(built, benchmark):
    config = DecontaminateConfig(remove=True)
    report = decontaminate(built, benchmark, config)
    assert step_name(benchmark) == "decontaminate-my-bench-2"
    exclude(built, step_name(benchmark), report.exclusions, config.model_dump(mode="json"))
    seen = {s.id: s for s in samples(built)}
    assert set(seen) == {"same", "near", "clean", "part", "fine", "longer"}
    assert seen["same"].image_bytes == (None,)
    assert [b is None for b in seen["near"].image_bytes] == [False, True]
    again = decontaminate(built, benchmark, config)
    assert again.exclusions == report.exclusions


def test_eight_grams_find_what_thirteen_do_not(built, benchmark):
    config = DecontaminateConfig.model_validate({"images": None, "texts": {"ngram": 8}})
    report = decontaminate(built, benchmark, config)
    found = {report.corpus.row(h.row, ("id",))["id"]: h for h in report.texts}
    assert {"leak", "part"} <= set(found)
    assert found["part"].shared == 5  # of twelve words
    assert report.images == ()


def test_spans_are_the_shared_words_in_both_texts(built, benchmark):
    report = decontaminate(built, benchmark, DecontaminateConfig())
    hit = next(h for h in report.texts if h.shared)
    text = "\n".join(s["text"] for s in report.corpus.row(hit.row, ("segments",))["segments"] if s["text"])
    assert [text[a:b] for a, b in hit.spans] == [QUESTION.upper()]
    assert [report.item_list[hit.item].text[a:b] for a, b in hit.item_spans] == [QUESTION]


def with_texts(tmp_path: Path, copies, texts: list[str], rows: list[dict], **texts_config):
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    docs = [copies.document(f"d{n:02d}", t) for n, t in enumerate(texts)]
    copies.dataset(tmp_path / "data", [("train", docs)])
    config = DecontaminateConfig.model_validate({"images": None, "texts": texts_config})
    report = decontaminate(tmp_path / "data", folder, config)
    return {(report.corpus.row(h.row, ("id",))["id"], report.item_list[h.item].name) for h in report.texts}


def test_common_language_is_no_hit_but_a_whole_item_is_however_often_it_leaked(tmp_path, copies):
    licence = words(50, 14)
    partly = {"question": f"{licence} {words(51, 60)}"}
    leaked = {"question": words(52, 30)}
    texts = [f"{words(60 + n, 20)} {licence} {words(90 + n, 20)}" for n in range(12)]
    texts += [f"{words(120 + n, 5)} {leaked['question']}" for n in range(12)]
    found = with_texts(tmp_path, copies, texts, [partly, leaked])
    assert found == {(f"d{n:02d}", "rows.jsonl, row 2") for n in range(12, 24)}


def test_a_rare_quotation_is_a_hit_unless_more_is_required(tmp_path, copies):
    quotation = words(50, 14)
    rows = [{"question": f"{quotation} {words(51, 60)}"}]
    texts = [f"{words(60, 20)} {quotation} {words(90, 20)}"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert with_texts(tmp_path / "a", copies, texts, rows) == {("d00", "rows.jsonl, row 1")}
    assert with_texts(tmp_path / "b", copies, texts, rows, min_rare=3) == set()


def test_the_templates_of_the_benchmark_are_no_hits(tmp_path, copies):
    template = words(70, 16)
    rows = [{"question": f"{template} {words(71 + n, 20)}"} for n in range(8)]
    assert with_texts(tmp_path, copies, [f"{template} and so on"], rows) == set()


def test_words_are_compared_where_the_hashes_of_ngrams_agree(tmp_path, copies, monkeypatch):
    """All words hash to one value: the hashes of all n-grams agree, and no two texts are equal."""
    monkeypatch.setattr("data_pipeline.build.decontaminate.texts._word", len)
    rows = [{"question": " ".join(["lamp"] * 20)}]
    assert with_texts(tmp_path, copies, [" ".join(["tree"] * 20)], rows) == set()


def test_benchmarks_are_read_from_every_format(tmp_path, copies):
    data = copies.encoded(copies.picture(1), 90)
    pq.write_table(
        pa.table(
            {"question": ["one?"], "image": [{"bytes": data, "path": None}], "options": [["a b", "c d"]]}
        ),
        tmp_path / "a.parquet",
    )
    with (tmp_path / "b.tsv").open("w", newline="") as f:
        csv.writer(f, delimiter="\t").writerows(
            [["index", "Question", "image"], ["7", "two?", base64.b64encode(data).decode()]]
        )
    (tmp_path / "c.jsonl").write_text('{"captions": ["three", "four"]}\n{"x": {"y": ["five", 6]}}\n')
    (tmp_path / "d.json").write_text(
        '{"info": {}, "data": [{"query": "six", "answers": ["seven", "eight"]}]}'
    )
    (tmp_path / "e.json").write_text('{"k1": {"problem": "nine"}, "k2": {"problem": "ten"}}')
    (tmp_path / "f.webp").write_bytes(data)
    (tmp_path / "g.pkl").write_bytes(b"never opened")
    (tmp_path / "h.json").write_text("{broken")
    (tmp_path / "i.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "j.csv").symlink_to("/etc/passwd")
    found = list(read_benchmark(tmp_path, DecontaminateConfig()))
    assert [f.text for f in found if isinstance(f, Item)] == [
        "one?", "two?", "three", "four", "five", "six\nseven", "nine", "ten"
    ]  # fmt: skip
    pictures = [f for f in found if isinstance(f, Picture)]
    assert [p.name for p in pictures] == ["a.parquet, row 1, image 1", "b.tsv, row 1, image 1", "f.webp"]
    assert {p.data for p in pictures} == {data}
    assert [f.name for f in found if isinstance(f, Fault)] == ["h.json", "i.parquet"]
    small = DecontaminateConfig(max_bytes=20)
    assert all(isinstance(f, Fault) for f in read_benchmark(tmp_path, small) if f.name.startswith("d"))


def test_a_question_goes_with_its_first_answer_and_other_rows_give_all_they_say():
    config = DecontaminateConfig()
    assert item_texts({"QUESTION": "a?", "answers": [{"answer": "b"}, {"answer": "b"}]}, config) == ["a?\nb"]
    assert item_texts({"note": "c", "n": 3, "deep": [{"more": "d"}]}, config) == ["c\nd"]
    assert item_texts({"n": 3}, config) == []
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert item_texts({"question": deep}, config) == []


def test_broken_pictures_are_named_and_an_empty_benchmark_is_refused(built, tmp_path, copies):
    folder = tmp_path / "bench"
    folder.mkdir()
    with pytest.raises(ConfigError, match="nothing to look for"):
        decontaminate(built, folder, DecontaminateConfig())
    with pytest.raises(ConfigError, match="no benchmark"):
        decontaminate(built, folder / "absent", DecontaminateConfig())
    whole = copies.encoded(copies.picture(1), 90)
    (folder / "a.jpg").write_bytes(whole)
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 2])
    report = decontaminate(built, folder, DecontaminateConfig())
    assert [(f.name, f.detail) for f in report.faults] == [("b.jpg", "no picture that can be decoded")]


def test_an_embedding_finds_what_hashes_do_not(built, tmp_path, copies):
    """The embedding here counts colours: a heavy crop keeps most of them, and no hash."""
    folder = tmp_path / "bench"
    folder.mkdir()
    crop = copies.picture(12).crop((0, 0, 96, 80))
    (folder / "crop.png").write_bytes(copies.encoded(crop))

    def embed(images):
        return np.stack([np.histogramdd(np.asarray(i).reshape(-1, 3), bins=6)[0].ravel() for i in images])

    plain = decontaminate(built, folder, DecontaminateConfig())
    assert plain.images == ()
    config = DecontaminateConfig.model_validate({"images": {"embedding": 0.85}})
    report = decontaminate(built, folder, config, embed=embed)
    assert [(report.corpus.describe(h.image)[0], h.how) for h in report.images] == [("clean", "embedding")]


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.marks: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "mark":
            self.marks.append(data)


def test_the_page_shows_each_pair_and_runs_nothing(built, benchmark):
    odd = {"question": QUESTION, "answer": "<script>alert(1)</script>"}
    (benchmark / "odd.jsonl").write_text(json.dumps(odd))
    (benchmark / "<b>.jpg").write_bytes((benchmark / "images" / "1.jpg").read_bytes())
    report = decontaminate(built, benchmark, DecontaminateConfig())
    text = page(report)
    parser = _Tags()
    parser.feed(text)
    names = [t for t, _ in parser.tags]
    assert "script" not in names
    assert "b" not in names  # the file's name is shown, not obeyed
    csp = next(
        a["content"] for t, a in parser.tags if t == "meta" and "content" in a and "src" in a["content"]
    )
    assert csp == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    sources = [a["src"] for t, a in parser.tags if t == "img"]
    assert len(sources) == 2 * len(report.images)
    for uri in sources:
        Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))).verify()
    assert QUESTION in parser.marks
    assert QUESTION.upper() in parser.marks
    assert re.search(r"\d+ of 64 bits differ", text)
    few = decontaminate(built, benchmark, DecontaminateConfig(shown=1))
    assert page(few).count("<img") == 2


def test_text_far_from_the_marks_is_left_out():
    text = "a" * 500 + "HIT" + "b" * 900 + "HIT" + "c" * 500
    pieces = marked(text, [(500, 503), (1403, 1406)], around=10)
    assert pieces == [
        (f"… {'a' * 10}", False),
        ("HIT", True),
        (f"{'b' * 10} … {'b' * 10}", False),
        ("HIT", True),
        (f"{'c' * 10} …", False),
    ]
    assert marked("xHIT", [(1, 4)]) == [("x", False), ("HIT", True)]
