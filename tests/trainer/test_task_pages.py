"""Tasks as data: every page reads the layout of its release, and says which file is missing where."""

import json
import subprocess
from collections import Counter

import pytest

from data_pipeline.errors import ConfigError, DataError, PreflightError
from released import COLOURS, picture, release
from trainer.evaluation.asking import asked, blind_partners, dialogue, drawn_examples, in_order
from trainer.evaluation.layouts.read import read_task
from trainer.evaluation.question import picture_bytes
from trainer.evaluation.task import PAGES, Part, Task, check_files, load_task, located, task_names

N = 12
RELEASED = [n for n in task_names() if n != "scenes"]  # scenes is a dataset: benchmarks/test_benchmarks.py


def read(name, root, n=N, **changes):
    release(name, root, n)
    return read_task(load_task(name).model_copy(update=changes), root)[0]


def test_the_tasks_of_the_issue_are_there_and_each_page_bears_its_name():
    wanted = """coco_captions flickr30k_captions vqav2 okvqa textvqa vizwiz docvqa chartqa mmmu mathvista_mc
    mmbench pope pathvqa vqa_rad ai2d imagenet coco_retrieval scenes"""
    assert task_names() == sorted(wanted.split())
    assert all(load_task(name).name == name for name in task_names())


@pytest.mark.parametrize("name", RELEASED)
def test_a_release_is_read_whole_with_its_pictures(name, tmp_path):
    questions = read(name, tmp_path)
    assert len(questions) == N
    assert len({q.id for q in questions}) == N
    for q in questions:
        assert q.images
        assert q.truths
        assert q.unit
        assert all(picture_bytes(i).startswith((b"\x89PNG", b"\xff\xd8")) for i in q.images)


@pytest.mark.parametrize("name", RELEASED)
def test_a_release_has_examples_from_its_train_part_alone(name, tmp_path):
    if load_task(name).train is None:
        with pytest.raises(ConfigError, match="train"):
            load_task(name, shots=2)
        return
    release(name, tmp_path, N)
    task = load_task(name, shots=2)
    questions, examples = read_task(task, tmp_path)
    assert len(examples) >= N // 2
    if name == "pathvqa":  # places in files are ids here
        return
    assert not {q.id for q in questions} & {
        e.id for e in examples if name not in ("textvqa", "docvqa", "chartqa")
    }


@pytest.mark.parametrize("name", RELEASED)
def test_all_missing_files_are_named_at_once_with_their_places(name, tmp_path):
    task = load_task(name)
    with pytest.raises(PreflightError) as caught:
        read_task(task, tmp_path)
    for file in task.evaluated.files.values():
        assert str(tmp_path / file.path) in str(caught.value)


def test_missing_files_of_several_tasks_come_in_one_error(tmp_path):
    with pytest.raises(PreflightError, match=r"(?s)okvqa/mscoco_val.*pope/coco_pope_random"):
        check_files([load_task("okvqa"), load_task("pope")], tmp_path)


def test_missing_pictures_are_named(tmp_path):
    release("docvqa", tmp_path, N)
    for i in (1, 4):
        (tmp_path / f"docvqa/documents/val{i}.png").unlink()
    with pytest.raises(PreflightError, match=r"(?s)2 of its pictures.*val1\.png.*val4\.png"):
        read_task(load_task("docvqa"), tmp_path)


def test_a_file_that_is_not_the_one_of_the_checksum_is_refused(tmp_path):
    release("ai2d", tmp_path, N)
    page = load_task("ai2d").model_dump()
    page["evaluated"]["files"]["rows"]["sha256"] = "0" * 64
    with pytest.raises(DataError, match=r"(?s)test-\*\.parquet.*sha256"):
        read_task(Task.model_validate(page), tmp_path)


def test_several_files_have_the_sum_of_their_sums_as_coreutils_counts_it(tmp_path):
    (tmp_path / "rows").mkdir()
    for name in ("b", "a", "B", "a_1"):
        (tmp_path / "rows" / f"{name}.parquet").write_text(name)
    command = "LC_ALL=C; sha256sum rows/*.parquet | cut -d' ' -f1 | sha256sum"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    file = {"path": "rows/*.parquet", "sha256": done.stdout.split()[0]}
    part = Part.model_validate({"files": {"rows": file}})
    assert len(located(part, tmp_path)["rows"]) == 4
    (tmp_path / "rows/a.parquet").write_text("other")
    with pytest.raises(DataError, match=rf"(?s)rows/\*\.parquet: its sha256 is .*{file['sha256']}.*Put the"):
        located(part, tmp_path)


def test_a_folder_has_no_checksum(tmp_path):
    part = Part.model_validate({"files": {"images": {"path": ".", "sha256": "0" * 64}}})
    with pytest.raises(ConfigError, match="a folder has no sha256; leave it null"):
        located(part, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shots": 9}, "shots"),
        ({"promt": "x"}, "promt"),
        ({"metric": "cider"}, "metric"),
        ({"prompt": "What?"}, "question"),
        ({"evaluated": {"files": {"rows": {"path": "../x"}}}}, "below the data root"),
    ],
)
def test_a_wrong_page_is_refused_with_the_key(change, said, tmp_path):
    page = {**load_task("vqa_rad").model_dump(mode="json"), **change}
    (tmp_path / "own.yaml").write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_task(str(tmp_path / "own.yaml"))


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'okvqa'"):
        load_task("ok-vqa")


@pytest.mark.parametrize("name", task_names())
def test_a_checksum_that_is_not_known_is_null_and_the_page_says_why(name):
    files = load_task(name).evaluated.files.values()
    said = "# sha256: null" in (PAGES / f"{name}.yaml").read_text(encoding="utf-8")
    assert said == any(f.sha256 is None for f in files)


