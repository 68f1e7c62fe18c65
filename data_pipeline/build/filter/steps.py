"""The filters as steps of the build, one per concern, each there only where some source asks for it.

In documents a paragraph or an image can leave alone, and the lineage says how many did; a caption or a
dialogue is kept or dropped whole.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.build.filter.boilerplate import RepeatedParagraphs, Table
from data_pipeline.build.filter.config import FilterConfig, PersonalData, Repetition, TextLimits
from data_pipeline.build.filter.language import language_among
from data_pipeline.build.filter.paragraphs import noted, without_paragraphs
from data_pipeline.build.filter.personal import replace_personal_data
from data_pipeline.build.filter.presets import resolved
from data_pipeline.build.filter.rules import RULES, Rule, WordLists, duplicates, word_lists
from data_pipeline.build.images.cutting import DOCUMENTS, without_images
from data_pipeline.build.steps import Cut, Dropped, Kept, Step
from data_pipeline.sample import Sample


def text_steps(
    configs: Mapping[str, FilterConfig], root: Path | None = None, tables: Mapping[str, Table] | None = None
) -> list[Step]:
    """The steps on text, to stand before the image checks: cheap before expensive, none where nothing is set.

    `configs` by source; relative paths of word lists count from `root`. `tables` are
    those of repeated paragraphs, of the sources that have one. Raises ConfigError for a list that
    cannot be read.
    """
    full = {source: resolved(config) for source, config in configs.items()}
    lists = {source: word_lists(config, root or Path()) for source, config in full.items()}
    steps: list[Step] = []
    if tables:  # they know paragraphs as they are read
        steps.append(RepeatedParagraphs(tables))
    if unwanted := {s: c.image_url_without for s, c in full.items() if c.image_url_without}:
        steps.append(ImageAddress(unwanted))
    # A web crawl is mostly in other languages: nothing else refuses as much for its cost.
    if languages := {
        s: c for s, c in full.items() if c.languages is not None or c.min_lang_score is not None
    }:
        steps.append(LanguageStep(languages))
    if kinds := {s: c.personal_data for s, c in full.items() if c.personal_data}:
        steps.append(PersonalDataStep(kinds))
    for rule in RULES:
        if limits := _asked(rule, {s: c.paragraph for s, c in full.items()}, lists):
            steps.append(ParagraphStep(rule, limits, lists))
    for rule in RULES:
        if limits := _asked(rule, {s: c.document for s, c in full.items()}, lists):
            steps.append(TextStep(rule, limits, lists))
    if repetition := {s: c.repetition for s, c in full.items() if c.repetition is not None}:
        steps.append(DuplicatesStep(repetition))
    return steps


def document_steps(configs: Mapping[str, FilterConfig]) -> list[Step]:
    """The steps on whole documents, to stand after the image checks; empty where nothing is set."""
    full = {source: resolved(config) for source, config in configs.items()}
    counted = {s: c for s, c in full.items() if c.min_images is not None or c.max_images is not None}
    return [ImageCount(counted)] if counted else []


def _asked(
    rule: Rule, limits: Mapping[str, TextLimits], lists: Mapping[str, WordLists]
) -> dict[str, TextLimits]:
    """The sources that set a limit of this rule, and have the list of words that it needs."""
    return {
        source: limit
        for source, limit in limits.items()
        if any(getattr(limit, key) is not None for key in rule.keys)
        and (rule.needs is None or getattr(lists[source], rule.needs))
    }


class ParagraphStep(Step):
    """Takes the paragraphs that a rule refuses out of documents; a piece of text may hold several."""

    type = "filter"

    def __init__(self, rule: Rule, limits: Mapping[str, TextLimits], lists: Mapping[str, WordLists]):
        super().__init__()
        self.name = f"paragraph: {rule.name}"
        self.rule, self.limits, self.lists = rule, limits, lists

    def judge(self, sample: Sample) -> Kept | Dropped:
        limits = self.limits.get(sample.source)
        if limits is None or sample.kind not in DOCUMENTS:
            return Kept(sample)
        lists = self.lists[sample.source]

        def refused(paragraph: str) -> str | None:
            found = self.rule.judge(paragraph, limits, lists)
            return found.reason if found else None

        return without_paragraphs(sample, refused, step=self.name, config=limits)


class TextStep(Step):
    """Drops the sample whose whole text a rule refuses."""

    type = "filter"

    def __init__(self, rule: Rule, limits: Mapping[str, TextLimits], lists: Mapping[str, WordLists]):
        super().__init__()
        self.name = f"text: {rule.name}"
        self.rule, self.limits, self.lists = rule, limits, lists

    def judge(self, sample: Sample) -> Kept | Dropped:
        limits = self.limits.get(sample.source)
        if limits is None:
            return Kept(sample)
        refused = self.rule.judge(sample.text, limits, self.lists[sample.source])
        return Dropped(refused.reason, refused.detail) if refused else Kept(sample)


class LanguageStep(Step):
    """Fills in `lang` and `lang_score`, and drops what is in no wanted language or too uncertain."""

    type = "filter"
    name = "text: language"

    def __init__(self, configs: Mapping[str, FilterConfig]):
        super().__init__()
        self.configs = configs

    def judge(self, sample: Sample) -> Kept | Dropped:
        config = self.configs.get(sample.source)
        if config is None:
            return Kept(sample)
        lang, score = language_among(sample.text, config.languages or ())
        if config.languages is not None and lang not in config.languages:
            wanted = ", ".join(config.languages)
            return Dropped("language not wanted", f"{lang} ({score:.2f}), wanted are {wanted}")
        if config.min_lang_score is not None and score < config.min_lang_score:
            detail = f"{lang} with {score:.2f}, at least {config.min_lang_score:g} is wanted"
            return Dropped("language uncertain", detail)
        return Kept(dataclasses.replace(sample, lang=lang, lang_score=score))


class DuplicatesStep(Step):
    """Drops the sample that repeats its own lines, paragraphs or n-grams."""

    type = "filter"
    name = "text: duplicates within"

    def __init__(self, limits: Mapping[str, Repetition]):
        super().__init__()
        self.limits = limits

    def judge(self, sample: Sample) -> Kept | Dropped:
        limits = self.limits.get(sample.source)
        if limits is None:
            return Kept(sample)
        refused = duplicates([s.text for s in sample.segments if s.text], limits)
        return Dropped(refused.reason, refused.detail) if refused else Kept(sample)


class PersonalDataStep(Step):
    """Replaces e-mail addresses, public network addresses and phone numbers in every text."""

    type = "filter"
    name = "text: personal data"

    def __init__(self, kinds: Mapping[str, tuple[PersonalData, ...]]):
        super().__init__()
        self.kinds = kinds

    def judge(self, sample: Sample) -> Kept | Dropped:
        kinds = self.kinds.get(sample.source)
        if kinds is None:
            return Kept(sample)
        found: Counter[PersonalData] = Counter()
        segments = list(sample.segments)
        for i, segment in enumerate(segments):
            if segment.text:
                text, counts = replace_personal_data(segment.text, kinds)
                if counts:
                    found += counts
                    segments[i] = dataclasses.replace(segment, text=text)
        media = list(sample.media)
        for i, medium in enumerate(media):
            if medium.alt:
                text, counts = replace_personal_data(medium.alt, kinds)
                if counts:
                    found += counts
                    media[i] = dataclasses.replace(medium, alt=text)
        if not found:
            return Kept(sample)
        actions = [(f"replace {n} {kind}", "personal data") for kind, n in sorted(found.items())]
        config = ",".join(kinds)
        return Kept(noted(sample, self.name, config, actions, segments=tuple(segments), media=tuple(media)))


class ImageAddress(Step):
    """Takes images out of documents whose address says that they are decoration."""

    type = "filter"
    name = "image: address"

    def __init__(self, unwanted: Mapping[str, tuple[str, ...]]):
        super().__init__()
        self.unwanted = {source: tuple(w.lower() for w in words) for source, words in unwanted.items()}

    def judge(self, sample: Sample) -> Kept | Dropped:
        words = self.unwanted.get(sample.source)
        if words is None or sample.kind not in DOCUMENTS:
            return Kept(sample)
        cuts = []
        for i, medium in enumerate(sample.media):
            address = (medium.url or "").lower() if medium.kind == "image" else ""
            if found := next((w for w in words if w in address), None):
                cuts.append(Cut(i, "image address not wanted", f"it holds '{found}'"))
        return without_images(sample, cuts, self.name)


class ImageCount(Step):
    """Drops documents of too few or too many images; other samples have the images that they need."""

    type = "filter"
    name = "document: images"

    def __init__(self, configs: Mapping[str, FilterConfig]):
        super().__init__()
        self.configs = configs

    def judge(self, sample: Sample) -> Kept | Dropped:
        config = self.configs.get(sample.source)
        if config is None or sample.kind not in DOCUMENTS:
            return Kept(sample)
        images = sum(s.type == "image" for s in sample.segments)
        if config.min_images is not None and images < config.min_images:
            return Dropped("too few images", f"{images} images, at least {config.min_images} are wanted")
        if config.max_images is not None and images > config.max_images:
            return Dropped("too many images", f"{images} images, at most {config.max_images} are wanted")
        return Kept(sample)
