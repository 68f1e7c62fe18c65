"""MMMU's accuracy: a letter or a short answer, found in free text as the benchmark's own program finds it.

Yue et al. 2024, "MMMU: A Massive Multi-discipline Multimodal Understanding and Reasoning Benchmark";
github.com/MMMU-Benchmark/MMMU. One thing differs, and on purpose: where no letter is found the program draws
one at random, and here the answer is wrong.
"""

import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from trainer.evaluation.intervals import Scored, means

MULTIPLE_CHOICE = "multiple-choice"
_EDGES = (",", ".", "!", "?", ";", ":", "'")
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(_EDGES)
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_LONG = 5
"""An answer of more words than this may spell its option out instead of naming its letter."""


def chosen_letter(response: str, options: Mapping[str, str | None]) -> str | None:
    """The option that a response names last: in brackets, else alone, else by its text; None: it names none.

    `options`: {"A": "a red cube", ...}; a text of None is not looked for.
    """
    for edge in _EDGES:
        response = response.strip(edge)
    response = f" {response} "
    for form in ("({})", " {} "):
        places = {o: response.rfind(form.format(o)) for o in options}
        if found := _last(places):
            return found
    if len(response.split()) <= _LONG:
        return None
    lowered = response.lower()
    return _last({o: lowered.rfind(text.lower()) for o, text in options.items() if text is not None})


def open_answers(response: str) -> set[str | float]:
    """All that may be the answer: the ends of the lines after words such as "is", and the numbers in them."""
    ends = _ends(response)
    return {n for text in [*ends, *(n for end in ends for n in _numbers(end))] for n in _normal(text)}


def is_right(response: str, truth: str | Sequence[str], options: Mapping[str, str | None] | None) -> bool:
    """`options` is None for an open question."""
    truths = [truth] if isinstance(truth, str) else truth
    if options is not None:
        return chosen_letter(response, options) in truths
    right = {n for t in truths for n in _normal(t)}
    return any(
        a in right if isinstance(a, float) else any(isinstance(r, str) and r in a for r in right)
        for a in open_answers(response)
    )


def score_mmmu(right: Sequence[bool], subjects: Sequence[str], units: Sequence[Hashable]) -> Scored:
    """Shares, over all questions and by subject."""
    by_subject: dict[str, list[bool]] = {}
    for subject, r in zip(subjects, right, strict=True):
        by_subject.setdefault(subject, []).append(r)
    values = {
        "accuracy": sum(right) / len(right),
        "per_subject": {s: sum(rs) / len(rs) for s, rs in sorted(by_subject.items())},
    }
    terms = np.array([[float(r), 1.0] for r in right])
    return Scored(values, terms, units, means(["accuracy"]))


def subject_of(question_id: str) -> str:
    """validation_Art_Theory_12 -> Art_Theory."""
    return "_".join(question_id.split("_")[1:-1])


def _last(places: Mapping[str, int]) -> str | None:
    """The option that stands last; of options at one place, the first of the list."""
    found = {option: place for option, place in places.items() if place >= 0}
    return max(found, key=lambda option: found[option]) if found else None


def _ends(response: str) -> list[str]:
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    ends = []
    for i, line in enumerate(lines):
        # The last line may be an equation.
        leads = (*_LEADS, "=") if i == len(lines) - 1 else _LEADS
        shortest = ""
        for end in (line.split(lead)[-1].strip() for lead in leads if lead in line):
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in _TRIVIAL:
            ends.append(shortest)
    return ends or [response]


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in pattern.findall(text)]


def _normal(text: str) -> list[str | float]:
    """A number to two decimals; a text in lower case, a single letter with a space on either side of it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
