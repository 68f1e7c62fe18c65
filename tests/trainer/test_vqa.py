"""The VQA rule by hand-made cases, and against the official program's scores."""

import json
from pathlib import Path

import pytest

from trainer.evaluation.vqa import question_accuracy, vqa_accuracy

REFERENCE = Path(__file__).parents[3] / "shared" / "evalref" / "vqa"
needs_reference = pytest.mark.skipif(
    not REFERENCE.exists(), reason="the reference scores (../shared/evalref) are not on this machine"
)


def read(name: str):
    return json.loads((REFERENCE / f"{name}.json").read_text())


def truths(answer: str, times: int) -> list[str]:
    """Ten annotators, `times` of whom wrote `answer`; the others all differ."""
    return [answer] * times + [f"other {chr(97 + i)}z" for i in range(10 - times)]


def agrees(answer: str, truth: str) -> bool:
    """Whether the normalised answers are equal (the eleventh annotator makes the truths differ)."""
    return question_accuracy(answer, [truth] * 10 + ["something else"]) > 0.5


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_agreeing_annotators_make_the_accuracy(matches, accuracy):
    assert question_accuracy("red", truths("red", matches)) == pytest.approx(accuracy)


def test_other_annotators_are_told_apart_by_index_not_by_text():
    # By text, an annotator who agrees would leave out all who agree: two matches would make 8/10 * 2/3.
    assert question_accuracy("red", truths("red", 2)) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("The Red", "red"),
        ("a an the cat", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("ten dogs", "10 dogs"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the official table's own slip
        ("red-white", "red white"),  # a mark between letters becomes a space
        ("red -white", "red white"),  # beside a space it goes
        ("yes!", "yes"),
        ("1,000", "1000"),  # digit comma digit: every mark goes
        ("1,000-yard", "1000yard"),
        ("u.s.", "us"),
        ("3.5", "3.5"),  # a period before a digit stays
        ("line\nbreak", "line break"),
        (" tab\there ", "tab here"),
    ],
)
def test_answers_that_are_the_same(answer, truth):
    assert agrees(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("1:26", "1 26"),  # the colon is no mark of the rule
        ("eleven", "11"),
        ("shes", "she's"),  # not in the official table
        ("im", "i'm"),
        ("red-white", "redwhite"),
        (".5", "5"),
    ],
)
def test_answers_that_are_not_the_same(answer, truth):
    assert not agrees(answer, truth)


def test_nothing_is_normalised_where_all_annotators_agree():
    assert question_accuracy("Red", ["red"] * 10) == 0
    assert question_accuracy(" red\n", ["red"] * 10) == 1
    assert question_accuracy("Red", ["red"] * 9 + ["blue"]) == 1


def test_accuracy_is_percent_by_type_with_two_decimals():
    def annotation(i, answer, times, answer_type, question_type):
        answers = [{"answer": a} for a in truths(answer, times)]
        return {
            "question_id": i,
            "answers": answers,
            "answer_type": answer_type,
            "question_type": question_type,
        }

    annotations = [
        annotation(1, "yes", 10, "yes/no", "is the"),
        annotation(2, "red", 1, "other", "what color"),
        annotation(3, "blue", 2, "other", "what color"),
    ]
    assert vqa_accuracy({1: "yes", 2: "red", 3: "blue"}, annotations) == {
        "overall": 63.33,
        "per_answer_type": {"other": 45.0, "yes/no": 100.0},
        "per_question_type": {"is the": 100.0, "what color": 45.0},
    }


def test_answers_may_be_plain_strings():
    annotation = {"question_id": "q", "answers": truths("red", 4), "answer_type": "x", "question_type": "y"}
    assert vqa_accuracy({"q": "red"}, [annotation])["overall"] == 100


def lmms_agrees(answer: str, truth: str) -> bool:
    return question_accuracy(answer, [truth] * 10, "lmms") == 1


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("Red", "red"),  # also where all annotators wrote the same
        ("the red", "red"),
        ("1,000-yard", "1000 yard"),  # commas go first, so the hyphen is not beside a digit's comma
        ("a dog, a cat", "dog cat"),
        ("why?not", "whynot"),
        ("dog's", "dog 's"),
        ("what's", "what 's"),
        ("two dont", "2 don't"),
        ("yes!", "yes"),
        ("red-white", "red white"),
        ("u.s.", "us"),
    ],
)
def test_answers_that_are_the_same_by_the_lmms_rule(answer, truth):
    assert lmms_agrees(answer, truth)
    assert lmms_agrees(truth, answer)


@pytest.mark.parametrize(
    ("answer", "truth"), [("1:26", "1 26"), ("eleven", "11"), ("red", "blue"), (".5", "5")]
)
def test_answers_that_are_not_the_same_by_the_lmms_rule(answer, truth):
    assert not lmms_agrees(answer, truth)


def test_the_two_rules_share_the_way_of_counting():
    for times in range(11):
        both = [question_accuracy("red", truths("red", times), rule) for rule in ("official", "lmms")]
        assert both[0] == both[1]


def test_no_questions_are_refused():
    with pytest.raises(ValueError, match="no questions"):
        vqa_accuracy({}, [])


@needs_reference
@pytest.mark.parametrize("who", ["human_annotator", "mangled", "always_yes"])
def test_vqav2_equals_the_official_program(who):
    annotations = read("vqav2_train2014_100")["annotations"]
    predictions = read("vqav2_train2014_100_predictions")[who]
    expected = read("vqav2_train2014_100_expected")[who]
    assert vqa_accuracy({int(i): a for i, a in predictions.items()}, annotations) == {
        "overall": expected["overall"],
        "per_answer_type": expected["perAnswerType"],
        "per_question_type": expected["perQuestionType"],
    }
    for a in annotations:
        i = str(a["question_id"])
        ours = question_accuracy(predictions[i], [t["answer"] for t in a["answers"]])
        assert round(100 * ours, 2) == expected["per_question"][i]


@needs_reference
def test_textvqa_equals_the_official_program():
    questions = read("textvqa_val_1500")["questions"]
    predictions = read("textvqa_val_predictions")["human_annotator"]
    expected = read("textvqa_val_expected")
    scores = vqa_accuracy({int(i): a for i, a in predictions.items()}, questions)
    assert scores["overall"] == expected["human_annotator"]["official_overall"]
    assert scores["per_answer_type"] == expected["human_annotator"]["official_perAnswerType"]
    for q in questions:
        i = str(q["question_id"])
        ours = question_accuracy(predictions[i], q["answers"])
        assert round(100 * ours, 2) == expected["human_annotator_per_question"][i]["official"]


@needs_reference
def test_textvqa_equals_lmms_eval():
    questions = read("textvqa_val_1500")["questions"]
    predictions = read("textvqa_val_predictions")["human_annotator"]
    expected = read("textvqa_val_expected")
    scores = vqa_accuracy({int(i): a for i, a in predictions.items()}, questions, "lmms")
    assert scores["overall"] == expected["human_annotator"]["lmms_eval_textvqa"]
    for q in questions:
        i = str(q["question_id"])
        ours = question_accuracy(predictions[i], q["answers"], "lmms")
        assert round(100 * ours, 2) == expected["human_annotator_per_question"][i]["lmms"]
