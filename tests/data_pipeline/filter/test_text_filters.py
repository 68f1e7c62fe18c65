"""Filters of text: the measures against naive twins, the thresholds, the steps."""

import collections
import dataclasses
import json
import math
import random
import re
import string
from pathlib import Path

import pytest
from datatrove.pipeline.filters import gopher_repetition_filter as gopher

from data_pipeline.build.filter import measure
from data_pipeline.build.filter.config import FilterConfig, Repetition, TextLimits
from data_pipeline.build.filter.language import language, language_among
from data_pipeline.build.filter.presets import PRESETS, image_limits, notes, resolved, word_files
from data_pipeline.build.filter.rules import RULES, english_function_words
from data_pipeline.build.filter.steps import document_steps, text_steps
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.build.steps import Dropped
from data_pipeline.errors import ConfigError
from data_pipeline.sample import Media, Sample, Segment

PROSE = (
    "The harbour was quiet when we came down to it in the morning, and for a while nobody said anything. "
    "Then a boat with a red sail turned around the pier, and the children who had been sitting on the wall "
    "ran to the steps, because they knew that it was the one which brought the letters from the islands."
)
COCO = Path(__file__).parents[3] / "../shared/realdata/coco_cc/captions.json"
SOUND = FilterConfig(preset="obelics", min_images=0)


def sample(*texts: str, kind: str = "text", images: int = 0, source: str = "s") -> Sample:
    return Sample(
        id="x",
        kind=kind,
        source=source,
        segments=(
            *(Segment(type="image", media=i) for i in range(images)),
            *(Segment(type="text", text=t) for t in texts),
        ),
        media=tuple(Media(media_id=f"m{i}", url=f"http://h/{i}.png") for i in range(images)),
        image_bytes=(b"",) * images,
    )


def run(found: Sample, config: FilterConfig, root=None) -> Sample | Dropped:
    for step in (*text_steps({"s": config}, root), *document_steps({"s": config})):
        match step.judge(found):
            case Dropped() as dropped:
                return dropped
            case kept:
                found = kept.sample
    return found


@pytest.fixture
def books(request):
    """Paragraphs of the HTML books, tags taken off by a regular expression."""
    folder = request.config.rootpath.parent / "shared/realdata/html_gutenberg"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    paragraphs = []
    for path in sorted(folder.glob("*/*.htm"))[:4]:
        html = path.read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"<p[^>]*>(.*?)</p>", html, flags=re.DOTALL | re.IGNORECASE)
        paragraphs += [re.sub(r"<[^>]*>", "", p).strip() for p in found[:150]]
    return [p for p in paragraphs if p]


# --- the measures


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


# --- the thresholds: each has a text that it alone refuses

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


# --- language


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        (PROSE, "en"),
        ("Der Hafen war still, als wir am Morgen hinunterkamen, und niemand sagte etwas.", "de"),
        ("Le port était calme quand nous y sommes descendus le matin, et personne ne parlait.", "fr"),
        ("Гавань была тиха, когда мы утром спустились к ней, и никто ничего не говорил.", "ru"),
        ("我们早上来到港口的时候，那里很安静，没有人说话。", "zh"),
    ],
)
def test_the_language_is_found_and_filled_in_or_refused(text, lang):
    found = run(sample(text), FilterConfig(languages=(lang,)))
    assert found.lang == lang
    assert 0.8 < found.lang_score <= 1
    other = run(sample(text), FilterConfig(languages=("fi",)))
    assert (other.reason, other.detail.split()[0]) == ("language not wanted", lang)


def test_a_few_words_stay_where_a_wanted_language_is_likely_and_others_leave():
    english = ["man on motorcycle", "cars and dogs", "a kitchen table", "boy eating pizza", "red bus stop"]
    others = ["Katze auf Sofa", "chat sur le canapé", "gato en el sofá", "kat op de bank", "katt i soffan"]
    config = FilterConfig(preset="datacomp-basic")
    assert language("a kitchen table")[0] != "en", "else this shows nothing"
    kept = [text for text in (*english, *others) if isinstance(run(sample(text), config), Sample)]
    assert kept == english


@pytest.mark.skipif(not COCO.is_file(), reason="no ../shared/realdata beside the repository")
@pytest.mark.parametrize(("words", "share"), [(3, 0.9), (4, 0.99), (99, 1.0)])
def test_the_first_words_of_real_captions_stay(words, share):
    captions = [c for record in json.loads(COCO.read_text()) for c in record["captions"]]
    found = [language_among(" ".join(c.split()[:words]), ("en",)) for c in captions]
    assert sum(code == "en" for code, _ in found) >= share * len(found)


def test_a_language_that_is_a_guess_is_refused():
    code, score = language("ok 12")
    config = FilterConfig(languages=(code,), min_lang_score=min(1.0, score + 0.05))
    assert run(sample("ok 12"), config).reason == "language uncertain"


# --- images of documents


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


# --- presets


def test_nothing_set_means_no_steps_at_all():
    assert text_steps({"s": FilterConfig()}) == []
    assert document_steps({"s": FilterConfig()}) == []
    assert image_limits(FilterConfig(), ImageLimits(min_side=7)) == ImageLimits(min_side=7)


