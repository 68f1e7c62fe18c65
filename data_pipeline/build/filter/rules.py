"""One function per concern: a text and its limits in, the reason for refusing it out.

`RULES` is the order in which they are asked: the cheap ones, and those that refuse most, first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from data_pipeline.build.filter import measure
from data_pipeline.build.filter.config import FilterConfig, Repetition, TextLimits
from data_pipeline.errors import ConfigError


@dataclass(frozen=True)
class Refused:
    """`reason` is a closed phrase, the funnel's key; `detail` says found and allowed."""

    reason: str
    detail: str


@dataclass(frozen=True)
class WordLists:
    """The lists that a source's rules ask; one that is empty is not asked."""

    stop: frozenset[str]
    common: frozenset[str] = field(default=frozenset())
    flagged: frozenset[str] = field(default=frozenset())
    spam: frozenset[str] = field(default=frozenset())


Judge = Callable[[str, TextLimits, WordLists], Refused | None]


@dataclass(frozen=True)
class Rule:
    """`keys`: the limits that it reads, `needs`: the list of words; without them there is no step for it."""

    name: str
    keys: tuple[str, ...]
    judge: Judge
    needs: str | None = None


def word_lists(config: FilterConfig, root: Path) -> WordLists:
    """The lists of a source, read from its files. Raises ConfigError for a file that cannot be read."""
    files = {"stop": config.stop_words, "common": config.common_words}
    files |= {"flagged": config.flagged_words, "spam": config.spam_words}
    found = {name: _read(root / file) for name, file in files.items() if file is not None}
    return WordLists(**{"stop": english_function_words(), **found})


@cache
def english_function_words() -> frozenset[str]:
    """Articles, pronouns, prepositions, conjunctions, auxiliaries and the like: the default stop words."""
    return _read(Path(__file__).parent / "english.txt")


def _read(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"word list {path} cannot be read: {e}\n  One word a line, UTF-8.") from None
    return frozenset(line.strip().lower() for line in lines if line.strip())


def characters(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    return _between(len(text), limits.min_chars, limits.max_chars, "characters")


def words(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    return _between(len(measure.words(text)), limits.min_words, limits.max_words, "words")


def sentences(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    return _between(measure.sentences(text), limits.min_sentences, limits.max_sentences, "sentences")


def punctuation(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    found, of = measure.punctuation(text)
    if of < limits.punctuation_from:
        return None
    return _at_least(found, limits.min_punctuation, "too little punctuation")


def special(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    return _at_most(measure.special(text), limits.max_special, "too many special characters")


def stop_words(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    found = measure.share(measure.words(text), lists.stop)
    return _at_least(found, limits.min_stop_words, "too few stop words")


def common_words(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    found = measure.share(measure.words(text), lists.common)
    return _at_least(found, limits.min_common_words, "too few common words")


def flagged_words(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    found = measure.share(measure.words(text), lists.flagged)
    return _at_most(found, limits.max_flagged_words, "too many flagged words")


def spam_words(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    found = measure.share(measure.words(text), lists.spam)
    return _at_most(found, limits.max_spam_words, "too many spam words")


def repetition(text: str, limits: TextLimits, lists: WordLists) -> Refused | None:
    if limits.max_word_repetition is not None:
        found = measure.word_repetition(measure.words(text))
        if refused := _at_most(found, limits.max_word_repetition, "repeated words"):
            return refused
    if limits.max_char_repetition is not None:
        return _at_most(measure.char_repetition(text), limits.max_char_repetition, "repeated characters")
    return None


RULES: tuple[Rule, ...] = (
    Rule("characters", ("min_chars", "max_chars"), characters),
    Rule("words", ("min_words", "max_words"), words),
    Rule("sentences", ("min_sentences", "max_sentences"), sentences),
    Rule("special characters", ("max_special",), special),
    Rule("punctuation", ("min_punctuation",), punctuation),
    Rule("stop words", ("min_stop_words",), stop_words),
    Rule("common words", ("min_common_words",), common_words, needs="common"),
    Rule("flagged words", ("max_flagged_words",), flagged_words, needs="flagged"),
    Rule("spam words", ("max_spam_words",), spam_words, needs="spam"),
    Rule("repetition", ("max_word_repetition", "max_char_repetition"), repetition),
)


def duplicates(pieces: Sequence[str], limits: Repetition) -> Refused | None:
    """Gopher's rule on the pieces of text of one document: lines, paragraphs and n-grams that come again."""
    text = "\n".join(pieces)
    if not text:
        return None
    lines = [line for line in text.split("\n") if line.strip()]
    for (count, chars), most, most_chars, what in (
        (measure.duplicates(pieces), limits.max_paragraphs, limits.max_paragraph_chars, "paragraphs"),
        (measure.duplicates(lines), limits.max_lines, limits.max_line_chars, "lines"),
    ):
        refused = _at_most(count, most, f"repeated {what}")
        if refused := refused or _at_most(chars / len(text), most_chars, f"repeated {what}"):
            return refused
    words = measure.words(text)
    for n, most in sorted(limits.top_ngrams.items()):
        found = measure.top_ngram_chars(words, n) / len(text)
        if refused := _at_most(found, most, "frequent n-gram", f" ({n} words)"):
            return refused
    for n, most in sorted(limits.repeated_ngrams.items()):
        found = measure.repeated_ngram_chars(words, n) / len(text)
        if refused := _at_most(found, most, "repeated n-grams", f" ({n} words)"):
            return refused
    return None


def _between(found: int, low: int | None, high: int | None, what: str) -> Refused | None:
    if low is not None and found < low:
        return Refused(f"too few {what}", f"{found:,} {what}, at least {low:,} are wanted")
    if high is not None and found > high:
        return Refused(f"too many {what}", f"{found:,} {what}, at most {high:,} are wanted")
    return None


def _at_most(found: float, limit: float | None, reason: str, more: str = "") -> Refused | None:
    if limit is None or found <= limit:
        return None
    return Refused(reason, f"a share of {found:.3f}{more}, at most {limit:g} is allowed")


def _at_least(found: float, limit: float | None, reason: str) -> Refused | None:
    if limit is None or found >= limit:
        return None
    return Refused(reason, f"a share of {found:.3f}, at least {limit:g} is wanted")
