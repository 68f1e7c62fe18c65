"""Numbers about a text: pure functions, defined as those that the published thresholds were made for."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

import numpy as np

CHAR_NGRAM = 10
WORD_NGRAM = 5
_WORD = re.compile(r"[^\W\d_](?:\S*[^\W\d_])?")  # from the first to the last letter between white space
_SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]*(?=\s|$)|[。！？]")
_MARK = re.compile(r"[!-/:-@\[-`{-~¡¿«»‘’“”…–—、。，！？：；（）「」]")
_TOKEN = re.compile(r"[\w']+")
_BASE = 0x9E3779B97F4A7C15  # odd: multiplication by its powers spreads over 64 bits


def words(text: str) -> tuple[str, ...]:
    """What white space separates, in lower case, without the non-letters around; no letter, no word."""
    return _short_words(text) if len(text) <= 8000 else _long_words(text)


def _split(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


# Every rule asks for the words of the same texts again. Two caches bound the memory: under 100 MB of
# paragraphs, and the last two long texts.
_short_words = lru_cache(1024)(_split)
_long_words = lru_cache(2)(_split)


def sentences(text: str) -> int:
    """Sentences that are ended by a mark; text after the last mark is one more."""
    ends = [m.end() for m in _SENTENCE.finditer(text)]
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def punctuation(text: str) -> tuple[float, int]:
    """Marks / (words + marks), and that sum. A mark stands alone; an apostrophe within a word is none."""
    tokens = _TOKEN.findall(text)
    marks = len(_MARK.findall(text)) - sum(t.count("'") + t.count("_") for t in tokens)
    total = len(tokens) + marks
    return (marks / total if total else 0.0), total


def special(text: str) -> float:
    """Share of the characters that are no letters: white space, digits, marks, symbols."""
    if text.isascii():  # counted by `translate`, ten times as fast as by a loop
        return 1 - len(text.translate(_NO_SPECIAL)) / len(text) if text else 0.0
    return sum(not c.isalpha() for c in text) / len(text)


_NO_SPECIAL = {c: None for c in range(128) if not chr(c).isalpha()}


def share(of: Sequence[str], among: Collection[str]) -> float:
    """Share of the words that are in a list."""
    return sum(w in among for w in of) / len(of) if of else 0.0


def char_repetition(text: str, n: int = CHAR_NGRAM) -> float:
    """Occurrences of the most frequent repeated n-grams of characters / all occurrences.

    Of d distinct n-grams the sqrt(d) most frequent count, and only those that come twice or more.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    total = len(codes) - n + 1
    if total < 1:
        return 0.0
    hashes = np.zeros(total, dtype=np.uint64)
    for k in range(n):
        hashes = hashes * np.uint64(_BASE) + codes[k : k + total]
    hashes.sort()
    starts = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1])))
    counts = np.diff(starts, append=total)
    repeated = np.sort(counts[counts > 1])[::-1]
    return float(repeated[: int(len(counts) ** 0.5)].sum() / total)


def word_repetition(of: Sequence[str], n: int = WORD_NGRAM) -> float:
    """Share of the n-grams of words that come twice or more."""
    counts = Counter(ngrams(of, n)).values()
    return sum(c for c in counts if c > 1) / sum(counts) if counts else 0.0


def ngrams(of: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(of[k:] for k in range(n)), strict=False)


def duplicates(pieces: Sequence[str]) -> tuple[float, int]:
    """Share of the pieces that came before, and their characters."""
    seen: set[str] = set()
    count = chars = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            chars += len(piece)
        seen.add(piece)
    return (count / len(pieces) if pieces else 0.0), chars


def top_ngram_chars(of: Sequence[str], n: int) -> int:
    """Characters, spaces between words included, in all occurrences of the most frequent n-gram."""
    counts = Counter(ngrams(of, n))
    if not counts:
        return 0
    top, count = max(counts.items(), key=lambda item: item[1])
    return (sum(map(len, top)) + n - 1) * count


def repeated_ngram_chars(of: Sequence[str], n: int) -> int:
    """Characters in n-grams that came before; those that overlap are counted once."""
    seen: set[tuple[str, ...]] = set()
    chars = at = 0
    while at <= len(of) - n:
        gram = tuple(of[at : at + n])
        if gram in seen:
            chars += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return chars