def test_the_published_thresholds():
    """The figures once more, by hand, from the papers' tables."""
    o = resolved(FilterConfig(preset="obelics"))
    assert (o.paragraph.min_words, o.paragraph.max_words) == (4, 1000)
    assert (o.document.min_words, o.document.max_words) == (10, 2000)
    assert (o.paragraph.max_char_repetition, o.document.max_char_repetition) == (0.1, 0.1)
    assert (o.paragraph.max_word_repetition, o.document.max_word_repetition) == (0.1, 0.2)
    assert (o.paragraph.max_special, o.document.max_special) == (0.3, 0.275)
    assert (o.paragraph.min_stop_words, o.document.min_stop_words) == (0.3, 0.35)
    assert (o.paragraph.min_punctuation, o.document.min_punctuation) == (0.001, 0.03)
    assert (o.paragraph.min_common_words, o.document.min_common_words) == (0.8, 0.9)
    assert (o.min_images, o.max_images, o.min_lang_score) == (1, 30, 0.8)
    m = image_limits(FilterConfig(preset="mmc4"), ImageLimits())
    assert (m.min_side, m.max_aspect, m.formats) == (150, 2, ("JPEG", "PNG"))
    c = resolved(FilterConfig(preset="mmc4-core"))
    assert (c.document.min_sentences, c.document.max_sentences, c.min_images, c.max_images) == (4, 40, 2, 15)
    d = FilterConfig(preset="datacomp-basic")
    assert (resolved(d).document.min_words, resolved(d).document.min_chars) == (3, 6)
    assert (image_limits(d, ImageLimits()).min_side, image_limits(d, ImageLimits()).max_aspect) == (200, 3)
    assert image_limits(FilterConfig(preset="laion"), ImageLimits()).min_bytes == 5000
    assert resolved(FilterConfig(preset="coyo")).document.max_words == 256


def test_own_keys_override_the_preset_one_by_one():
    own = FilterConfig(preset="obelics", document=TextLimits(min_words=1), languages=None)
    full = resolved(own)
    assert (full.document.min_words, full.document.max_words, full.languages) == (1, 2000, None)
    assert resolved(full.model_copy(update={"preset": "none"})).document.min_words == 1
    limits = image_limits(
        FilterConfig(preset="obelics", images=ImageLimits(max_aspect=5)),
        ImageLimits(min_side=300, max_aspect=1),
    )
    assert (limits.min_side, limits.min_width, limits.max_aspect) == (300, 150, 5)


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "none"])
def test_each_preset_keeps_sound_prose_and_drops_what_it_is_for(preset):
    config = FilterConfig(preset=preset)
    kind, images = ("interleaved", 2) if preset in ("obelics", "mmc4", "mmc4-core") else ("caption", 1)
    prose = PROSE.replace(", and", ". And").replace(", because", ". Because")
    assert isinstance(run(sample(prose, kind=kind, images=images), config), Sample)
    bad = "abc"
    assert isinstance(run(sample(bad, kind=kind, images=images), config), Dropped)


def test_what_a_preset_leaves_out_is_said():
    said = notes({"a": FilterConfig(preset="obelics", flagged_words="f.txt"), "b": FilterConfig()})
    assert any("min_common_words" in line and "filters.common_words" in line for line in said)
    assert not any("max_flagged_words" in line for line in said)
    assert any("perplexity" in line for line in said)
    assert not any("'b'" in line for line in said)


def test_word_files_are_inputs(tmp_path):
    configs = {
        "a": FilterConfig(flagged_words="f.txt", stop_words="s.txt"),
        "b": FilterConfig(spam_words="f.txt"),
    }
    assert word_files(configs, tmp_path) == [tmp_path / "f.txt", tmp_path / "s.txt"]


def test_sources_without_a_config_pass_every_step():
    for step in (*text_steps({"s": SOUND}), *document_steps({"s": FilterConfig(preset="obelics")})):
        other = sample("x", source="other")
        assert step.judge(other).sample is other


def test_steps_come_in_this_order():
    config = FilterConfig(
        preset="mmc4-core",
        personal_data=("email",),
        repetition=Repetition(),
        paragraph=TextLimits(min_words=4),
    )
    assert [s.name for s in (*text_steps({"s": config}), *document_steps({"s": config}))] == [
        "image: address",
        "text: language",
        "text: personal data",
        "paragraph: words",
        "text: sentences",
        "text: duplicates within",
        "document: images",
    ]


def test_filters_are_idempotent(books):
    config = FilterConfig.model_validate(
        {
            "preset": "obelics",
            "min_images": 0,
            "personal_data": ("email", "ip", "phone"),
            "repetition": {},
            "document": {"max_words": 10**6},
        }
    )
    kept = 0
    for n in range(0, len(books), 10):
        once = run(
            sample(*books[n : n + 10], "Write to a@b.org or call +44 20 7946 0958 now, please."), config
        )
        if isinstance(once, Sample):
            kept += 1
            again = run(once, config)  # the score alone is of a text that has become another
            assert dataclasses.replace(again, lang_score=once.lang_score) == once
    assert kept > 10


def test_a_source_of_long_documents_keeps_images_when_text_goes(books):
    found = run(
        sample("x y", *books[:5], kind="interleaved", images=2),
        FilterConfig(paragraph=TextLimits(min_words=4)),
    )
    assert sum(s.type == "image" for s in found.segments) == 2
    assert dataclasses.replace(found, lineage=None).media == sample(kind="interleaved", images=2).media


def test_the_shipped_function_words_are_a_third_of_english_prose(books):
    words = [w for p in books if language(p)[0] == "en" for w in measure.words(p)]
    assert 0.35 < measure.share(words, english_function_words()) < 0.65


def test_configs_are_plain_values():
    config = FilterConfig(preset="obelics", repetition=Repetition())
    again = FilterConfig.model_validate(json.loads(json.dumps(config.model_dump(exclude_unset=True))))
    assert resolved(again) == resolved(config)
