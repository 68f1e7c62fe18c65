"""`fovea score`: what it prints, and every way in which a file can be wrong."""

import argparse
import json
import random
import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from trainer.evaluation import meteor as meteor_file
from trainer.evaluation.meteor import UNASKED, why_not
from trainer.evaluation.readers import READERS
from trainer.evaluation.score import add_parser, run, score

REFERENCE = Path(__file__).parents[3] / "shared" / "evalref" / "captioning" / "coco_fakecap126"

CAPTIONS = [{"image_id": 1, "caption": "A red cube."}, {"image_id": 2, "caption": "a blue ball"}]
CAPTION_REFERENCES = [*CAPTIONS, {"image_id": 2, "caption": "one ball"}]
ANSWERS = [{"question_id": 1, "answer": "red"}, {"question_id": 2, "answer": "2"}]
QUESTIONS = [
    {"question_id": 1, "answers": [{"answer": "red"}] * 10, "answer_type": "other", "question_type": "color"},
    {"question_id": 2, "answers": ["two"] * 2 + ["3"] * 8, "answer_type": "number", "question_type": "count"},
]
CHARTS = [{"imgname": "a.png", "query": "how many?", "label": "100"}] * 2
CHARTS.append({"imgname": "b.png", "query": "how many?", "label": "Red"})
CHOICE, SHORT = "multiple-choice", "short-answer"
POPE = [
    {"question_id": i, "image": f"{i // 2}.jpg", "text": f"Is there a {thing}?", "label": label}
    for i, (thing, label) in enumerate([("dog", "yes"), ("cat", "no"), ("bird", "yes"), ("cow", "no")])
]

# metric -> (predictions, references, what is printed beside the metric, n and intervals)
CASES = {
    "vqa": (
        ANSWERS,
        {"annotations": QUESTIONS},
        {
            "overall": 80.0,
            "per_answer_type": {"number": 60.0, "other": 100.0},
            "per_question_type": {"color": 100.0, "count": 60.0},
        },
    ),
    "vqa-lmms": (
        ANSWERS,
        {"annotations": QUESTIONS},
        {
            "overall": 80.0,
            "per_answer_type": {"number": 60.0, "other": 100.0},
            "per_question_type": {"color": 100.0, "count": 60.0},
        },
    ),
    "exact": (ANSWERS, {"annotations": QUESTIONS}, {"exact": 0.5, "folded": 0.5}),
    "contains": (ANSWERS, {"annotations": QUESTIONS}, {"contains": 0.5}),
    "anls": (
        [{"questionId": 1, "answer": "CocaCola"}, {"questionId": 2, "answer": "x"}],
        {"data": [{"questionId": 1, "answers": ["Coca Cola"]}, {"questionId": 2, "answers": ["y", "X"]}]},
        dict.fromkeys(("ANLS", "ANLS_st_vqa", "ANLS_paper"), 17 / 18),
    ),
    "relaxed": (
        [
            {"imgname": c["imgname"], "query": c["query"], "answer": a}
            for c, a in zip(CHARTS, ["104", "120", "red"], strict=True)
        ],
        CHARTS,
        {"relaxed": 2 / 3},
    ),
    "mmmu": (
        {"val_Art_1": "It is (B).", "val_Art_2": "no idea", "val_Math_1": "x = 4", "val_Math_2": "E"},
        {
            "val_Art_1": {"question_type": CHOICE, "ground_truth": "B"},
            "val_Art_2": {"question_type": CHOICE, "ground_truth": "A"},
            "val_Math_1": {"question_type": SHORT, "ground_truth": ["4", "four"]},
            "val_Math_2": {"question_type": CHOICE, "ground_truth": "E"},
        },
        {"accuracy": 0.75, "per_subject": {"Art": 0.5, "Math": 1.0}},
    ),
    "classification": (
        {"scores": [[0.1, 0.9], [0.2, 0.1], [0.5, 0.5]]},
        {"labels": [1, 1, 0]},
        {"top1": 2 / 3, "top5": 1.0},
    ),
    "retrieval": (
        {"text_by_image_scores": [[0.9, 0.1], [0.8, 0.3], [0.2, 0.4]]},
        {"text_to_image": [0, 1, 1]},
        {
            "image_retrieval_recall@1": 2 / 3,
            "image_retrieval_recall@5": 1.0,
            "image_retrieval_recall@10": 1.0,
            **{f"text_retrieval_recall@{k}": 1.0 for k in (1, 5, 10)},
            "texts": 3,
        },
    ),
    "perplexity": (
        [{"id": "b", "nats": 6.0}, {"id": "a", "nats": 0}],
        {"data": [{"id": "a", "source": "web", "tokens": 3}, {"id": "b", "source": "web", "tokens": 3}]},
        {
            "perplexity": pytest.approx(2.718281828459045),
            "per_source": {"web": pytest.approx(2.718281828459045)},
        },
    ),
}


