"""What `fovea eval --hashes` writes is what decontamination reads: a benchmark's leaks are found by it."""

import json
from pathlib import Path

import pytest
from blake3 import blake3

from data_pipeline.build.decontaminate.config import DecontaminateConfig
from data_pipeline.build.decontaminate.search import decontaminate
from data_pipeline.errors import ConfigError
from released import release
from trainer.cli import main
from trainer.evaluation.hashes import write_hashes
from trainer.evaluation.layouts.read import read_task
from trainer.evaluation.task import load_task

N = 6


@pytest.fixture
def hashed(tmp_path: Path) -> Path:
    release("okvqa", tmp_path, N)
    path = tmp_path / "okvqa/OpenEnded_mscoco_val2014_questions.json"
    page = json.loads(path.read_text())
    page["questions"][4]["question"] = (
        "Which of the seven boats beside the old pier is painted in two colours?"
    )
    path.write_text(json.dumps(page))
    out = tmp_path / "hashes"
    assert main(["eval", "--hashes", "okvqa", "--data", str(tmp_path), "--out", str(out)]) == 0
    return out


def test_items_have_the_hash_that_a_dataset_s_images_have(hashed, tmp_path, copies):
    items = [json.loads(line) for line in (hashed / "items.jsonl").read_text().splitlines()]
    questions, _ = read_task(load_task("okvqa"), tmp_path)
    assert [i["id"] for i in items] == [q.id for q in questions]
    data = questions[0].images[0].read_bytes()
    sample = copies.caption("x", data, "text")
    assert items[0]["images"] == [sample.media[0].media_id]
    assert {p.stem for p in (hashed / "images").iterdir()} == {i for item in items for i in item["images"]}
    for p in (hashed / "images").iterdir():
        length = len(p.read_bytes()).to_bytes(8, "little")
        assert blake3(length + p.read_bytes()).hexdigest(length=16) == p.stem


def test_the_command_that_is_shown_next_runs(tmp_path, copies, capsys):
    release("okvqa", tmp_path, N)
    out = tmp_path / "hashes"
    assert main(["eval", "--hashes", "okvqa", "--data", str(tmp_path), "--out", str(out)]) == 0
    shown = capsys.readouterr().out.split("fovea ")[-1].split()
    copies.dataset(tmp_path / "dataset", [("train", [copies.document("one", "a page about nothing much")])])
    words = {"DATASET": str(tmp_path / "dataset"), "pairs.html": str(tmp_path / "pairs.html")}
    assert main([words.get(w, w) for w in shown]) == 0
    assert (tmp_path / "pairs.html").is_file()


def test_decontamination_finds_a_picture_in_another_size_and_a_question_in_a_document(
    hashed, tmp_path, copies
):
    questions, _ = read_task(load_task("okvqa"), tmp_path)
    # Two pictures of one make are too near to tell apart for a hash: leak one of another make.
    photo = copies.picture(7)
    questions[4].images[0].write_bytes(copies.encoded(photo, 95))
    assert main(["eval", "--hashes", "okvqa", "--data", str(tmp_path), "--out", str(tmp_path / "again")]) == 0
    docs = [
        copies.document("clean", "a page about nothing that anybody asked for in a benchmark",
                        copies.encoded(copies.picture(12))),
        copies.document("small", "a page with a copy", copies.encoded(photo.resize((90, 70)), 70)),
        copies.document("asks", f"They asked us: {questions[4].text} {questions[4].truths[0]}. Nobody knew."),
    ]  # fmt: skip
    copies.dataset(tmp_path / "data", [("train", docs)])
    report = decontaminate(tmp_path / "data", tmp_path / "again", DecontaminateConfig())
    assert report.faults == ()
    assert report.pictures == 3
    assert report.items == N
    assert {report.corpus.describe(h.image)[0] for h in report.images} == {"small"}
    assert {report.corpus.row(h.row, ("id",))["id"] for h in report.texts} == {"asks"}


def test_captions_and_choices_are_the_texts_that_a_page_would_say(tmp_path):
    for name in ("flickr30k_captions", "ai2d"):
        release(name, tmp_path, N)
        out = tmp_path / f"{name}.hashes"
        assert main(["eval", "--hashes", name, "--data", str(tmp_path), "--out", str(out)]) == 0
    captions = json.loads((tmp_path / "flickr30k_captions.hashes/items.jsonl").read_text().splitlines()[0])
    assert len(captions["captions"]) == 6
    choices = [json.loads(line) for line in (tmp_path / "ai2d.hashes/items.jsonl").read_text().splitlines()]
    assert [c["answers"] for c in choices] == [["sun"], ["moon"], ["sea"]] * 2


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    release("ai2d", tmp_path, N)
    questions, _ = read_task(load_task("ai2d"), tmp_path)
    with pytest.raises(ConfigError, match="not empty"):
        write_hashes(questions, tmp_path)
