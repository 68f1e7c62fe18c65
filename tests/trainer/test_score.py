"""`fovea score`: what it prints, and every way in which a file can be wrong."""

import argparse
import json
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from trainer.evaluation.score import add_parser, run, score_captions, score_vqa

REFERENCE = Path(__file__).parents[3] / "shared" / "evalref" / "captioning" / "coco_fakecap126"

CAPTIONS = [{"image_id": 1, "caption": "A red cube."}, {"image_id": 2, "caption": "a blue ball"}]
CAPTION_REFERENCES = [*CAPTIONS, {"image_id": 2, "caption": "one ball"}]
ANSWERS = [{"question_id": 1, "answer": "red"}, {"question_id": 2, "answer": "2"}]
QUESTIONS = [
    {"question_id": 1, "answers": [{"answer": "red"}] * 10, "answer_type": "other", "question_type": "color"},
    {"question_id": 2, "answers": ["two"] * 2 + ["3"] * 8, "answer_type": "number", "question_type": "count"},
]


@pytest.fixture
def write(tmp_path):
    def _write(predictions, annotations):
        p, r = tmp_path / "predictions.json", tmp_path / "references.json"
        p.write_text(predictions if isinstance(predictions, str) else json.dumps(predictions))
        page = {"annotations": annotations} if isinstance(annotations, list) else annotations
        r.write_text(json.dumps(page))
        return p, r

    return _write


def test_captions_are_scored_in_the_benchmarks_units(write):
    scores = score_captions(*write(CAPTIONS, CAPTION_REFERENCES))
    assert list(scores) == ["metric", "n", "CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"]
    assert (scores["metric"], scores["n"]) == ("captions", 2)
    assert scores["ROUGE_L"] == pytest.approx(1)


def test_vqa_is_scored_in_percent(write):
    assert score_vqa(*write(ANSWERS, QUESTIONS)) == {
        "metric": "vqa",
        "n": 2,
        "overall": 80.0,
        "per_answer_type": {"number": 60.0, "other": 100.0},
        "per_question_type": {"color": 100.0, "count": 60.0},
    }


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/evalref is not on this machine")
def test_raw_coco_captions_score_as_the_reference_with_its_own_tokenizer(write):
    texts = json.loads((REFERENCE / "input.json").read_text())
    predictions = [{"image_id": int(i), "caption": t["hyp"]} for i, t in texts.items()]
    annotations = [{"image_id": int(i), "caption": c} for i, t in texts.items() for c in t["refs"]]
    scores = score_captions(*write(predictions, annotations))
    expected = json.loads((REFERENCE / "expected.json").read_text())["scores"]
    for name in ("CIDEr", "Bleu_1", "Bleu_4", "ROUGE_L"):
        assert scores[name] == pytest.approx(expected[name], abs=1e-3)


@pytest.mark.parametrize(
    ("predictions", "annotations", "says"),
    [
        ("[{", CAPTION_REFERENCES, "predictions.json: not JSON"),
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
        (CAPTIONS[:1], CAPTION_REFERENCES, "1 of 2 predictions are missing; .* image_id 2"),
        ([{**c, "image_id": str(c["image_id"])} for c in CAPTIONS], CAPTION_REFERENCES, "write both alike"),
        (CAPTIONS, {"images": []}, "references.json: expected .* \"annotations\", found keys 'images'"),
        (CAPTIONS, [], "is empty"),
        (CAPTIONS, [{"image_id": 1}], "annotation 0: no 'caption'"),
    ],
)
def test_a_wrong_caption_file_is_named_with_its_record(write, predictions, annotations, says):
    with pytest.raises(DataError, match=says) as e:
        score_captions(*write(predictions, annotations))
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
        score_vqa(*write(ANSWERS, [QUESTIONS[0], {**QUESTIONS[1], **change}]))


def test_many_missing_predictions_are_counted_and_the_first_listed(write):
    references = [{"image_id": i, "caption": "x"} for i in range(100)]
    with pytest.raises(DataError, match=r"98 of 100 .* image_id 0, 3, 4, 5, 6, \.\.\.$"):
        score_captions(*write(CAPTIONS, references))


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json: no such file"):
        score_vqa(tmp_path / "absent.json", tmp_path / "absent.json")


def test_the_verb_prints_one_json_object(write, capsys):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    predictions, references = write(ANSWERS, QUESTIONS)
    args = parser.parse_args(
        ["score", "vqa", "--predictions", str(predictions), "--references", str(references)]
    )
    assert args.run_verb is run
    assert run(args) == 0
    assert json.loads(capsys.readouterr().out)["overall"] == 80.0
