"""VQA accuracy, quirks included, by one of two rules; a rule that tidies them up is a third metric.

    official  the VQA challenge's own program. Answers are normalised only where the annotators differ.
    lmms      EvalAI's, in mmf and in lmms-eval's tasks TextVQA, OK-VQA and VizWiz. It always normalises,
              drops every comma and question mark, and cuts off "'s". (lmms-eval's task VQAv2 mixes the two.)

Antol et al. 2015, "VQA: Visual Question Answering"; Goyal et al. 2017 (VQA v2).
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from trainer.evaluation.intervals import Scored, means

AGREEING = 3
"""So many of the other annotators make an answer fully right."""

# No colon: "1:26" and "1 26" are two answers, as the reference scores on TextVQA say.
_MARKS = frozenset(';/[]"{}()=+\\_-><@`,?!')
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The official program passes a regex flag where the count belongs: it stops after so many periods.
_MOST_PERIODS = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(n)
    for n, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1
    )
}


def _contractions() -> dict[str, str]:
    """The official table: a word that lacks an apostrophe -> the word with it.

    Where a contraction has several apostrophes, each may be the missing one. The table is not complete, and
    must stay so: `shes`, `Im` and `hasntve` are not in it. (Its entries on `I` never match lower-case text.)
    """
    whole = """
        ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
        he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
        mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
        shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
        something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
        they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
        where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
        wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
    """
    table = {word[:i] + word[i + 1 :]: word for word in whole.split() for i, c in enumerate(word) if c == "'"}
    # The official table has this one the wrong way round.
    return table | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _contractions()


def question_accuracy(answer: str, truths: Sequence[str], rule: str = "official") -> float:
    """Accuracy of one answer, 0..1: 1, 2, 3, 4 or more agreeing annotators of ten make .3, .6, .9, 1."""
    if rule == "lmms":
        answer, truths = _normalise_always(answer), [_normalise_always(t) for t in truths]
    else:
        answer, truths = _one_line(answer), [_one_line(t) for t in truths]
        # Where all annotators wrote the same, nothing is normalised, not even case.
        if len(set(truths)) > 1:
            answer, truths = _normalise(answer), [_normalise(t) for t in truths]
    matches = truths.count(answer)
    # Each annotator in turn is left out, by index: one who agrees sees one match fewer.
    left_out = [min(1.0, (matches - (t == answer)) / AGREEING) for t in truths]
    return sum(left_out) / len(truths)


def vqa_accuracy(
    predictions: Mapping[Any, str], annotations: Sequence[Mapping[str, Any]], rule: str = "official"
) -> dict[str, Any]:
    """Percent: {"overall", "per_answer_type", "per_question_type"}; two decimals, by the lmms rule four.

    `predictions` maps question_id to the answer. An annotation is one of the challenge's own files:
    {"question_id", "answers": [{"answer"}, ...] or plain strings, "answer_type", "question_type"}; without a
    type it counts in no group.
    """
    return score_vqa(predictions, annotations, [a["question_id"] for a in annotations], rule).values


def score_vqa(
    predictions: Mapping[Any, str],
    annotations: Sequence[Mapping[str, Any]],
    units: Sequence[Hashable],
    rule: str = "official",
) -> Scored:
    """`vqa_accuracy`, and what the interval of `overall` needs; `units[i]`: the picture of question i."""
    if not annotations:
        raise ValueError("no questions: expected at least one annotation")
    every: list[float] = []
    by_type: dict[str, dict[str, list[float]]] = {"answer_type": {}, "question_type": {}}
    for annotation in annotations:
        truths = [a if isinstance(a, str) else a["answer"] for a in annotation["answers"]]
        accuracy = question_accuracy(predictions[annotation["question_id"]], truths, rule)
        every.append(accuracy)
        for kind, groups in by_type.items():
            if kind in annotation:
                groups.setdefault(annotation[kind], []).append(accuracy)

    percent = _percent(4 if rule == "lmms" else 2)
    values = {
        "overall": percent(every),
        "per_answer_type": {k: percent(v) for k, v in sorted(by_type["answer_type"].items())},
        "per_question_type": {k: percent(v) for k, v in sorted(by_type["question_type"].items())},
    }
    terms = np.array([every, [1.0] * len(every)]).T
    return Scored(values, terms, units, means(["overall"], scale=100.0))


def _percent(digits: int) -> Callable[[Sequence[float]], float]:
    return lambda accuracies: round(100 * sum(accuracies) / len(accuracies), digits)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


# Few answers are written often: "yes" alone is a fifth of VQA v2.
@lru_cache(maxsize=1 << 16)
def _normalise(text: str) -> str:
    words = [_NUMBERS.get(w, w) for w in _without_punctuation(text).lower().split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def _normalise_always(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _normalise(_one_line(text))


def _without_punctuation(text: str) -> str:
    # Asked of the original text, for every mark: "1,000-yard" loses its hyphen because of its comma.
    digits = _DIGIT_COMMA_DIGIT.search(text) is not None
    out = text
    for mark in _MARKS.intersection(text):
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if digits or beside_space else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)
