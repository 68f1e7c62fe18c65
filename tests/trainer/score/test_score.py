"""`fovea score` on the benchmarks' own files: one JSON object, in the benchmarks' units."""

import argparse
import json
import random
import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from score_files import (
    ANSWERS,
    CAPTION_REFERENCES,
    CAPTIONS,
    CASES,
    QUESTIONS,
    without_intervals,
)
from trainer.evaluation import meteor as meteor_file
from trainer.evaluation.meteor import UNASKED, why_not
from trainer.evaluation.readers import READERS
from trainer.evaluation.score import add_parser, run, score

REFERENCE = Path(__file__).parents[4] / "shared" / "evalref" / "captioning" / "coco_fakecap126"


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
