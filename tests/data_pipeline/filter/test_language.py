"""The language of a text is found, filled in, and refused where it is another or a guess."""

import json
from pathlib import Path

import pytest

from data_pipeline.build.filter.config import FilterConfig
from data_pipeline.build.filter.language import language, language_among
from data_pipeline.sample import Sample
from prose import PROSE, run, sample

COCO = Path(__file__).parents[3] / "../shared/realdata/coco_cc/captions.json"


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
