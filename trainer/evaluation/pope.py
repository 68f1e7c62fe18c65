"""POPE: does the model say "yes" to objects that are not there?

Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models". An answer counts as the
benchmark's own program reads it: as no where its first sentence has one of the words No, no and not, else as
yes.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from trainer.evaluation.intervals import Array, Scored, ratio

_DENIALS = frozenset({"No", "not", "no"})


def says_yes(answer: str) -> bool:
    """Words are what single spaces separate: the "NO" and the "no\\n" of a chatty model are yeses."""
    first_sentence = answer.split(".")[0]
    return _DENIALS.isdisjoint(first_sentence.replace(",", "").split(" "))


def score_pope(answers: Sequence[str], truths: Sequence[bool], units: Sequence[Hashable]) -> Scored:
    """`truths`: whether the right answer is yes. A share whose denominator is 0 (no "yes" at all) is 0."""
    said, true = np.array([says_yes(a) for a in answers]), np.array(truths, dtype=bool)
    terms = np.stack([said & true, said & ~true, ~said & ~true, ~said & true], axis=1).astype(np.float64)
    values = {name: float(value) for name, value in _of_sums(terms.sum(axis=0)).items()}
    return Scored(values, terms, units, _of_sums)


def _of_sums(sums: Array) -> dict[str, Array]:
    hits, false_alarms, rejections, misses = (sums[..., i] for i in range(4))
    precision, recall = ratio(hits, hits + false_alarms), ratio(hits, hits + misses)
    n = sums.sum(axis=-1)
    return {
        "accuracy": ratio(hits + rejections, n),
        "precision": precision,
        "recall": recall,
        "F1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(hits + false_alarms, n),
    }
