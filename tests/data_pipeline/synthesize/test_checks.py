"""The checks of written texts, and the strict reading of question-answer pairs."""

import pytest

from data_pipeline.build.synthesize.answers import pairs
from data_pipeline.build.synthesize.checks import (
    agreement,
    copied,
    language,
    refusal,
    repetition,
    scores,
    verdict,
)
from data_pipeline.build.synthesize.contradiction import contradictions, unsupported
from data_pipeline.build.synthesize.prompts import Prompt
from data_pipeline.build.synthesize.source import KeepLimits


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot assist with identifying people.",
        "As an AI, I am not able to see images.",
        "Unfortunately, I am unable to view the picture.",
        "I don't see any image in your message.",
        "It seems no image was provided.",
        "Please upload an image so that I can describe it.",
        "Ich kann das leider nicht beschreiben.",
    ],
)
def test_refusals_are_found(text):
    assert refusal(text) == 1


@pytest.mark.parametrize(
    "text",
    [
        "A sign that says: sorry, we are closed.",
        "A man who cannot swim is held by another.",
        "A helper shows an AI robot to a child.",
        "Two dogs see a cat. " * 20 + "I'm sorry, but I can't help with that.",
    ],
)
def test_descriptions_are_no_refusals(text):
    assert refusal(text) == 0


def test_repetition_is_the_share_of_trigrams_seen_before():
    assert repetition("a b c d e f g") == 0
    assert repetition("a red dog " * 4) == pytest.approx(1 - 3 / 10)
    assert repetition("dog dog dog dog") == pytest.approx(0.75)
    assert repetition("") == 0


def test_a_copy_is_measured_by_word_fourgrams():
    assert copied("A red car on a street.", ["a RED car, on a street"]) == 1
    assert copied("a red car on ice", ["a red car on a street"]) == pytest.approx(1 / 2)
    assert copied("red car", ["a red car"]) == 1
    assert copied("blue car", ["a red car"]) == 0
    assert copied("", ["a"]) == 0


def test_contradictions_count_nouns_whose_colour_or_number_differs():
    original = "Two red cars beside a green house, and one dog"
    assert contradictions("Two red cars and a green house", original) == 0
    assert contradictions("Three red automobiles", original) == 1
    assert contradictions("Three small blue cars", original) == 2
    assert contradictions("2 red cars", original) == 0
    assert contradictions("A blue boat", original) == 0  # no word about a boat: nothing is contradicted
    assert contradictions("a gray cat", "a grey cat") == 0


def test_unsupported_objects_are_those_that_the_caption_does_not_name():
    assert unsupported("A man with two dogs and a frisbee", "a person plays with a puppy") == pytest.approx(
        1 / 3
    )
    assert unsupported("nothing of the table... of classes", "") == 1.0
    assert unsupported("sky", "grass") == 0


def test_language_is_told_apart():
    assert language("A man is walking his dog in the park near the river", "en") > 0.9
    assert language("Ein Mann geht mit seinem Hund im Park am Fluss spazieren", "en") < 0.1


def test_agreement_is_the_mean_word_overlap_with_the_others():
    assert agreement(["a b", "a b", "c d"]) == [0.5, 0.5, 0]
    assert agreement(["alone"]) == [0]


@pytest.mark.parametrize(
    ("keep", "text", "reason"),
    [
        ({"min_words": 3}, "red car", "answer too short"),
        ({"max_repetition": 0.5}, "dog dog dog dog", "repetition above the limit"),
        ({"max_copy": 0.5}, "a red car", "copy of the input"),
        ({"max_contradictions": 0}, "a blue car here", "contradicts the caption"),
        ({"max_unsupported": 0.2}, "a dog", "objects beyond the caption"),
        ({"min_language": 0.5}, "Ein Mann geht mit seinem Hund im Park spazieren", "another language"),
        ({"truncated": False}, "a red car", "answer cut off"),
    ],
)
def test_a_limit_drops_and_its_absence_does_not(keep, text, reason):
    found = scores(text, ["a red car"], "Describe.", cut=True, expected_language="en")
    assert verdict(text, found, KeepLimits()) is None
    assert verdict(text, found, KeepLimits.model_validate(keep))[0] == reason


def test_a_score_whose_ground_is_missing_is_not_given():
    found = scores("a blue car", [], "Describe.", cut=False, expected_language=None)
    assert not {"contradictions", "unsupported", "language", "agreement"} & set(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"question": "a?", "answer": "b"}]', [("a?", "b")]),
        ('{"pairs": [{"question": "a?", "answer": "b"}]}', [("a?", "b")]),
        ("Q: a?\nA: b\n\nQ: c?\nA: d\ne", [("a?", "b"), ("c?", "d e")]),
        ("1. Question: a?\nAnswer: b", [("a?", "b")]),
        ("Q1: a?\nA1: b", [("a?", "b")]),
        ("Q: a?\nQ: b?\nA: c", None),
        ("A: a\nQ: b?", None),
        ("Q: a?", None),
        ("Here you are:\nQ: a?\nA: b", None),
        ('[{"question": "a?"}]', None),
        ('[{"question": "a?", "answer": "b"}, {"question": "c?", "answer": true}]', None),
        ('[{"question": "a?", "answer": "b"}', None),
        ("[" * 100_000, None),
        ("[]", None),
        ("", None),
        ("\n".join(["Q: a?\nA: b"] * 33), None),
    ],
)
def test_pairs_are_read_strictly(text, expected):
    assert pairs(text) == expected


def test_the_last_pair_of_a_text_that_was_cut_is_left_out():
    assert pairs("Q: a?\nA: b\nQ: c?\nA: d", cut=True) == [("a?", "b")]
    assert pairs("Q: a?\nA: b", cut=True) is None


def test_a_caption_fills_the_slot_and_nothing_else():
    assert Prompt("p", "x {caption} y").filled("{0} {caption}") == "x {0} {caption} y"
    assert Prompt("p", "one").id != Prompt("p", "two").id