@pytest.fixture
def write(tmp_path):
    def _write(predictions, references):
        paths = tmp_path / "predictions.json", tmp_path / "references.json"
        for path, page in zip(paths, (predictions, references), strict=True):
            path.write_text(page if isinstance(page, str) else json.dumps(page))
        return paths

    return _write


def lines(records) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def without_intervals(result):
    return {k: v for k, v in result.items() if k not in ("metric", "n", "interval_95", "units")}


# --- what is printed


@pytest.mark.parametrize("metric", CASES)
def test_a_metric_prints_its_values_n_and_an_interval(write, metric):
    predictions, references, values = CASES[metric]
    result = score(metric, *write(predictions, references))
    assert without_intervals(result) == {
        k: v if isinstance(v, dict) else pytest.approx(v) for k, v in values.items()
    }
    assert result["metric"] == metric
    assert (
        result["n"] == len(next(iter(predictions.values()))) if "scores" in predictions else result["n"] > 1
    )
    for name, (low, high) in result["interval_95"].items():
        found = result["per_source"]["web"] if "/" in name else result[name]
        assert low <= found + 1e-12
        assert found <= high + 1e-12


def test_every_metric_is_tested_here():
    assert set(READERS) == {*CASES, "captions", "pope"}


def test_captions_are_scored_in_the_benchmarks_units(write):
    scores = score("captions", *write(CAPTIONS, {"annotations": CAPTION_REFERENCES}))
    keys = ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"]
    assert list(scores) == ["metric", "n", *keys, "interval_95", "units"]
    assert list(scores["interval_95"]) == keys
    assert (scores["metric"], scores["n"]) == ("captions", 2)
    assert scores["ROUGE_L"] == pytest.approx(1)


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/evalref is not on this machine")
def test_raw_coco_captions_score_as_the_reference(write):
    texts = json.loads((REFERENCE / "input.json").read_text())
    predictions = [{"image_id": int(i), "caption": t["hyp"]} for i, t in texts.items()]
    annotations = [{"image_id": int(i), "caption": c} for i, t in texts.items() for c in t["refs"]]
    random.Random(0).shuffle(predictions)
    scores = score("captions", *write(predictions, {"annotations": annotations}))
    expected = json.loads((REFERENCE / "expected.json").read_text())["scores"]
    for name in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
        assert scores[name] == pytest.approx(expected[name], abs=1e-9)


def test_the_order_of_the_predictions_changes_nothing(write):
    for metric, (predictions, references, _) in CASES.items():
        one = score(metric, *write(predictions, references))
        if isinstance(predictions, list) and metric != "relaxed":
            assert score(metric, *write(predictions[::-1], references)) == one


def test_questions_about_one_picture_are_one_unit(write):
    questions = [{**q, "image_id": 7} for q in QUESTIONS] + [
        {**QUESTIONS[0], "question_id": 3, "image_id": 8}
    ]
    answers = [*ANSWERS, {"question_id": 3, "answer": "no"}]
    assert score("vqa", *write(answers, {"annotations": questions}))["units"] == 2
    # Of a single picture a bootstrap says nothing: then its questions are drawn.
    assert score("vqa", *write(answers[:2], {"annotations": questions[:2]}))["units"] == 2


def test_two_predictions_are_compared_on_the_same_samples(write, tmp_path, capsys):
    annotations = [{**QUESTIONS[0], "question_id": i} for i in range(50)]
    predictions, references = write(
        [{"question_id": i, "answer": "red"} for i in range(50)], {"annotations": annotations}
    )
    other = tmp_path / "other.json"
    other.write_text(
        json.dumps([{"question_id": i, "answer": "red" if i % 5 else "blue"} for i in range(50)])
    )
    result = verb("vqa", predictions, references, capsys, "--compare", str(other))
    assert (result["overall"], result["compared_with"]["overall"]) == (100.0, 80.0)
    difference = result["differences"]["overall"]
    assert difference["difference"] == pytest.approx(20)
    assert 5 < difference["interval_95"][0] < 20 < difference["interval_95"][1] < 35
    assert difference["p"] < 0.01


