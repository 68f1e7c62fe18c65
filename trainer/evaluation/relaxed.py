"""Relaxed accuracy, the score of ChartQA and PlotQA: a number may be off by 5 %, a text not at all.

Masry et al. 2022, "ChartQA", section 5.1. The paper came without a program; this is the rule of Pix2Struct,
which Qwen-VL's and lmms-eval's evaluations share: "12%" is the number 0.12 (so 12 is not 12%), a text is what
Python does not read as a number ("1,200"), and a truth of 0 is compared as a text.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from trainer.evaluation.intervals import Scored, means

TOLERANCE = 0.05


def relaxed_match(answer: str, truth: str) -> bool:
    """Whether the answer is within 5 % of the truth, or the same text apart from case."""
    number, true_number = _number(answer), _number(truth)
    if number is not None and true_number:
        return abs(number - true_number) / abs(true_number) <= TOLERANCE
    return answer.lower() == truth.lower()


def score_relaxed(answers: Sequence[str], truths: Sequence[str], units: Sequence[Hashable]) -> Scored:
    """The share of questions answered right."""
    right = [float(relaxed_match(a, t)) for a, t in zip(answers, truths, strict=True)]
    terms = np.array([[r, 1.0] for r in right])
    return Scored({"relaxed": sum(right) / len(right)}, terms, units, means(["relaxed"]))


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
