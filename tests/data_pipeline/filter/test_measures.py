"""What is measured of a text equals its naive twin, and datatrove's where it has one."""

import collections
import math
import random
import string

import pytest
from datatrove.pipeline.filters import gopher_repetition_filter as gopher

from data_pipeline.build.filter import measure
from data_pipeline.build.filter.language import language
from data_pipeline.build.filter.rules import english_function_words
from prose import PROSE


def naive_words(text: str) -> list[str]:
    found = []
    for token in text.lower().split():
        letters = [i for i, c in enumerate(token) if c.isalpha()]
        if letters:
            found.append(token[letters[0] : letters[-1] + 1])
    return found


def naive_char_repetition(text: str, n: int = 10) -> float:
    grams = collections.Counter(text[i : i + n] for i in range(len(text) - n + 1))
    counts = sorted(grams.values(), reverse=True)
    kept = min(int(math.sqrt(len(counts))), sum(c > 1 for c in counts))
    return sum(counts[:kept]) / sum(counts) if counts else 0.0


def naive_word_repetition(text: str, n: int = 5) -> float:
    words = naive_words(text)
    grams = collections.Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    return sum(c for c in grams.values() if c > 1) / sum(grams.values()) if grams else 0.0


def texts() -> list[str]:
    rng = random.Random(0)
    letters = string.ascii_letters + string.digits + string.punctuation + "  \n\t" + "éßжλ中…’“”"
    made = ["".join(rng.choices(letters, k=rng.randint(0, 200))) for _ in range(150)]
    made += [" ".join(rng.choices(["ab", "cd", "e'f", "g-h", "1984", "x2y", "Öl."], k=60)) for _ in range(50)]
    return ["", " ", "...", PROSE, PROSE * 3, *made]


def test_the_measures_equal_their_naive_twins(books):
    for text in texts() + books:
        assert list(measure.words(text)) == naive_words(text)
        assert measure.char_repetition(text) == pytest.approx(naive_char_repetition(text))
        assert measure.word_repetition(measure.words(text)) == pytest.approx(naive_word_repetition(text))
        special = sum(not c.isalpha() for c in text) / len(text) if text else 0.0
        assert measure.special(text) == pytest.approx(special)


def test_repetition_counts_as_datatrove_counts(books):
    for text in [*texts(), *books, " ".join(books[:50])]:
        words = list(measure.words(text))
        lines = text.split("\n")
        count, chars = gopher.find_duplicates(lines)
        assert measure.duplicates(lines) == (count / len(lines), chars)
        for n in (2, 3, 4):
            grams = gopher.get_n_grams(words, n)
            if grams:
                most = max(collections.Counter(grams).values())
                ties = {len(g) * most for g, c in collections.Counter(grams).items() if c == most}
                assert measure.top_ngram_chars(words, n) in ties
        for n in (5, 7, 10):
            assert measure.repeated_ngram_chars(words, n) == gopher.find_all_duplicate(words, n)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("no mark at all", 1),
        ("One. Two! Three?", 3),
        ('He said "No." Then he left.', 2),
        ("It cost 3.50 at example.com today.", 1),
        ("One... and two", 2),
        ("一。二！", 2),
    ],
)
def test_sentences(text, count):
    assert measure.sentences(text) == count


def test_punctuation_is_marks_among_words_and_marks():
    assert measure.punctuation("Well, that's it.") == (2 / 5, 5)
    assert measure.punctuation("no marks") == (0.0, 2)
    assert measure.punctuation("") == (0.0, 0)


def test_the_shipped_function_words_are_a_third_of_english_prose(books):
    words = [w for p in books if language(p)[0] == "en" for w in measure.words(p)]
    assert 0.35 < measure.share(words, english_function_words()) < 0.65
