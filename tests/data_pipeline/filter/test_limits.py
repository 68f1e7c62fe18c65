"""Each limit has a text that it alone refuses: as a sample, as a paragraph, as a document."""

import dataclasses

import pytest

from data_pipeline.build.filter.config import FilterConfig, Repetition, TextLimits
from data_pipeline.build.filter.rules import RULES
from data_pipeline.build.filter.steps import text_steps
from data_pipeline.build.steps import Dropped
from data_pipeline.errors import ConfigError
from data_pipeline.sample import Sample
from prose import PROSE, run, sample

LISTS = {"common.txt": "the\nharbour", "flagged.txt": "Nasty\n", "spam.txt": "click\nbuy"}

CASES = {
    "min_chars": ("abc", {"min_chars": 4}, "too few characters"),
    "max_chars": (PROSE, {"max_chars": 100}, "too many characters"),
    "min_words": ("two words", {"min_words": 3}, "too few words"),
    "max_words": (PROSE, {"max_words": 20}, "too many words"),
    "min_sentences": ("Only one.", {"min_sentences": 4}, "too few sentences"),
    "max_sentences": ("One. " * 41, {"max_sentences": 40}, "too many sentences"),
    "min_punctuation": ("no marks in this line " * 3, {"min_punctuation": 0.03}, "too little punctuation"),
    "max_special": ("*** 12:30 *** 14:45 *** a", {"max_special": 0.3}, "too many special characters"),
    "max_char_repetition": ("la la la " * 30, {"max_char_repetition": 0.1}, "repeated characters"),
    "max_word_repetition": ("one two three four five " * 9, {"max_word_repetition": 0.2}, "repeated words"),
    "min_stop_words": ("cheap shoes boots sandals", {"min_stop_words": 0.3}, "too few stop words"),
    "min_common_words": (PROSE, {"min_common_words": 0.8}, "too few common words"),
    "max_flagged_words": ("a nasty word", {"max_flagged_words": 0.01}, "too many flagged words"),
    "max_spam_words": ("Click here, buy now", {"max_spam_words": 0.12}, "too many spam words"),
}


@pytest.fixture
def lists(tmp_path):
    for name, content in LISTS.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def with_lists(**keys) -> FilterConfig:
    files = {"common_words": "common.txt", "flagged_words": "flagged.txt", "spam_words": "spam.txt"}
    return FilterConfig(**keys, **files)


def test_every_key_of_the_limits_belongs_to_a_rule_and_has_a_case():
    keys = {key for rule in RULES for key in rule.keys}
    assert keys == set(CASES) == set(TextLimits.model_fields) - {"punctuation_from"}


@pytest.mark.parametrize("key", CASES)
def test_each_limit_drops_the_sample_with_its_reason(key, lists):
    text, limit, reason = CASES[key]
    assert run(sample(text), with_lists(), lists) == sample(text)
    for kind in ("text", "caption", "instruct"):
        found = run(sample(text, kind=kind), with_lists(document=TextLimits(**limit)), lists)
        assert isinstance(found, Dropped)
        assert (found.reason, found.bad) == (reason, False)
    (step,) = text_steps({"s": with_lists(document=TextLimits(**limit))}, lists)
    assert step.name.startswith("text: ")


@pytest.mark.parametrize("key", CASES)
def test_each_limit_takes_the_paragraph_out_of_a_document_and_notes_it(key, lists):
    text, limit, reason = CASES[key]
    sound = PROSE if key not in ("max_chars", "max_words", "min_sentences", "min_common_words") else None
    config = with_lists(paragraph=TextLimits(**limit))
    sound = sound or ("the harbour. " * 6 if key == "min_common_words" else "One. Two. It is. So.")
    found = run(sample(f"{sound}\n\n{text}", text, sound), config, lists)
    assert [s.text for s in found.segments] == [sound, sound]
    (line,) = found.lineage
    assert (line["action"], line["reason"]) == ("drop 2 paragraph(s)", reason)
    assert line["step"].startswith("paragraph: ")
    assert run(sample(text, kind="caption"), config, lists) == sample(text, kind="caption")


