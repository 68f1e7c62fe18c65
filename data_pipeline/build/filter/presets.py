"""Published filters as named presets, and how a preset, a source's own keys and the recipe's limits combine.

The figures are those of English web data of 2021 to 2023: a place to start from, not the truth. What a preset
leaves out, because it needs a model or the whole corpus, is in `UNCOVERED`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.build.filter.config import FilterConfig, TextLimits
from data_pipeline.build.images.limits import ImageLimits, tightened

Limits = TypeVar("Limits", TextLimits, ImageLimits)

# MMC4 (arXiv 2304.06939), section 2: addresses and sizes of images, English by langdetect at 0.99.
_MMC4 = FilterConfig(
    languages=("en",),
    min_lang_score=0.99,
    image_url_without=("logo", "button", "icon", "plugin", "widget"),
    min_images=1,
    images=ImageLimits(formats=("JPEG", "PNG"), min_side=150, max_aspect=2),
)

PRESETS: dict[str, FilterConfig] = {
    "none": FilterConfig(),
    # OBELICS (arXiv 2306.16527), config_filter_web_documents.yaml of its repository; English by fastText.
    "obelics": FilterConfig(
        paragraph=TextLimits(
            min_words=4,
            max_words=1000,
            min_punctuation=0.001,
            punctuation_from=12,
            max_special=0.3,
            max_char_repetition=0.1,
            max_word_repetition=0.1,
            min_stop_words=0.3,
            min_common_words=0.8,
            max_flagged_words=0.01,
        ),
        document=TextLimits(
            min_words=10,
            max_words=2000,
            min_punctuation=0.03,
            max_special=0.275,
            max_char_repetition=0.1,
            max_word_repetition=0.2,
            min_stop_words=0.35,
            min_common_words=0.9,
            max_flagged_words=0.01,
            max_spam_words=0.12,
        ),
        languages=("en",),
        min_lang_score=0.8,
        min_images=1,
        max_images=30,
        images=ImageLimits(
            formats=("JPEG", "PNG", "WEBP"), min_width=150, min_height=150, max_side=20_000, max_aspect=2
        ),
    ),
    "mmc4": _MMC4,
    "mmc4-core": _MMC4.model_copy(
        update={
            "document": TextLimits(min_sentences=4, max_sentences=40),
            "min_images": 2,
            "max_images": 15,
        }
    ),
    # DataComp (arXiv 2304.14108), "basic filtering": more than 2 words, more than 5 characters, English.
    "datacomp-basic": FilterConfig(
        document=TextLimits(min_words=3, min_chars=6),
        languages=("en",),
        images=ImageLimits(min_side=200, max_aspect=3),
    ),
    # LAION-400M (arXiv 2111.02114): alternative text of 5 characters, files of 5 KB.
    "laion": FilterConfig(document=TextLimits(min_chars=5), images=ImageLimits(min_bytes=5_000)),
    # COYO-700M, README of its repository: more than 5 characters.
    "coyo": FilterConfig(
        document=TextLimits(min_chars=6, max_chars=1000, min_words=3, max_words=256),
        images=ImageLimits(min_bytes=5_000, min_side=200, max_aspect=3),
    ),
}

UNCOVERED: dict[str, str] = {
    "obelics": "perplexity (KenLM) and NSFW scores need models; repeated images and paragraphs are left",
    "mmc4": "NSFW and image-text scores need models; duplicates are a step of their own",
    "mmc4-core": "NSFW and image-text scores need models; duplicates are a step of their own",
    "laion": "image-text similarity needs a model; duplicates are a step of their own",
    "coyo": "NSFW scores and nouns need models; duplicates are a step of their own",
}
_LISTS = {
    "common_words": "min_common_words",
    "flagged_words": "max_flagged_words",
    "spam_words": "max_spam_words",
}


def resolved(config: FilterConfig) -> FilterConfig:
    """The preset with the config's own keys over it; limits of texts and images are merged key by key."""
    if config.preset == "none":
        return config
    base = PRESETS[config.preset]
    update: dict[str, Any] = {}
    for key in config.model_fields_set:
        value = getattr(config, key)
        if isinstance(value, TextLimits | ImageLimits):
            value = _over(getattr(base, key), value)
        update[key] = value
    return base.model_copy(update=update)


def _over(base: Limits, own: Limits) -> Limits:
    return base.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def image_limits(config: FilterConfig, recipe: ImageLimits) -> ImageLimits:
    """The limits of a source's images: the recipe's and the preset's, the stricter of each; own keys win."""
    return _over(tightened(recipe, PRESETS[config.preset].images), config.images)


def word_files(configs: Mapping[str, FilterConfig], root: Path) -> list[Path]:
    """The word lists that the filters read: inputs of the build like any other file."""
    names = {getattr(c, key) for c in configs.values() for key in ("stop_words", *_LISTS)} - {None}
    return sorted(root / name for name in names)


def notes(configs: Mapping[str, FilterConfig]) -> list[str]:
    """What the filters of a source leave out though its preset or limits name it: to be said to the user."""
    said = []
    for source, config in configs.items():
        full = resolved(config)
        for words, limit in _LISTS.items():
            asked = [t for t in (full.paragraph, full.document) if getattr(t, limit) is not None]
            if asked and getattr(full, words) is None:
                said.append(f"source '{source}': {limit} is not judged, no list is given as filters.{words}")
        if missing := UNCOVERED.get(config.preset):
            said.append(f"source '{source}': preset {config.preset} is not whole: {missing}")
    return said
