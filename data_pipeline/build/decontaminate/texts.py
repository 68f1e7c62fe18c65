"""Benchmark items whose words stand in a dataset: shared n-grams, and short items word for word."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from data_pipeline.build.decontaminate.benchmark import Item
from data_pipeline.build.decontaminate.config import TextSearch
from data_pipeline.build.dedup.corpus import Corpus

# Scripts without spaces between words: each character stands for a word.
_WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+"
)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_FOUND = np.dtype([("row", "<i8"), ("gram", "<u8")])

Span = tuple[int, int]  # characters, end not included


@dataclass(frozen=True)
class TextHit:
    """A sample that holds an item, or part of it; `spans` and `item_spans` are what they have in common."""

    row: int
    item: int
    shared: int  # n-grams of the item that the sample holds; 0: the whole of a short item
    coverage: float  # share of the item's n-grams
    spans: tuple[Span, ...]
    item_spans: tuple[Span, ...]


@dataclass(frozen=True)
class Words:
    """Words of a text in lower case, where each stands, and the hash uint64 of every run of n."""

    words: list[str]
    spans: list[Span]
    grams: np.ndarray


def words_of(text: str, n: int) -> Words:
    found = [(m.group().lower(), m.span()) for m in _WORD.finditer(text)]
    words = [w for w, _ in found]
    return Words(words, [s for _, s in found], _grams(words, n))


class TextIndex:
    """The items of a benchmark by their n-grams; templates of the benchmark itself are left out."""

    def __init__(self, items: Sequence[Item], config: TextSearch):
        self.items = items
        self.config = config
        self.too_short = 0
        self._whole: dict[int, list[int]] = defaultdict(list)
        owners: dict[int, set[int]] = defaultdict(set)
        self._grams_of: list[set[int]] = []
        for i, item in enumerate(items):
            words = words_of(item.text, config.ngram)
            self._grams_of.append(set(words.grams.tolist()))
            if len(words.words) < config.min_words:
                self.too_short += 1
            elif len(words.grams) == 0:
                self._whole[_key(words.words)].append(i)
            for gram in self._grams_of[-1]:
                owners[gram].add(i)
        self._owners = {g: sorted(o) for g, o in owners.items() if len(o) <= config.max_items}
        self._sorted = np.sort(np.fromiter(self._owners, np.uint64, len(self._owners)))

    def search(self, corpus: Corpus, work: Path) -> Iterator[TextHit]:
        """Hits in the order of the corpus. What is found first goes to disk: counts decide in the end."""
        work.mkdir(parents=True, exist_ok=True)
        counts: Counter[int] = Counter()
        with (work / "grams.bin").open("wb") as f:
            for row, _, found in corpus.rows(("id", "segments")):
                grams = self._look(_texts(found["segments"]))
                counts.update(grams)
                f.write(np.array([(row, g) for g in grams], _FOUND).tobytes())
        for row, records in groupby(_records(work / "grams.bin"), key=itemgetter(0)):
            yield from self._judge(corpus, row, [g for _, g in records], counts)
        (work / "grams.bin").unlink()

    def _look(self, texts: list[str]) -> list[int]:
        """The n-grams of the benchmark in a sample; a short item is found by the key of its words."""
        grams = words_of("\n".join(texts), self.config.ngram).grams
        hits = set()
        if len(self._sorted) and len(grams):
            at = np.minimum(np.searchsorted(self._sorted, grams), len(self._sorted) - 1)
            hits = set(grams[self._sorted[at] == grams].tolist())
        if self._whole:
            hits |= {k for u in _units(texts) if (k := _key(words_of(u, 99).words)) in self._whole}
        return sorted(hits)

    def _judge(self, corpus: Corpus, row: int, grams: list[int], counts: Counter[int]) -> Iterator[TextHit]:
        by_item: dict[int, list[int]] = defaultdict(list)
        texts = _texts(corpus.row(row, ("segments",))["segments"])
        whole = "\n".join(texts)
        for gram in grams:
            for i in self._whole.get(gram, ()):
                if (hit := self._whole_hit(row, i, texts, whole)) is not None:
                    yield hit
            for i in self._owners.get(gram, ()):
                by_item[i].append(gram)
        for i, shared in sorted(by_item.items()):
            rare = sum(counts[g] <= self.config.max_samples for g in shared)
            coverage = len(shared) / len(self._grams_of[i])
            if rare >= self.config.min_rare or coverage >= self.config.whole:
                yield from self._hit(row, i, shared, coverage, whole)

    def _hit(self, row: int, i: int, shared: list[int], coverage: float, text: str) -> Iterator[TextHit]:
        """The hit with its spans; none where only the hashes of the n-grams agree, not their words."""
        n = self.config.ngram
        sample, item = words_of(text, n), words_of(self.items[i].text, n)
        spans = _spans(sample, shared, n)
        item_spans = _spans(item, shared, n)
        said = {tuple(item.words[k : k + n]) for k in np.flatnonzero(np.isin(item.grams, _u64(shared)))}
        if any(
            tuple(sample.words[k : k + n]) in said
            for k in np.flatnonzero(np.isin(sample.grams, _u64(shared)))
        ):
            yield TextHit(row, i, len(shared), coverage, spans, item_spans)

    def _whole_hit(self, row: int, i: int, texts: list[str], text: str) -> TextHit | None:
        words = words_of(self.items[i].text, 99).words
        unit = next((u for u in _units(texts) if words_of(u, 99).words == words), None)
        if unit is None:
            return None
        start = text.find(unit)
        return TextHit(row, i, 0, 1.0, ((start, start + len(unit)),), ((0, len(self.items[i].text)),))


def _records(path: Path) -> Iterator[tuple[int, int]]:
    with path.open("rb") as f:
        while data := f.read(_FOUND.itemsize << 16):
            yield from np.frombuffer(data, _FOUND).tolist()


def _texts(segments: list[dict[str, Any]]) -> list[str]:
    return [s["text"] for s in segments if s["text"]]


def _units(texts: list[str]) -> list[str]:
    """What a short item can be the whole of: a segment, two in a row (question and answer), the sample."""
    pairs = [f"{a}\n{b}" for a, b in pairwise(texts)]
    return [*texts, *pairs, *(["\n".join(texts)] if len(texts) > 2 else [])]


def _spans(words: Words, grams: list[int], n: int) -> tuple[Span, ...]:
    """Characters that the n-grams cover, joined where they touch."""
    joined: list[Span] = []
    for k in np.flatnonzero(np.isin(words.grams, _u64(grams))).tolist():
        start, end = words.spans[k][0], words.spans[k + n - 1][1]
        if joined and start <= joined[-1][1]:
            start = joined.pop()[0]
        joined.append((start, end))
    return tuple(joined)


def _grams(words: list[str], n: int) -> np.ndarray:
    """uint64[max(0, words - n + 1)]: a polynomial of the words' hashes, so that each n-gram costs little."""
    if len(words) < n:
        return np.empty(0, np.uint64)
    hashes = _u64([_word(w) for w in words])
    result = np.zeros(len(words) - n + 1, np.uint64)
    for k in range(n):
        result *= _FACTOR
        result += hashes[k : k + len(result)]
    return result


@lru_cache(maxsize=1 << 18)
def _word(word: str) -> int:
    return int.from_bytes(blake3(word.encode(errors="surrogatepass")).digest(length=8), "little")


def _key(words: list[str]) -> int:
    return _word("\n" + " ".join(words))


def _u64(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)
