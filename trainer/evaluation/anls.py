"""ANLS, the score of DocVQA, ST-VQA and InfographicVQA: how near, letter by letter, is a right answer?

Biten et al. 2019, "Scene Text Visual Question Answering", equation 1. The programs that count it differ:

    ANLS         DocVQA's and InfographicVQA's own program, and lmms-eval: case and runs of space are folded,
                 the length is that of the text before folding, and a similarity of exactly 0.5 counts
    ANLS_st_vqa  ST-VQA's own program, the first version: only case is folded
    ANLS_paper   the equation: the length is that of the folded text, and exactly 0.5 does not count
"""

from collections.abc import Hashable, Sequence

import numpy as np

from trainer.evaluation.intervals import Scored, means

THRESHOLD = 0.5
VARIANTS = ("ANLS", "ANLS_st_vqa", "ANLS_paper")


def anls(answer: str, truths: Sequence[str], variant: str = "ANLS") -> float:
    """Similarity of an answer to the nearest truth, from 0 to 1; 0 where it is below the threshold."""
    if not truths:
        raise ValueError("a question without a right answer has no ANLS")
    return max(_similarity(answer, truth, variant) for truth in truths)


def score_anls(answers: Sequence[str], truths: Sequence[Sequence[str]], units: Sequence[Hashable]) -> Scored:
    """The mean over questions, in each variant."""
    terms = np.array(
        [[*(anls(a, t, v) for v in VARIANTS), 1.0] for a, t in zip(answers, truths, strict=True)]
    )
    totals = {name: sum(terms[:, i].tolist()) / len(terms) for i, name in enumerate(VARIANTS)}
    return Scored(totals, terms, units, means(VARIANTS))


def _similarity(answer: str, truth: str, variant: str) -> float:
    a, t = answer.lower(), truth.lower()
    if variant != "ANLS_st_vqa":
        a, t = " ".join(a.split()), " ".join(t.split())
    length = max(len(a), len(t)) if variant == "ANLS_paper" else max(len(answer.upper()), len(truth.upper()))
    distance = levenshtein(a, t) / length if length else 0.0
    counts = distance < THRESHOLD if variant == "ANLS_paper" else 1 - distance >= THRESHOLD
    return 1 - distance if counts else 0.0


def levenshtein(a: str, b: str) -> int:
    """Least number of letters to insert, delete or replace."""
    if a == b:
        return 0
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
