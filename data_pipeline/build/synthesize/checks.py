"""Checks of a written text, as scores in `Sample.scores`. None looks at the pixels.

What a score measures is said at its function. Only `verdict` drops, and only by the recipe's limits.
"""

import re
from collections.abc import Sequence
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from data_pipeline.build.synthesize.contradiction import contradictions, unsupported
from data_pipeline.build.synthesize.source import KeepLimits

WORD = re.compile(r"\w+(?:'\w+)?")
_REFUSAL_HEAD = 240  # characters: a refusal comes first, later the same words may be part of a description
_REFUSALS = re.compile(
    r"\bas an ai\b|\bas a language model\b|\bi(?:'m| am) (?:just |only )?an ai\b"
    r"|\bi(?:'m| am) (?:very |so )?(?:sorry|afraid),? (?:but )?i\b"
    r"|\bi (?:can(?:'t|not|not)|could ?n(?:'t|ot)|am unable to|'m unable to|am not able to|'m not able to) "
    r"(?:\w+ ){0,2}(?:assist|help|provide|comply|describe|identify|see|view|analy[sz]e|process|fulfill?)\b"
    r"|\bi do(?:n't| not) (?:see|have|find) (?:access to )?(?:an?|any|the) images?\b"
    r"|\bno image (?:was |is |has been )?(?:provided|attached|visible|uploaded)\b"
    r"|\bplease (?:provide|upload|attach|share) (?:an?|the|your) image\b"
    r"|\bich kann (?:\w+ ){0,3}(?:nicht|leider nicht) (?:helfen|beschreiben)\b"
    r"|\bje ne (?:peux|suis) pas (?:en mesure|décrire|vous aider)\b"
    r"|\bno puedo (?:ayudar|describir|ver)\b"
)


def refusal(text: str) -> float:
    """1 where the text begins by refusing or by saying that there is no image, else 0: a table of phrases."""
    head = text[:_REFUSAL_HEAD].replace("’", "'").lower()
    return float(bool(_REFUSALS.search(head)))


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def repetition(text: str, n: int = 3) -> float:
    """Share of word n-grams that were there before: 1 - distinct-n (Li et al. 2016, arXiv 1510.03055).

    A text of fewer than 2n words is judged by its single words.
    """
    tokens = words(text)
    n = n if len(tokens) >= 2 * n else 1
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def copied(text: str, originals: Sequence[str], n: int = 4) -> float:
    """The largest share of the text's word n-grams that stand in one of `originals`.

    A text of fewer than n words counts as copied where it stands in one of them word for word.
    """
    tokens = words(text)
    n = min(n, len(tokens))
    if n == 0:
        return 0.0
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    best = 0.0
    for original in originals:
        there = words(original)
        theirs = set(zip(*(there[i:] for i in range(n)), strict=False))
        best = max(best, sum(g in theirs for g in grams) / len(grams))
    return best


def language(text: str, expected: str) -> float:
    """The probability, by py3langid, that the text is in `expected` (ISO 639-1). Weak below 5 words."""
    return float(next((p for code, p in _identifier().rank(text) if code == expected), 0.0))


def agreement(texts: Sequence[str]) -> list[float]:
    """For each text, its mean likeness to the others: F1 of their words as sets. High where a model says
    the same each time, which a firm error does too (after SelfCheckGPT, arXiv 2303.08896)."""
    bags = [set(words(t)) for t in texts]

    def likeness(a: set[str], b: set[str]) -> float:
        return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0

    return [
        sum(likeness(a, b) for j, b in enumerate(bags) if j != i) / max(1, len(bags) - 1)
        for i, a in enumerate(bags)
    ]


def scores(
    text: str, originals: Sequence[str], prompt: str, *, cut: bool, expected_language: str | None
) -> dict[str, float]:
    """All checks of one text. `originals`: what the parent says about the image; may be none."""
    found = {
        "words": float(len(words(text))),
        "refusal": refusal(text),
        "truncated": float(cut),
        "repetition": repetition(text),
        "copy": copied(text, [*originals, prompt]),
    }
    if originals:
        original = "\n".join(originals)
        found["contradictions"] = float(contradictions(text, original))
        found["unsupported"] = unsupported(text, original)
    if expected_language is not None:
        found["language"] = language(text, expected_language)
    return found


def verdict(text: str, found: dict[str, float], keep: KeepLimits) -> tuple[str, str] | None:
    """(reason, detail) where a limit drops the text, else None."""
    if not text.strip():
        return "empty answer", "the answer holds no text"
    if len(text) > keep.max_chars:
        return "answer too long", f"{len(text):,} characters, keep.max_chars is {keep.max_chars:,}"
    if found["refusal"] and not keep.refusals:
        return "refusal", "the answer begins with a refusal"
    if found["truncated"] and not keep.truncated:
        return "answer cut off", "the answer ended at max_tokens"
    if found["words"] < keep.min_words:
        return "answer too short", f"{found['words']:.0f} words, keep.min_words is {keep.min_words}"
    limits = (  # score, limit, whether the limit is a minimum, reason
        ("repetition", keep.max_repetition, False, "repetition above the limit"),
        ("copy", keep.max_copy, False, "copy of the input"),
        ("contradictions", keep.max_contradictions, False, "contradicts the caption"),
        ("unsupported", keep.max_unsupported, False, "objects beyond the caption"),
        ("language", keep.min_language, True, "another language"),
        ("agreement", keep.min_agreement, True, "answers disagree"),
    )
    for name, limit, is_minimum, reason in limits:
        value = found.get(name)
        if limit is None or value is None:
            continue
        if value < limit if is_minimum else value > limit:
            return reason, f"{name} is {value:.3g}, the limit is {limit:g}"
    return None


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