def test_what_the_layouts_say_of_a_question(tmp_path):
    vqa = {q.id: q for q in read("vqav2", tmp_path)}
    assert Counter(vqa["10"].truths) == {"green": 7, "blue": 3}
    assert vqa["10"].images[0].name == "COCO_val2014_000000000000.jpg"
    assert vqa["0"].unit == vqa["10"].unit != vqa["20"].unit
    maths = read("mathvista_mc", tmp_path)
    assert all(q.options[ord(q.truths[0]) - ord("A")] == q.id for q in maths)
    bench = {q.id: q for q in read("mmbench", tmp_path)}
    assert bench["1000003"].images == bench["3"].images == (picture(3),)
    assert bench["3"].options == ("box", "cup")
    assert bench["1000003"].unit == bench["3"].unit
    rad = {q.id: q for q in read("vqa_rad", tmp_path)}
    assert rad["3"].truths == ("3",)
    assert read("imagenet", tmp_path)[0].options == ("red box", "green box", "blue box")
    assert [q.truths[0] for q in read("pope", tmp_path)][:2] == ["yes", "no"]


def test_pictures_stand_where_the_question_names_them(tmp_path):
    first = next(q for q in read("mmmu", tmp_path) if q.id == "validation_Art_1")
    sample = dialogue(load_task("mmmu"), first, [])
    shown = [(s.type, s.text, s.media) for s in sample.segments]
    assert shown[:4] == [
        ("text", "Question: Which is", None),
        ("image", None, 0),
        ("text", ", and which", None),
        ("image", None, 1),
    ]
    assert sample.image_bytes == (picture(1), picture(0))
    assert shown[4][1].endswith("Choices:\nA. a red box\nB. the box's lid\nC. 3\nAnswer with the letter.")


def test_open_questions_and_hints_have_their_own_words(tmp_path):
    questions = {q.id: q for q in read("mmmu", tmp_path)}
    assert asked(load_task("mmmu"), questions["validation_Art_2"]).endswith("Give a very brief answer.")
    assert questions["validation_Art_2"].truths == ("24/7", "3.43")
    bench = {q.id: q for q in read("mmbench", tmp_path)}
    assert asked(load_task("mmbench"), bench["0"]).startswith(
        "Look close.\nQuestion: Which one, 0?\nChoices:\nA. box"
    )
    assert asked(load_task("mmbench"), bench["1"]).startswith("Question: Which one")


def test_what_a_question_says_is_no_placeholder(tmp_path):
    question = read("vqa_rad", tmp_path)[0]
    object.__setattr__(question, "text", "what is {choices}?")
    assert "{choices}" in asked(load_task("vqa_rad"), question)


def test_order_partners_and_examples_depend_on_ids_alone(tmp_path):
    release("vqav2", tmp_path, N)
    task = load_task("vqav2", shots=3)
    questions, examples = read_task(task, tmp_path)

    def drawn(qs, es):
        ordered = in_order(qs, 0)
        pairs = {q.id: p.id for q, p in zip(ordered, blind_partners(ordered), strict=True)}
        shown = {q.id: [e.id for e in drawn_examples(task, q, in_order(es, 0), 0)] for q in ordered}
        return [q.id for q in ordered], pairs, shown

    assert drawn(questions, examples) == drawn(questions[::-1], examples[::-1])
    ids, pairs, shown = drawn(questions, examples)
    assert sorted(ids) == sorted(q.id for q in questions)
    assert ids != [q.id for q in questions]
    units = {q.id: q.unit for q in questions}
    assert all(units[a] != units[b] for a, b in pairs.items())
    assert len({tuple(s) for s in shown.values()}) > 1
    assert all(len(set(s)) == 3 for s in shown.values())
    other = {q.id: [e.id for e in drawn_examples(task, q, in_order(examples, 0), 1)] for q in questions}
    assert other != shown


def test_examples_come_before_as_turns_with_the_answer_that_most_people_gave(tmp_path):
    release("okvqa", tmp_path, N)
    task = load_task("okvqa", shots=2)
    questions, examples = read_task(task, tmp_path)
    shown = drawn_examples(task, questions[0], in_order(examples, 0), 0)
    sample = dialogue(task, questions[0], shown)
    answers = [s.text for s in sample.segments if s.role == "assistant"]
    assert answers == [*(COLOURS[int(e.id) // 10 % 100 % 8] for e in shown), "?"]
    assert [s.type for s in sample.segments] == ["image", "text", "text"] * 3
    assert sample.image_bytes[2] == picture_bytes(questions[0].images[0])


def test_an_example_is_never_about_the_question_s_own_picture(tmp_path):
    release("vqa_rad", tmp_path, N)
    task = load_task("vqa_rad", shots=2)
    questions, _ = read_task(task, tmp_path)
    for q in questions:
        assert all(e.unit != q.unit for e in drawn_examples(task, q, in_order(questions, 0), 0))
    with pytest.raises(DataError, match="2 examples are wanted"):
        drawn_examples(task, questions[0], questions[:2], 0)


def test_a_release_with_an_id_twice_is_refused(tmp_path):
    release("docvqa", tmp_path, N)
    path = tmp_path / "docvqa/val_v1.0_withQT.json"
    page = json.loads(path.read_text())
    page["data"][3]["questionId"] = page["data"][5]["questionId"]
    path.write_text(json.dumps(page))
    with pytest.raises(DataError, match="id '5' occurs a second time"):
        read_task(load_task("docvqa"), tmp_path)
