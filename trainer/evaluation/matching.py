"""Exact and contains match: an answer against its right ones as texts.

exact     the answer is a right one, apart from space around it
folded    the same, apart from case, runs of space and a full stop at the end
contains  a right one stands in the answer, apart from case and line breaks (OCRBench's rule; Liu et al. 2023)
"""

from collections.abc import Hashable, Sequence

import numpy as np

from trainer.evaluation.intervals import Scored, means


def exact(answer: str, truths: Sequence[str]) -> bool:
    return answer.strip() in {t.strip() for t in truths}


def folded(answer: str, truths: Sequence[str]) -> bool:
    return _fold(answer) in {_fold(t) for t in truths}


def contains(answer: str, truths: Sequence[str]) -> bool:
    return any(_one_line(t) in _one_line(answer) for t in truths)


def score_exact(answers: Sequence[str], truths: Sequence[Sequence[str]], units: Sequence[Hashable]) -> Scored:
    pairs = list(zip(answers, truths, strict=True))
    return _shares({"exact": [exact(*p) for p in pairs], "folded": [folded(*p) for p in pairs]}, units)


def score_contains(
    answers: Sequence[str], truths: Sequence[Sequence[str]], units: Sequence[Hashable]
) -> Scored:
    return _shares({"contains": [contains(a, t) for a, t in zip(answers, truths, strict=True)]}, units)


def _shares(right: dict[str, list[bool]], units: Sequence[Hashable]) -> Scored:
    terms = np.array([*right.values(), [1] * len(units)], dtype=np.float64).T
    return Scored({k: sum(v) / len(v) for k, v in right.items()}, terms, units, means(list(right)))


def _fold(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


def _one_line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")
