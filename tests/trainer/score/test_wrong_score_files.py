"""A wrong file of any metric is named, with its record."""

import pytest

from data_pipeline.errors import DataError
from score_files import (
    ANSWERS,
    CAPTION_REFERENCES,
    CAPTIONS,
    CASES,
    CHARTS,
    CHOICE,
    POPE,
    QUESTIONS,
    lines,
    without_intervals,
)
from trainer.cli import main
from trainer.evaluation.score import score


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
        (
            [{**c, "image_id": f"0{c['image_id']}"} for c in CAPTIONS],
            CAPTION_REFERENCES,
            "not have; image_id '01', '02'",
        ),
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
        (
            "perplexity",
            [{"id": "a", "nats": 2e3}],
            {"data": [{"id": "a", "source": "web", "tokens": 2}]},
            "references.json: annotation 0: 1000 nats a token .* expected 700 or less",
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


@pytest.mark.parametrize("option", ["--meteor", "--spice"])
def test_an_option_of_captions_is_refused_elsewhere(write, option, capsys):
    predictions, references = map(str, write(ANSWERS, {"annotations": QUESTIONS}))
    assert main(["score", "vqa", "--predictions", predictions, "--references", references, option]) == 2
    assert f"fovea: {option} belongs to the metric captions, not to vqa" in capsys.readouterr().err