def verb(metric, predictions, references, capsys, *more):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    argv = ["score", metric, "--predictions", str(predictions), "--references", str(references), *more]
    args = parser.parse_args(argv)
    assert args.run_verb is run
    assert run(args) == 0
    return json.loads(capsys.readouterr().out)


def test_the_verb_prints_one_json_object(write, capsys):
    assert verb("vqa", *write(ANSWERS, {"annotations": QUESTIONS}), capsys)["overall"] == 80.0


# --- METEOR


def test_meteor_says_why_it_is_left_out(write, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    result = verb("captions", *write(CAPTIONS, {"annotations": CAPTION_REFERENCES}), capsys)
    assert result["left_out"] == {"METEOR": "there is no java on the PATH"}
    assert "METEOR" not in result
    monkeypatch.setattr(shutil, "which", lambda _: "java")
    monkeypatch.setattr(meteor_file, "_jar", lambda: None)
    assert "pycocoevalcap is not installed" in why_not(1)
    monkeypatch.setattr(meteor_file, "_jar", lambda: Path("meteor.jar"))
    assert why_not(UNASKED) is None
    assert "--meteor" in why_not(UNASKED + 1)
    assert why_not(UNASKED + 1, asked=True) is None


@pytest.mark.parametrize("program", ["exit 3", "cat > /dev/null & sleep 0.3"])
def test_a_program_that_fails_costs_meteor_and_nothing_else(write, capsys, tmp_path, monkeypatch, program):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{program}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(meteor_file, "_jar", lambda: Path("meteor.jar"))
    # More than a pipe holds: the program is gone before all of it is written.
    long = {"image_id": 1, "caption": "a dog " * 20_000}
    files = write(CAPTIONS, {"annotations": [*CAPTION_REFERENCES, long]})
    result = verb("captions", *files, capsys)
    assert "ended early" in result["left_out"]["METEOR"]
    assert "CIDEr" in result
    with pytest.raises(DataError, match="ended early"):
        verb("captions", *files, capsys, "--meteor")


@pytest.mark.slow
@pytest.mark.skipif(
    why_not(1) is not None or not REFERENCE.exists(), reason="needs java, pycocoevalcap, evalref"
)
def test_meteor_equals_the_reference(write, capsys):
    texts = json.loads((REFERENCE / "input.json").read_text())
    predictions = [{"image_id": int(i), "caption": t["hyp"]} for i, t in texts.items()]
    annotations = [{"image_id": int(i), "caption": c} for i, t in texts.items() for c in t["refs"]]
    result = verb("captions", *write(predictions, {"annotations": annotations}), capsys)
    expected = json.loads((REFERENCE / "expected.json").read_text())["scores"]
    assert result["METEOR"] == pytest.approx(expected["METEOR"], abs=1e-12)


# --- POPE


def test_pope_answers_without_ids_keep_the_questions_order(write):
    said = [
        {"question": p["text"].lower(), "answer": a}
        for p, a in zip(POPE, ["Yes", "Yes.", "No", "no"], strict=True)
    ]
    result = score("pope", *write(lines(said), lines(POPE)))
    assert without_intervals(result) == {
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "F1": 0.5,
        "yes_ratio": 0.5,
    }
    assert (result["n"], result["units"]) == (4, 2)
    by_id = [
        {"question_id": p["question_id"], "answer": s["answer"]} for p, s in zip(POPE, said, strict=True)
    ]
    assert score("pope", *write(lines(by_id[::-1]), lines(POPE))) == result


@pytest.mark.parametrize(
    ("said", "truths", "says"),
    [
        ([{"question": "x", "answer": "yes"}] * 3, POPE, "3 answers without question_id for the 4 questions"),
        ([{"question": "x", "answer": "yes"}] * 4, POPE, "entry 0: answers 'x', but .* asks 'Is there a dog"),
        ([{"question_id": 0, "answer": "yes"}], POPE, "incomplete: 3 of 4 predictions are missing"),
        ([{"question_id": 0, "answer": "yes"}, {"answer": "no"}], POPE, "entry 1: no 'question_id'"),
        ([], POPE, "incomplete: 4 of 4"),
        ([{"question_id": 0, "answer": "yes"}], [{**POPE[0], "label": "Yes"}], 'label must be "yes" or "no"'),
        ([], [], "nothing to score against"),
    ],
)
def test_a_wrong_pope_file_is_named(write, said, truths, says):
    with pytest.raises(DataError, match=says):
        score("pope", *write(lines(said), lines(truths)))


def test_a_broken_line_is_named(write):
    with pytest.raises(DataError, match=r"predictions\.json: not JSON in line 2"):
        score("pope", *write('{"question_id": 0, "answer": "yes"}\n{"a"\n', lines(POPE)))


# --- wrong files


@pytest.mark.parametrize(
    ("predictions", "annotations", "says"),
    [
        ("[{", CAPTION_REFERENCES, "predictions.json: not JSON"),
        ('[{"image_id": NaN}]', CAPTION_REFERENCES, "not JSON: NaN is no number"),
        ({"a": 1}, CAPTION_REFERENCES, "predictions.json: expected a list .* found an object"),
        ([1], CAPTION_REFERENCES, "record 0: expected an object, found a number"),
        ([{"caption": "x"}], CAPTION_REFERENCES, "record 0: no 'image_id'; it has 'caption'"),
        ([{"image_id": 1}], CAPTION_REFERENCES, "record 0: no 'caption'; it has 'image_id'"),
        ([{"image_id": 1, "caption": None}], CAPTION_REFERENCES, "caption must be a string, found null"),
        (
            [{"image_id": 1.5, "caption": ""}],
            CAPTION_REFERENCES,
            "image_id must be a whole number or a string",
        ),
        ([*CAPTIONS, CAPTIONS[0]], CAPTION_REFERENCES, "record 2: image_id 1 occurs a second time"),
        (
            [*CAPTIONS, {"image_id": 9, "caption": ""}],
            CAPTION_REFERENCES,
            "1 of 3 predictions .* not have; image_id 9",
        ),
        (CAPTIONS[:1], CAPTION_REFERENCES, "incomplete: 1 of 2 predictions are missing; .* image_id 2"),
        ([], CAPTION_REFERENCES, "incomplete: 2 of 2 predictions are missing"),
        ([{**c, "image_id": str(c["image_id"])} for c in CAPTIONS], CAPTION_REFERENCES, "write both alike"),
        (CAPTIONS, [], "is empty"),
        (CAPTIONS, [{"image_id": 1}], "annotation 0: no 'caption'"),
    ],
)
def test_a_wrong_caption_file_is_named_with_its_record(write, predictions, annotations, says):
    with pytest.raises(DataError, match=says) as e:
        score("captions", *write(predictions, {"annotations": annotations}))
    assert e.value.exit_code == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answers": None}, "annotation 1: 'answers' must be a list of two or more .* found null"),
        ({"answers": ["red"]}, "found 1"),
        ({"answers": ["red", {"a": 1}]}, "annotation 1, answer 1: no 'answer'; it has 'a'"),
        ({"answer_type": 3}, "answer_type must be a string, found a number"),
        ({"question_id": 1}, "annotation 1: question_id 1 occurs a second time"),
    ],
)
def test_a_wrong_vqa_annotation_is_named_with_its_record(write, change, says):
    with pytest.raises(DataError, match=says):
        score("vqa", *write(ANSWERS, {"annotations": [QUESTIONS[0], {**QUESTIONS[1], **change}]}))


