"""Presets hold the published thresholds, and own keys override them one by one."""

import dataclasses
import json

import pytest

from data_pipeline.build.filter.config import FilterConfig, Repetition, TextLimits
from data_pipeline.build.filter.presets import PRESETS, image_limits, notes, resolved, word_files
from data_pipeline.build.filter.steps import document_steps, text_steps
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.build.steps import Dropped
from data_pipeline.sample import Sample
from prose import PROSE, SOUND, run, sample


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


def test_configs_are_plain_values():
    config = FilterConfig(preset="obelics", repetition=Repetition())
    again = FilterConfig.model_validate(json.loads(json.dumps(config.model_dump(exclude_unset=True))))
    assert resolved(again) == resolved(config)
