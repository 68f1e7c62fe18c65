"""MMMU's way of finding an answer in free text, by cases worked from the benchmark's own rules."""

import pytest

from trainer.evaluation.mmmu import chosen_letter, is_right, open_answers, score_mmmu, subject_of

OPTIONS = {"A": "a red cube", "B": "a blue ball", "C": "Green", "D": "a red"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("'B'", "B"),
        ("(B)", "B"),
        ("The answer is (B) since it is blue", "B"),
        ("(A) is wrong, so it is (C).", "C"),  # the last of several
        ("(C) beats (A), and (C) it is", "C"),
        ("not B but (D)", "D"),  # brackets before bare letters, wherever they stand
        ("first A then C", "C"),
        ("A or B", "B"),
        ("A: because", None),  # a letter alone has spaces around it
        ("b", None),  # small letters are none
        ("E", None),  # not an option
        ("", None),
        ("I see that it is a blue ball there", "B"),  # the text, in more than five words
        ("it is a blue ball", None),  # in five words it is not looked for
        ("you can see a red cube in the picture", "A"),  # D stands at the same place: the first of the list
        ("not a blue ball but something more GREEN I think", "C"),
    ],
)
def test_the_chosen_letter(response, letter):
    assert chosen_letter(response, OPTIONS) == letter


def test_options_without_texts_are_found_by_letter_only():
    options = dict.fromkeys("ABCD")
    assert chosen_letter("so I would say it is (C) then", options) == "C"
    assert chosen_letter("you can see a red cube in the picture", options) is None


def test_no_letter_is_wrong_and_not_a_guess():
    assert not any(is_right("I cannot tell", letter, OPTIONS) for letter in OPTIONS)


@pytest.mark.parametrize(
    ("response", "truth", "right"),
    [
        ("30", "30", True),
        ("36 watts", "30", False),
        ("The answer is 30 watts", "30", True),
        ("x = 2.346", "2.35", True),  # numbers to two decimals
        ("2.3", "2.35", False),
        ("It costs 1,200", "1200", True),
        ("1200", "1,200", True),
        ("so it is -3", "3", False),
        ("1e3", "1000", True),
        ("30 or 40", ["40", "forty"], True),  # all numbers count
        ("It is a transistor.", "transistor", True),  # a text may stand in a longer one
        ("trans", "transistor", False),
        ("The result is x", "x", True),
        ("The result is xylene", "x", False),  # a single letter needs space beside it
        ("grade a steel", "a", True),
        ("Thus the answer is 5\nwhich is nice", "5", True),
        ("is 5\nthe answer is 6", "5", True),  # the end of every line counts
        ("y = 7\nz is 8", "7", False),  # an equals sign leads only in the last line
        ("", "5", False),
    ],
)
def test_open_answers(response, truth, right):
    assert is_right(response, truth, None) is right


def test_the_shortest_end_of_a_line_is_its_answer():
    assert open_answers("so the answer is probably red") == {"probably red"}
    assert open_answers("Red") == {"red"}
    assert open_answers("it is 3 m") == {"3 m", 3.0}


def test_accuracy_is_a_share_over_questions_and_by_subject():
    ids = ["validation_Art_Theory_1", "validation_Art_Theory_2", "validation_Math_7"]
    scored = score_mmmu([True, False, True], [subject_of(i) for i in ids], ids)
    assert scored.values == {
        "accuracy": pytest.approx(2 / 3),
        "per_subject": {"Art_Theory": 0.5, "Math": 1.0},
    }