def pages(metric):
    return CASES[metric][:2]


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "says"),
    [
        ("captions", CAPTIONS, {"images": []}, "expected .* \"annotations\", found keys 'images'"),
        ("captions", CAPTIONS, CAPTIONS, '"annotations", found a list'),
        ("anls", pages("anls")[0], {"data": [{"questionId": 1, "answers": []}]}, "incomplete|ids that"),
        (
            "anls",
            [{"questionId": 1, "answer": "x"}],
            {"data": [{"questionId": 1, "answers": []}]},
            "one or more",
        ),
        ("anls", pages("anls")[0][:1], pages("anls")[1], "incomplete: 1 of 2 .* questionId 2"),
        ("exact", ANSWERS, {"annotations": QUESTIONS[:1]}, "1 of 2 predictions are for ids"),
        ("relaxed", pages("relaxed")[0][1:], CHARTS, "incomplete: 1 of 3 .*'a.png', 'how many\\?', 2"),
        ("relaxed", pages("relaxed")[0], [], "nothing to score against"),
        ("relaxed", pages("relaxed")[0], [{**CHARTS[0], "label": 100}], "label must be a string"),
        ("mmmu", [], {}, "expected an object with an entry a question, found a list"),
        ("mmmu", {}, {}, "nothing to score against"),
        ("mmmu", {}, pages("mmmu")[1], "incomplete: 4 of 4"),
        ("mmmu", {"a_b_1": 3}, {"a_b_1": {"question_type": CHOICE, "ground_truth": "A"}}, "must be a string"),
        ("mmmu", {"a_b_1": "A"}, {"a_b_1": {"ground_truth": "A"}}, "a_b_1: no 'question_type'"),
        ("mmmu", {"a_b_1": "A"}, {"a_b_1": {"question_type": CHOICE}}, "a_b_1: no 'ground_truth'"),
        ("mmmu", {"a_b_1": "A"}, {"a_b_1": {"question_type": CHOICE, "ground_truth": 1}}, "one or more"),
        (
            "mmmu",
            {"a_b_1": "A"},
            {"a_b_1": {"question_type": CHOICE, "ground_truth": "A", "index2ans": ["x"]}},
            "index2ans must be an object, found a list",
        ),
        ("classification", {"scores": []}, {"labels": [0]}, "at least one row"),
        (
            "classification",
            {"scores": [[1, 2], [1]]},
            {"labels": [0, 1]},
            "row 1: expected 2 numbers, found 1",
        ),
        ("classification", {"scores": [[1, "2"]]}, {"labels": [0]}, "expected numbers, found a string"),
        ("classification", '{"scores": [[NaN, 1]]}', {"labels": [0]}, "NaN is no number"),
        ("classification", '{"scores": [[1e999, 1]]}', {"labels": [0]}, "row 0: a number is beyond"),
        ("classification", {"scores": [[1, 2]]}, {"labels": [2]}, "entry 0: .* from 0 to 1, .* found 2"),
        ("classification", {"scores": [[1, 2]]}, {"labels": [True]}, "found true"),
        ("classification", {"scores": [[1, 2]]}, {"labels": []}, "at least one"),
        (
            "classification",
            {"scores": [[1, 2]]},
            {"labels": [0, 1]},
            "incomplete: 1 rows of scores for the 2",
        ),
        ("classification", {"scores": [[1, 2]] * 3}, {"labels": [0, 1]}, "too many: 3 rows"),
        (
            "retrieval",
            {"text_by_image_scores": [[1, 2]]},
            {"text_to_image": [0]},
            "1 of 2 images have no text",
        ),
        ("retrieval", {"text_by_image_scores": [[1]]}, {"text_to_image": [-1]}, "found -1"),
        ("retrieval", {"text_by_image_scores": [[1]]}, {"text_to_image": [0, 0]}, "incomplete"),
        ("perplexity", [{"id": "a", "nats": -1}], pages("perplexity")[1], "nats must be a number, 0 or more"),
        ("perplexity", [{"id": "a", "nats": 1}], pages("perplexity")[1], "incomplete: 1 of 2"),
        (
            "perplexity",
            [{"id": "a", "nats": 1}],
            {"data": [{"id": "a", "source": "web", "tokens": 0}]},
            "tokens must be a whole number, 1 or more",
        ),
    ],
)
def test_a_wrong_file_of_any_metric_is_named(write, metric, predictions, references, says):
    with pytest.raises(DataError, match=says):
        score(metric, *write(predictions, references))


