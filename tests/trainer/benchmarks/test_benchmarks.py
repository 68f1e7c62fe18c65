"""`fovea eval --task` on a real checkpoint: every way of running it gives the same answers and scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from benchmark_runs import N, answers, page, run, written
from data_pipeline.errors import ConfigError, DataError, PreflightError
from idefics2_like import publish
from trainer.cli import main
from trainer.distributed import alone
from trainer.evaluation import store
from trainer.evaluation.comparison import open_results
from trainer.evaluation.files import load_lines
from trainer.evaluation.outcome import score_circular
from trainer.evaluation.task import Task, load_task, task_names
from trainer.subject import open_subject
from training import answering_until_held, leaving_nothing, ranks_of, start
from waiting import wait_for


@pytest.mark.parametrize("name", [n for n in task_names() if n != "scenes"])
def test_every_task_runs_to_a_score_with_an_interval_beside_its_blind_one(name, opened, data, tmp_path):
    (result,) = run(opened, data, tmp_path, page(name))
    assert result["status"] == "complete"
    assert result["n"] == N
    primary = result["primary"]
    low, high = result["interval_95"][primary]
    assert low <= high
    assert primary in result["blind"]
    assert primary in result["seen"]
    assert len(written(tmp_path, name)) == N
    assert json.loads((tmp_path / f"{name}.json").read_text())["scores"] == result["scores"]
    shown = json.loads((tmp_path / f"{name}.examples.json").read_text())
    assert all(e["image"].startswith("data:image/") for e in shown["best"])
    assert min(e["score"] for e in shown["best"]) >= max(e["score"] for e in shown["worst"])


def with_batch(opened, batch):
    return type(opened)(
        type(opened.subject)(**{**vars(opened.subject), "batch": batch}), opened.name, opened.digest, None
    )


def test_batch_size_changes_no_answer_and_no_score(opened, data, tmp_path):
    task = page("textvqa", shots=2)
    one, many = (run(with_batch(opened, b), data, tmp_path / str(b), task)[0] for b in (1, 12))
    assert answers(tmp_path / "1", "textvqa") == answers(tmp_path / "12", "textvqa")
    assert one["scores"] == many["scores"]
    assert one["interval_95"] == many["interval_95"]


def test_the_order_of_the_file_changes_no_answer_and_no_score(opened, data, tmp_path):
    task = page("docvqa")
    before = run(opened, data, tmp_path / "a", task)[0]
    turned = tmp_path / "turned"
    shutil.copytree(data / "docvqa", turned / "docvqa")
    path = turned / "docvqa/val_v1.0_withQT.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({"data": held["data"][::-1]}))
    after = run(opened, turned, tmp_path / "b", task)[0]
    assert answers(tmp_path / "a", "docvqa") == answers(tmp_path / "b", "docvqa")
    assert [r["id"] for r in written(tmp_path / "a", "docvqa")] == [
        r["id"] for r in written(tmp_path / "b", "docvqa")
    ]
    assert before["interval_95"] == after["interval_95"]


def test_a_restart_answers_only_what_is_missing_and_ends_in_the_same_score(opened, data, tmp_path):
    task = page("okvqa")
    whole = run(opened, data, tmp_path, task)[0]
    expected = answers(tmp_path, "okvqa")
    kept = tmp_path / "okvqa.answers/rank_0.jsonl"
    lines = kept.read_text("utf-8").splitlines(keepends=True)
    assert len(lines) == N
    # Killed while the sixth line was being written, on a rank that this run does not have.
    torn = "".join(lines[:5]) + lines[5][: len(lines[5]) // 2]
    (tmp_path / "okvqa.answers/rank_3.jsonl").write_text(torn, "utf-8")
    kept.unlink()
    again = run(opened, data, tmp_path, task)[0]
    assert len(kept.read_text("utf-8").splitlines()) == N - 5
    assert answers(tmp_path, "okvqa") == expected
    assert again == whole


def test_an_answer_may_hold_what_elsewhere_separates_lines(tmp_path):
    record = {"id": "1", "raw": "one\u2028two\x85three"}
    with store.opened(alone(), tmp_path, {}) as kept:
        kept.append([record])
        assert kept.read() == {"1": record}
    assert load_lines(tmp_path / "rank_0.jsonl") == [record]


@pytest.mark.parametrize("change", ["prompt", "checkpoint", "file", "seed"])
def test_what_the_answers_depend_on_begins_anew(change, opened, data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data / "vizwiz", root / "vizwiz")
    run(opened, root, tmp_path, page("vizwiz"))
    kept = tmp_path / "vizwiz.answers/rank_0.jsonl"
    marked = [{**json.loads(line), "raw": "kept"} for line in kept.read_text("utf-8").splitlines()]
    kept.write_text("".join(json.dumps(r) + "\n" for r in marked), "utf-8")
    run(opened, root, tmp_path, page("vizwiz"))
    assert {r["raw"] for r in written(tmp_path, "vizwiz")} == {"kept"}
    task, subject, seed = page("vizwiz"), opened, 0
    match change:
        case "prompt":
            task = page("vizwiz", prompt="{question} Say it.")
        case "checkpoint":
            subject = type(opened)(opened.subject, opened.name, "another", None)
        case "file":
            path = root / "vizwiz/val.json"
            path.write_text(path.read_text().replace("What is it?", "What is that?"))
        case _:
            seed = 1
    run(subject, root, tmp_path, task, seed=seed)
    assert "kept" not in {r["raw"] for r in written(tmp_path, "vizwiz")}


def test_a_limit_is_named_in_the_result_and_more_samples_go_on_from_it(opened, data, tmp_path):
    few = run(opened, data, tmp_path, page("vqa_rad"), limit=5)[0]
    assert (few["status"], few["n"], few["of"]) == ("limited", 5, N)
    first = answers(tmp_path, "vqa_rad")
    run(opened, data, tmp_path, page("vqa_rad"))
    kept = (tmp_path / "vqa_rad.answers/rank_0.jsonl").read_text("utf-8").splitlines()
    assert len(kept) == N
    whole = answers(tmp_path, "vqa_rad")
    assert {i: whole[i]["raw"] for i in first} == {i: r["raw"] for i, r in first.items()}


def test_one_sample_that_cannot_be_answered_makes_the_result_incomplete(opened, data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data / "textvqa", root / "textvqa")
    broken = root / "textvqa/train_images/val0002.jpg"
    held = broken.read_bytes()
    broken.write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "textvqa.examples.json").write_text("{}")  # of an earlier result
    result = run(opened, root, tmp_path, page("textvqa"))[0]
    assert result["status"] == "incomplete"
    assert result["scores"] is None
    assert "interval_95" not in result
    assert not (tmp_path / "textvqa.jsonl").exists()
    assert not (tmp_path / "textvqa.examples.json").exists()
    assert {m["id"] for m in result["missing"]} >= {"4", "5"}
    assert "broken image" in result["missing"][0]["why"] or "not an image" in result["missing"][0]["why"]
    with pytest.raises(DataError, match="incomplete"):
        open_results(tmp_path / "textvqa.json")
    broken.write_bytes(held)
    assert run(opened, root, tmp_path, page("textvqa"))[0]["status"] == "complete"


def test_files_with_another_number_of_samples_than_the_release_are_refused(opened, data, tmp_path):
    with pytest.raises(DataError, match=r"the files have 12 samples, the release has 5,000"):
        run(opened, data, tmp_path, load_task("textvqa"))
    assert run(opened, data, tmp_path, load_task("textvqa"), limit=3)[0]["status"] == "limited"


def test_blind_is_the_same_question_with_another_picture(opened, data, tmp_path):
    """Likelihoods tell pictures apart also where a small model writes the same to all."""
    result = run(opened, data, tmp_path, page("imagenet"))[0]
    rows = written(tmp_path, "imagenet")
    own = {json.dumps(r["scores"]) for r in rows}
    assert len(own) == N
    for r in rows:
        assert r["blind_scores"] != r["scores"]
        assert json.dumps(r["blind_scores"]) in own
    assert result["primary"] == "top1"


def test_ranked_samples_show_the_text_that_ranks_first_beside_the_right_one(opened, data, tmp_path):
    run(opened, data, tmp_path, page("imagenet"), page("coco_retrieval", n=N))
    lines = (data / "imagenet/LOC_synset_mapping.txt").read_text().splitlines()
    labels = [line.split(" ", 1)[1].split(",")[0] for line in lines]
    for r in written(tmp_path, "imagenet"):
        for scores, said in (("scores", r["answer"]), ("blind_scores", r["blind_answer"])):
            assert said == labels[r[scores].index(max(r[scores]))]
        assert r["labels"] == [labels[int(r["truths"][0])]]
        assert r["score"] == (r["answer"] == r["labels"][0])
    captions = [t for r in written(tmp_path, "coco_retrieval") for t in r["truths"][:5]]
    for r in written(tmp_path, "coco_retrieval"):
        assert r["answer"] == captions[r["scores"].index(max(r["scores"]))]
    for name, truths in (("imagenet", labels), ("coco_retrieval", captions)):
        shown = json.loads((tmp_path / f"{name}.examples.json").read_text())
        for e in [*shown["best"], *shown["worst"]]:
            assert {e["answer"], e["blind_answer"], *e["truth"][:5]} <= set(truths)


def test_the_likelihood_of_a_text_is_that_of_the_model_alone_on_it(opened, data, tmp_path):
    """Padded batches against one caption at a time: the naive twin."""
    run(with_batch(opened, 5), data, tmp_path / "a", page("coco_retrieval"), limit=3)
    run(with_batch(opened, 1), data, tmp_path / "b", page("coco_retrieval"), limit=3)
    a, b = (written(tmp_path / d, "coco_retrieval") for d in "ab")
    assert len(a[0]["scores"]) == 15
    for x, y in zip(a, b, strict=True):
        assert x["scores"] == pytest.approx(y["scores"], abs=1e-3)


def test_a_label_of_several_wordings_has_the_mean_of_what_each_scores_alone(opened, data, tmp_path):
    wordings = ("a photo of a {question}.", "a drawing of a {question}.", "{question}")
    apart = [page("imagenet", prompt=wording) for wording in wordings]
    together = page("imagenet", prompt=wordings[0], ensemble=wordings[1:])
    for n, task in enumerate((*apart, together)):
        run(opened, data, tmp_path / str(n), task, limit=2)
    *each, mean = ([r["scores"] for r in written(tmp_path / str(n), "imagenet")] for n in range(4))
    assert mean == pytest.approx(np.mean(each, axis=0), abs=1e-3)
    assert not np.allclose(each[0], each[1])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ensemble": ("a photo",)}, "stands nowhere in 'a photo'"),
        ({"metric": "retrieval"}, "labels of a class"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(keys, said):
    page = load_task("imagenet").model_dump() | {"ensemble": ("{question}!",)} | keys
    with pytest.raises(ValidationError, match=said):
        Task.model_validate(page)


def test_turned_questions_are_right_where_all_their_turns_are():
    scored = score_circular([True, True, True, False, False], ["a", "a", "b", "b", "c"])
    assert scored.values == {"circular": pytest.approx(1 / 3), "accuracy": 0.6, "questions": 3}


@pytest.fixture(scope="module")
def own_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("pages")
    found = {}
    for name in ("vqav2", "pope", "coco_captions"):
        found[name] = directory / f"{name}.yaml"
        found[name].write_text(json.dumps(page(name).model_dump(mode="json")))
    return found


def test_ranks_change_no_answer_and_no_score_and_each_sample_has_one(
    fovea, trained, data, own_pages, tmp_path
):
    words = ["eval", trained / "instruct", "--data", data, "--batch", 4]
    words += [w for p in own_pages.values() for w in ("--task", p)]
    for ranks in (1, 2):
        done = fovea(*words, "--nproc", ranks, "--out", tmp_path / str(ranks))
        assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    for name in own_pages:
        assert answers(tmp_path / "1", name) == answers(tmp_path / "2", name)
        one, two = (json.loads((tmp_path / d / f"{name}.json").read_text()) for d in "12")
        assert one == two
        parts = [
            p.read_text("utf-8").splitlines() for p in (tmp_path / "2").glob(f"{name}.answers/rank_*.jsonl")
        ]
        assert sorted(map(len, parts)) == [N // 2, N // 2]
        assert len({json.loads(line)["id"] for part in parts for line in part}) == N


def test_results_of_a_run_lie_beside_its_checkpoints(trained, data, own_pages):
    words = ["eval", trained / "align", "--data", data, "--task", own_pages["pope"], "--limit", 3]
    assert main([str(w) for w in words]) == 0
    found = trained / "align/eval/step_000012/pope.json"
    assert json.loads(found.read_text())["checkpoint"]["name"] == "small/align/step_000012"


def test_an_exported_directory_gives_the_answers_of_its_checkpoint(fovea, trained, opened, data, tmp_path):
    done = fovea("export", trained / "instruct", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    other = open_subject(alone(), tmp_path / "exported", 4)
    a = run(opened, data, tmp_path / "a", page("docvqa"))[0]
    b = run(other, data, tmp_path / "b", page("docvqa"))[0]
    assert answers(tmp_path / "a", "docvqa") == answers(tmp_path / "b", "docvqa")
    assert a["scores"] == b["scores"]
    with pytest.raises(ConfigError, match="--out"):
        run(other, data, None, page("docvqa"))


def test_a_directory_in_idefics2_s_layout_is_evaluated_as_it_is(data, tmp_path):
    opened = open_subject(alone(), publish(tmp_path / "published"), 4)
    result = run(opened, data, tmp_path / "out", page("vqa_rad", shots=1))[0]
    assert result["status"] == "complete"
    first = written(tmp_path / "out", "vqa_rad")[0]
    assert first["prompt"].count("User:") == 2
    assert first["prompt"].endswith("Assistant:")


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ConfigError, match="'llava'; allowed are"):
        open_subject(alone(), tmp_path, 4)


def test_a_file_in_place_of_the_directory_of_results_is_refused(opened, data, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: no directory .* \(File exists\): name another with --out"):
        run(opened, data, tmp_path / "out", page("docvqa"))


def test_a_second_evaluation_of_the_same_place_is_refused(opened, data, tmp_path):
    from fcntl import LOCK_EX, flock  # noqa: PLC0415

    (tmp_path / "pope.answers").mkdir()
    with (tmp_path / "pope.answers/lock").open("w") as f:
        flock(f, LOCK_EX)
        with pytest.raises(PreflightError, match="another evaluation writes there"):
            run(opened, data, tmp_path, page("pope"))


def test_the_demo_s_scenes_are_a_task(opened, trained, tmp_path):
    task = load_task("scenes", shots=1)
    result = run(opened, trained, tmp_path, task.model_copy(update={"max_new_tokens": 4}))[0]
    assert result["status"] == "complete"
    assert result["n"] >= 3


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(fovea, trained, data, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(json.dumps(page("textvqa", max_new_tokens=64, n=N).model_dump(mode="json")))
    words = ["eval", trained / "instruct", "--data", data, "--task", path, "--batch", 1, "--nproc", 2]
    done = fovea(*words, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    kept, room = tmp_path / "killed/textvqa.answers", tmp_path / "held"
    env = answering_until_held(room)
    with leaving_nothing(start(*words, "--out", tmp_path / "killed", env=env)) as process:
        wait_for((room / "answered").exists)
        ranks = list(ranks_of(process.pid).values())
        process.kill()
        process.wait()
        assert not psutil.wait_procs(ranks, timeout=300)[1]
    before = sum(len(p.read_text().splitlines()) for p in kept.glob("rank_*.jsonl"))
    assert 0 < before < N
    done = fovea(*words, "--out", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path / "killed", "textvqa") == answers(tmp_path / "whole", "textvqa")
