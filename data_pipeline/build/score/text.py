"""Scores of the text alone, on the CPU and without a model: what published filters of text look at."""

from collections.abc import Iterable, Sequence

from data_pipeline.build.score.scorer import Score
from data_pipeline.build.synthesize.checks import repetition, words
from data_pipeline.sample import Sample


class TextScorer:
    """Of each sample's whole text. Gopher (arXiv 2112.11446, Table A1) keeps 50 to 100,000 words, a mean
    word length of 3 to 10 and documents in which 80 % of the words hold a letter."""

    name = "text"
    version = "1"
    columns = ("text_words", "text_word_length", "text_alpha", "text_repetition")
    reads_images = False

    def score(self, samples: Sequence[Sample]) -> Iterable[Score]:
        for sample in samples:
            tokens = sample.text.split()
            if not tokens:
                continue
            values = {
                "text_words": len(tokens),
                "text_word_length": sum(map(len, tokens)) / len(tokens),
                "text_alpha": sum(any(c.isalpha() for c in t) for t in tokens) / len(tokens),
                "text_repetition": repetition(sample.text),
            }
            for column, value in values.items():
                yield Score(column, sample.id, None, float(value))


class CaptionScorer:
    """Of each image of a caption sample, by its longest caption: words, and the share of them that differ.
    DataComp's basic filter (arXiv 2304.14108) keeps captions of more than 2 words."""

    name = "captions"
    version = "1"
    columns = ("caption_words", "caption_distinct")
    reads_images = False

    def score(self, samples: Sequence[Sample]) -> Iterable[Score]:
        for sample in samples:
            texts = [(len(words(s.text)), n) for n, s in enumerate(sample.segments) if s.text]
            if sample.kind != "caption" or not texts:
                continue
            count, segment = max(texts, key=lambda t: (t[0], -t[1]))
            tokens = words(sample.segments[segment].text or "")
            for media in sample.media:
                yield Score("caption_words", sample.id, media.media_id, float(count), segment)
                if tokens:
                    distinct = len(set(tokens)) / len(tokens)
                    yield Score("caption_distinct", sample.id, media.media_id, distinct, segment)