def test_options_in_the_answer_dictionary_are_used(write):
    entry = {
        "question_type": CHOICE,
        "ground_truth": "B",
        "index2ans": {"A": "a red cube", "B": "a blue ball"},
    }
    response = {"a_b_1": "What I see here is a blue ball"}
    assert score("mmmu", *write(response, {"a_b_1": entry}))["accuracy"] == 1
    assert score("mmmu", *write(response, {"a_b_1": {**entry, "all_choices": ["A", "B"]}}))["accuracy"] == 1
    without = {k: v for k, v in entry.items() if k != "index2ans"}
    assert score("mmmu", *write(response, {"a_b_1": without}))["accuracy"] == 0
    few = {**without, "all_choices": ["A", "B"]}
    assert score("mmmu", *write({"a_b_1": "B rather than C I think"}, {"a_b_1": few}))["accuracy"] == 1


def test_many_missing_predictions_are_counted_and_the_first_listed(write):
    references = {"annotations": [{"image_id": i, "caption": "x"} for i in range(100)]}
    with pytest.raises(DataError, match=r"98 of 100 .* image_id 0, 3, 4, 5, 6, \.\.\.$"):
        score("captions", *write(CAPTIONS, references))


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json: no such file"):
        score("vqa", tmp_path / "absent.json", tmp_path / "absent.json")


def test_a_file_that_is_no_text_is_a_data_error(write):
    predictions, references = write(ANSWERS, {"annotations": QUESTIONS})
    predictions.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"predictions\.json: not JSON"):
        score("vqa", predictions, references)
