"""From the kept answers to a score: over all samples or not at all, beside the blind one, with intervals."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.anls import score_anls
from trainer.evaluation.captioning import score_captions
from trainer.evaluation.classification import score_classification
from trainer.evaluation.intervals import Array, Scored, compare, intervals, ratio
from trainer.evaluation.matching import score_exact
from trainer.evaluation.mmmu import chosen_letter, is_right, score_mmmu
from trainer.evaluation.pope import says_yes, score_pope
from trainer.evaluation.relaxed import score_relaxed
from trainer.evaluation.retrieval import score_retrieval
from trainer.evaluation.sampling import until_stop
from trainer.evaluation.store import Record
from trainer.evaluation.task import LIKELIHOOD, Metric, Task
from trainer.evaluation.vqa import score_vqa

PRIMARY: dict[Metric, str] = {
    "captions": "CIDEr",
    "vqa": "overall",
    "vqa-lmms": "overall",
    "anls": "ANLS",
    "relaxed": "relaxed",
    "exact": "folded",
    "choice": "accuracy",
    "circular": "circular",
    "pope": "accuracy",
    "classification": "top1",
    "retrieval": "image_retrieval_recall@1",
}
"""The value that a comparison and a line on the screen show."""


@dataclass(frozen=True)
class Said:
    """The records of one side: with their own pictures, or blind."""

    metric: Metric
    stop: tuple[str, ...]
    blind: bool = False

    def text(self, record: Record) -> str:
        return until_stop(record["blind_raw" if self.blind else "raw"], self.stop).strip()


def parsed(said: Said, record: Record) -> str | None:
    """The answer as the metric reads it; None where no choice is named."""
    text = said.text(record)
    if said.metric in ("choice", "circular") and (choices := _choices(record)):
        return chosen_letter(text, choices)
    if said.metric == "pope":
        return "yes" if says_yes(text) else "no"
    return text


def scored(said: Said, records: Sequence[Record], owners: Sequence[int] = ()) -> Scored:
    """The metric over records, in their order. `owners`: the picture of each text, for retrieval alone."""
    units: list[Hashable] = [r["unit"] for r in records]
    if len(set(units)) == 1:  # of a single picture a bootstrap can say nothing
        units = [r["id"] for r in records]
    if said.metric in LIKELIHOOD:
        return _ranked(said, records, owners)
    texts, truths = [said.text(r) for r in records], [r["truths"] for r in records]
    match said.metric:
        case "captions":
            ids = [r["id"] for r in records]
            return score_captions(dict(zip(ids, texts, strict=True)), dict(zip(ids, truths, strict=True)))
        case "vqa" | "vqa-lmms":
            rule = "lmms" if said.metric == "vqa-lmms" else "official"
            return score_vqa(
                {r["id"]: t for r, t in zip(records, texts, strict=True)},
                [_annotation(r) for r in records],
                units,
                rule,
            )
        case "anls":
            return score_anls(texts, truths, units)
        case "relaxed":
            return score_relaxed(texts, [t[0] for t in truths], units)
        case "exact":
            return score_exact(texts, truths, units)
        case "pope":
            return score_pope(texts, [t[0] == "yes" for t in truths], units)
        case "choice":
            right = [is_right(t, r["truths"], _choices(r)) for t, r in zip(texts, records, strict=True)]
            return score_mmmu(right, [r["about"].get("subject", "all") for r in records], units)
    right = [is_right(t, r["truths"], _choices(r)) for t, r in zip(texts, records, strict=True)]
    return score_circular(right, units)


def score_circular(right: Sequence[bool], units: Sequence[Hashable]) -> Scored:
    """MMBench (Liu et al. 2024, section 4.2): a question is right where it is so with its choices in every
    turned order. `accuracy` counts each order by itself."""
    whole: dict[Hashable, bool] = {}
    for r, u in zip(right, units, strict=True):
        whole[u] = whole.get(u, True) and r
    terms, seen = np.zeros((len(right), 4)), set()
    for row, (r, u) in enumerate(zip(right, units, strict=True)):
        terms[row, :2] = r, 1
        if u not in seen:
            terms[row, 2:] = whole[u], 1
        seen.add(u)

    def of_sums(sums: Array) -> dict[str, Array]:
        return {
            "circular": ratio(sums[..., 2], sums[..., 3]),
            "accuracy": ratio(sums[..., 0], sums[..., 1]),
        }

    values: dict[str, Any] = {k: float(v) for k, v in of_sums(terms.sum(axis=0)).items()}
    return Scored({**values, "questions": len(whole)}, terms, units, of_sums)


def _ranked(said: Said, records: Sequence[Record], owners: Sequence[int]) -> Scored:
    scores = np.array([r["blind_scores" if said.blind else "scores"] for r in records])
    if said.metric == "classification":
        return score_classification(scores, [int(r["truths"][0]) for r in records])
    return score_retrieval(scores.T, owners)


def _choices(record: Record) -> dict[str, str | None] | None:
    return {chr(ord("A") + i): o for i, o in enumerate(record["options"])} if record["options"] else None


def _annotation(record: Record) -> dict[str, Any]:
    about = record["about"]
    kinds = {k: about.get(k, "other") for k in ("answer_type", "question_type")}
    return {"question_id": record["id"], "answers": record["truths"], **kinds}


def each(metric: Metric, scores: Scored) -> list[float]:
    """The value of each sample alone."""
    value = "accuracy" if metric == "circular" else PRIMARY[metric]
    return [float(v) for v in scores.of_sums(scores.terms)[value]]


def name_first(metric: Metric, records: Sequence[Record], texts: Sequence[str]) -> None:
    """Adds to each record of a ranked task which text ranks first, also blind; `texts` stand as its scores.

    Labels may be the same words, so a right one is known by its number: `labels` has its words.
    """
    for r in records:
        r["answer"], r["blind_answer"] = (texts[int(np.argmax(r[k]))] for k in ("scores", "blind_scores"))
        if metric == "classification":
            r["labels"] = [texts[int(t)] for t in r["truths"]]


def outcome(task: Task, records: Sequence[Record], owners: Sequence[int]) -> dict[str, Any]:
    """Scores, intervals, the blind baseline, and what was seen: own less blind, paired. Adds each record's
    own score, blind score and parsed answers to it."""
    own, blind = (Said(task.metric, task.stop, blind=b) for b in (False, True))
    ours, theirs = scored(own, records, owners), scored(blind, records, owners)
    alone = (each(task.metric, s) for s in (ours, theirs))
    for r, score, blind_score in zip(records, *alone, strict=True):
        if not task.ranked:
            r["answer"], r["blind_answer"] = parsed(own, r), parsed(blind, r)
        r["score"], r["blind_score"] = score, blind_score
    found = {
        "scores": {**ours.values, **_by_kind(own, records)},
        "interval_95": intervals(ours),
        "units": len(set(ours.units)),
        "blind": {**theirs.values, **_by_kind(blind, records)},
        "blind_interval_95": intervals(theirs),
        "seen": compare(ours, theirs),
    }
    return {"primary": PRIMARY[task.metric], **found}


def _by_kind(said: Said, records: Sequence[Record]) -> dict[str, Any]:
    """The primary value for each kind of question that the release tells apart."""
    kinds: dict[str, list[Record]] = {}
    for r in records:
        if kind := r.get("about", {}).get("kind"):
            kinds.setdefault(kind, []).append(r)
    if len(kinds) < 2:
        return {}
    value = PRIMARY[said.metric]
    return {"per_kind": {k: scored(said, rs).values[value] for k, rs in sorted(kinds.items())}}