def test_a_document_of_nothing_but_refused_paragraphs_is_dropped_and_one_with_an_image_is_not():
    config = FilterConfig(paragraph=TextLimits(min_words=4))
    assert run(sample("a", "b c"), config).reason == "no text left"
    left = run(sample("a", "b c", kind="interleaved", images=1), config)
    assert [s.type for s in left.segments] == ["image"]


def test_short_texts_may_lack_punctuation_where_the_limit_says_so():
    short, long = "a line of a few words", "a line of a few words " * 3
    limits = TextLimits(min_punctuation=0.001, punctuation_from=12)
    found = run(sample(short, long), FilterConfig(paragraph=limits))
    assert [s.text for s in found.segments] == [short]


def test_a_words_list_that_cannot_be_read_is_an_error_of_the_recipe(tmp_path):
    with pytest.raises(ConfigError, match=r"word list .*gone\.txt"):
        text_steps({"s": FilterConfig(flagged_words="gone.txt")}, tmp_path)


def test_own_stop_words_replace_the_english_ones(tmp_path):
    (tmp_path / "nl.txt").write_text("de\nhet\neen\n")
    limits = TextLimits(min_stop_words=0.5)
    dutch = sample("de man het huis een kind")
    assert run(dutch, FilterConfig(document=limits)).reason == "too few stop words"
    assert run(dutch, FilterConfig(document=limits, stop_words="nl.txt"), tmp_path) == dutch


REPEATS = {
    "repeated paragraphs": [PROSE, PROSE],
    "repeated lines": [
        "a line that comes again\nanother line\na line that comes again",
        "the third line of it\na line that comes again\nlast",
    ],
    "frequent n-gram": ["buy now " + " ".join(f"buy now {w}" for w in "abcdefgh")],
    "repeated n-grams": [f"{PROSE} And so on, {PROSE[:200]}"],
}


@pytest.mark.parametrize("reason", REPEATS)
def test_a_document_that_repeats_itself_is_dropped_with_its_reason(reason):
    found = run(sample(*REPEATS[reason]), FilterConfig(repetition=Repetition()))
    assert found.reason == reason
    lax = Repetition(
        max_lines=1,
        max_line_chars=1,
        max_paragraphs=1,
        max_paragraph_chars=1,
        top_ngrams={},
        repeated_ngrams={},
    )
    assert isinstance(run(sample(*REPEATS[reason]), FilterConfig(repetition=lax)), Sample)
    assert isinstance(run(sample(PROSE), FilterConfig(repetition=Repetition())), Sample)


def test_images_of_decoration_leave_by_their_address():
    found = run(sample(PROSE, kind="interleaved", images=3), FilterConfig(image_url_without=("1.PNG",)))
    assert [m.media_id for m in found.media] == ["m0", "m2"]
    assert [s.media for s in found.segments if s.type == "image"] == [0, 1]
    assert found.lineage[0]["reason"] == "image address not wanted"
    caption = sample("x", kind="caption", images=2)
    assert run(caption, FilterConfig(image_url_without=("png",))) == caption


def test_documents_of_too_few_or_too_many_images_are_dropped():
    config = FilterConfig(min_images=1, max_images=3)
    kinds = {n: run(sample(PROSE, kind="interleaved", images=n), config) for n in (0, 1, 3, 4)}
    assert kinds[0].reason == "too few images"
    assert kinds[4].reason == "too many images"
    assert isinstance(kinds[1], Sample)
    assert isinstance(kinds[3], Sample)
    assert isinstance(run(sample("a caption", kind="caption", images=4), config), Sample)


def test_a_source_of_long_documents_keeps_images_when_text_goes(books):
    found = run(
        sample("x y", *books[:5], kind="interleaved", images=2),
        FilterConfig(paragraph=TextLimits(min_words=4)),
    )
    assert sum(s.type == "image" for s in found.segments) == 2
    assert dataclasses.replace(found, lineage=None).media == sample(kind="interleaved", images=2).media
