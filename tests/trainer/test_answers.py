"""Scores of short answers: ANLS, relaxed accuracy, exact and contains match, POPE; by hand and by twins."""

import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from trainer.evaluation.anls import VARIANTS, anls, levenshtein, score_anls
from trainer.evaluation.matching import contains, exact, folded, score_contains, score_exact
from trainer.evaluation.pope import says_yes, score_pope
from trainer.evaluation.relaxed import relaxed_match, score_relaxed

REFERENCE = Path(__file__).parents[3] / "shared" / "evalref" / "anls"


# --- ANLS


def recursive_distance(a: str, b: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        )

    return distance(len(a), len(b))


def test_the_distance_equals_its_recursive_twin():
    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("abc ", k=rng.randint(0, 9))) for _ in range(2))
        assert levenshtein(a, b) == levenshtein(b, a) == recursive_distance(a, b)


@pytest.mark.parametrize(
    ("answer", "truths", "official", "st_vqa", "paper"),
    [
        ("Coca cola", ["Coca Cola", "Coca Cola Company"], 1, 1, 1),
        ("CocaCola", ["Coca Cola", "Coca Cola Company"], 8 / 9, 8 / 9, 8 / 9),
        ("The Coca", ["Coca Cola", "Coca Cola Company"], 0, 0, 0),
        ("Coca", ["Coca Cola", "Coca Cola Company"], 0, 0, 0),
        ("ab", ["ac"], 0.5, 0.5, 0),  # a similarity of exactly one half
        ("a  b", ["a b"], 1, 3 / 4, 1),  # two spaces
        (
            " $5 \n",
            ["$6"],
            4 / 5,
            0,
            0,
        ),  # the length of the text as it was: 1 of 5 letters differs, or 1 of 2
        ("", [""], 1, 1, 1),
        ("", ["x"], 0, 0, 0),
        ("x", ["y", "x"], 1, 1, 1),
    ],
)
def test_anls_by_hand_in_each_variant(answer, truths, official, st_vqa, paper):
    assert [anls(answer, truths, v) for v in VARIANTS] == pytest.approx([official, st_vqa, paper])


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/evalref is not on this machine")
def test_anls_equals_the_reference():
    gold = json.loads((REFERENCE / "shunk031_gold_label.json").read_text())["data"]
    said = {
        s["questionId"]: s["answer"] for s in json.loads((REFERENCE / "shunk031_submission.json").read_text())
    }
    scored = score_anls([said[g["questionId"]] for g in gold], [g["answers"] for g in gold], range(5))
    assert round(scored.values["ANLS"], 3) == 0.378
    assert scored.terms[:, 0].round(2).tolist() == [0, 0.89, 1, 0, 0]


def test_a_question_without_truths_has_no_anls():
    with pytest.raises(ValueError, match="without a right answer"):
        anls("x", [])


# --- relaxed accuracy


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("-100", "100", False),
        ("-96", "-100", True),
        ("12%", "12%", True),
        ("0.12", "12%", True),
        ("12", "12%", False),
        ("1,200", "1200", False),  # Python reads no comma: a text, and another one
        ("1,200", "1,200", True),
        ("0", "0", True),
        ("0.0", "0", False),  # 5 % of nothing: texts
        ("0.001", "0", False),
        ("Red", "red", True),
        ("red ", "red", False),
        (" 100 ", "100", True),  # Python's numbers forgive space
        ("nan", "100", False),
        ("100 people", "100", False),
        ("2019", "2020", True),  # the rule's known blind spot: years
        ("", "", True),
    ],
)
def test_relaxed_by_hand(answer, truth, right):
    assert relaxed_match(answer, truth) is right


def test_relaxed_is_the_share_of_right_answers():
    scored = score_relaxed(["1", "2", "3"], ["1", "9", "3"], ["a", "a", "b"])
    assert scored.values == {"relaxed": pytest.approx(2 / 3)}


# --- exact, contains


def test_the_three_matches_forgive_more_and_more():
    cases = [(" red\n", True, True, True), ("Red.", False, True, True), ("It is  Red", False, False, True)]
    cases.append(("blue", False, False, False))
    for answer, *expected in cases:
        assert [match(answer, ["green", "red"]) for match in (exact, folded, contains)] == expected, answer


def test_matches_are_shares():
    answers, truths = ["red", "a red one", "Blue."], [["red"], ["red"], ["blue"]]
    assert score_exact(answers, truths, range(3)).values == pytest.approx({"exact": 1 / 3, "folded": 2 / 3})
    assert score_contains(answers, truths, range(3)).values == {"contains": 1.0}


# --- POPE


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("Yes, there is a dog.", True),
        ("no", False),
        ("No, there is not.", False),
        ("There is not a dog", False),
        ("There is a dog. It is not big.", True),  # the first sentence alone
        ("There is none", True),
        ("NO", True),  # the program knows three words
        ("no\n", True),
        ("no,way", True),
        ("", True),
    ],
)
def test_an_answer_is_read_as_the_benchmark_reads_it(answer, yes):
    assert says_yes(answer) is yes


def test_pope_by_hand():
    # 3 hits, 1 false alarm, 2 right rejections, 2 misses
    answers = ["yes"] * 4 + ["no"] * 4
    truths = [True, True, True, False, False, False, True, True]
    assert score_pope(answers, truths, range(8)).values == pytest.approx(
        {"accuracy": 5 / 8, "precision": 3 / 4, "recall": 3 / 5, "F1": 2 / 3, "yes_ratio": 1 / 2}
    )


def test_a_model_that_never_says_yes_has_f1_zero():
    values = score_pope(["no"] * 4, [True, True, False, False], range(4)).values
    assert values == {"accuracy": 0.5, "precision": 0, "recall": 0, "F1": 0, "yes_ratio": 0}


def test_sums_of_drawn_answers_give_the_f1_of_those_answers():
    rng = random.Random(1)
    answers, truths = rng.choices(["yes", "no"], k=40), rng.choices([True, False], k=40)
    scored, drawn = score_pope(answers, truths, range(40)), [rng.randrange(40) for _ in range(40)]
    again = score_pope([answers[i] for i in drawn], [truths[i] for i in drawn], range(40)).values
    values = scored.of_sums(scored.terms[drawn].sum(axis=0))
    assert {k: float(np.asarray(v)) for k, v in values.items()} == pytest.approx(again)
