"""The formats in which the benchmarks exchange results: two files -> a metric over all their samples.

    metric           predictions                      references
    captions         [{image_id, caption}]            {annotations: [{image_id, caption}]}             COCO
    vqa, vqa-lmms    [{question_id, answer}]          {annotations: [{question_id, answers,
                                                        answer_type?, question_type?, image_id?}]}     VQA
    exact, contains  [{question_id, answer}]          {annotations: [{question_id, answers}]}          VQA
    anls             [{questionId, answer}]           {data: [{questionId, answers}]}                  DocVQA
    relaxed          [{imgname, query, answer}]       [{imgname, query, label}]                        ChartQA
    mmmu             {id: response}                   {id: {question_type, ground_truth,
                                                        all_choices?, index2ans?}}                     MMMU
    pope             a line {question, answer}        a line {question_id, image, text, label}         POPE
    classification   {scores: [[one a class]]}        {labels: [class]}
    retrieval        {text_by_image_scores: [[...]]}  {text_to_image: [image of each text]}
    perplexity       [{id, nats}]                     {data: [{id, source, tokens}]}

Reading is strict. A number over part of a benchmark looks like a number over all of it, so every record
must be whole and both files must speak of the same ids; else DataError.
"""

import json
import string
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from trainer.evaluation.anls import score_anls
from trainer.evaluation.captioning import score_captions
from trainer.evaluation.classification import score_classification
from trainer.evaluation.files import (
    Record,
    check_ids,
    indices,
    kind,
    load,
    load_by_id,
    load_lines,
    matrix,
    once,
    records,
)
from trainer.evaluation.intervals import Scored
from trainer.evaluation.matching import score_contains, score_exact
from trainer.evaluation.mmmu import MULTIPLE_CHOICE, is_right, score_mmmu, subject_of
from trainer.evaluation.perplexity import score_perplexity
from trainer.evaluation.pope import score_pope
from trainer.evaluation.relaxed import score_relaxed
from trainer.evaluation.retrieval import score_retrieval
from trainer.evaluation.vqa import score_vqa

MOST_NATS = 700
"""A token: e to more is beyond what a float holds."""


def _captions(predictions: Path, references: Path) -> Scored:
    return score_captions(*read_captions(predictions, references))


def read_captions(
    predictions: Path, references: Path
) -> tuple[dict[Hashable, str], dict[Hashable, list[str]]]:
    """A caption and its references by image."""
    captions = _texts(predictions, "image_id", "caption")
    truths: dict[Hashable, list[str]] = {}
    for r in records(references, load(references), ("annotations",), "annotation"):
        truths.setdefault(r.id("image_id"), []).append(r.text("caption"))
    check_ids(predictions, captions, references, truths, "image_id")
    return captions, truths


def _vqa(predictions: Path, references: Path, *, rule: str) -> Scored:
    answers = _texts(predictions, "question_id", "answer")
    questions = _by_id(references, "question_id", ("annotations", "questions"))
    check_ids(predictions, answers, references, questions, "question_id")
    # VizWiz tells answers apart alone, TextVQA's own release nothing.
    kinds = [k for k in ("answer_type", "question_type") if any(r.has(k) for r in questions.values())]
    annotations = [
        {"question_id": i, "answers": r.answers("answers", least=2), **{k: r.text(k) for k in kinds}}
        for i, r in questions.items()
    ]
    return score_vqa(answers, annotations, _pictures(questions), rule)


def _answers(
    predictions: Path,
    references: Path,
    *,
    id_key: str,
    keys: Sequence[str],
    metric: Callable[[list[str], list[list[str]], list[Hashable]], Scored],
) -> Scored:
    answers = _texts(predictions, id_key, "answer")
    questions = _by_id(references, id_key, keys)
    check_ids(predictions, answers, references, questions, id_key)
    truths = [r.answers("answers") for r in questions.values()]
    return metric([answers[i] for i in questions], truths, _pictures(questions))


def _relaxed(predictions: Path, references: Path) -> Scored:
    """A question of ChartQA has no id: picture and words are it, and the count where a file repeats them."""

    def by_question(path: Path, key: str) -> dict[Hashable, str]:
        seen: Counter[tuple[str, str]] = Counter()
        found: dict[Hashable, str] = {}
        for r in records(path, load(path)):
            question = (r.text("imgname"), r.text("query"))
            seen[question] += 1
            found[*question, seen[question]] = r.text(key)
        return found

    answers, truths = by_question(predictions, "answer"), by_question(references, "label")
    if not truths:
        raise DataError(f"{references}: its list is empty; there is nothing to score against")
    check_ids(predictions, answers, references, truths, "(imgname, query, count)")
    pictures = [question[0] for question in truths]  # type: ignore[index]
    return score_relaxed([answers[i] for i in truths], list(truths.values()), pictures)


def _mmmu(predictions: Path, references: Path) -> Scored:
    responses, truths = load_by_id(predictions), load_by_id(references)
    if not truths:
        raise DataError(f"{references}: it is empty; there is nothing to score against")
    check_ids(predictions, responses, references, truths, "id")
    said = Record(str(predictions), responses)
    questions = {i: Record(f"{references}: {i}", t if isinstance(t, dict) else {}) for i, t in truths.items()}
    letters = _letters(questions)
    right = [is_right(said.text(i), _truth(r), _options(r, letters)) for i, r in questions.items()]
    return score_mmmu(right, [subject_of(i) for i in questions], list(questions))


def _truth(record: Record) -> str | list[str]:
    truth = record.value("ground_truth")
    return truth if isinstance(truth, str) else record.answers("ground_truth")


def _letters(questions: dict[str, Record]) -> str:
    """The answer dictionary has no options: A to D, and on to the last letter that is right anywhere."""
    right = (
        letter
        for r in questions.values()
        if r.text("question_type") == MULTIPLE_CHOICE
        for letter in _truth(r)
        if letter in string.ascii_uppercase
    )
    return string.ascii_uppercase[: string.ascii_uppercase.index(max(["D", *right])) + 1]


def _options(record: Record, letters: str) -> dict[str, str | None] | None:
    if record.text("question_type") != MULTIPLE_CHOICE:
        return None
    if not record.has("index2ans"):
        given = record.answers("all_choices") if record.has("all_choices") else letters
        return dict.fromkeys(given)
    options = record.value("index2ans")
    if not isinstance(options, dict):
        raise DataError(f"{record.where}: index2ans must be an object, found {kind(options)}")
    texts = Record(f"{record.where}, index2ans", options)
    return {letter: texts.text(letter) for letter in options}


def _pope(predictions: Path, references: Path) -> Scored:
    truths = once(
        (r.where, "question_id", r.id("question_id"), r)
        for r in records(references, load_lines(references), noun="entry")
    )
    if not truths:
        raise DataError(f"{references}: it is empty; there is nothing to score against")
    said = records(predictions, load_lines(predictions), noun="entry")
    if said and not any(r.has("question_id") for r in said):
        ids = _in_order(predictions, said, references, truths)
    else:
        ids = [r.id("question_id") for r in said]
    answers = once((r.where, "question_id", i, r.text("answer")) for i, r in zip(ids, said, strict=True))
    check_ids(predictions, answers, references, truths, "question_id")
    yes = []
    for r in truths.values():
        if r.text("label") not in ("yes", "no"):
            raise DataError(f'{r.where}: label must be "yes" or "no", found {json.dumps(r.text("label"))}')
        yes.append(r.text("label") == "yes")
    return score_pope([answers[i] for i in truths], yes, _pictures(truths))


def _in_order(
    predictions: Path, said: Sequence[Record], references: Path, truths: dict[Any, Record]
) -> list[Hashable]:
    """POPE's own answer files have no ids: they keep the questions' order, and their words must agree."""
    if len(said) != len(truths):
        raise DataError(
            f"{predictions}: {len(said)} answers without question_id for the {len(truths)} questions of "
            f"{references}: which ones are they? Write one answer each in the same order, or question_id"
        )
    for answer, question in zip(said, truths.values(), strict=True):
        if answer.text("question").strip().lower() != question.text("text").strip().lower():
            raise DataError(
                f"{answer.where}: answers {answer.text('question')!r}, but {question.where} asks "
                f"{question.text('text')!r}: keep the order of the questions, or write question_id"
            )
    return list(truths)


def _classification(predictions: Path, references: Path) -> Scored:
    scores = matrix(predictions, load(predictions), "scores")
    labels = indices(references, load(references), "labels", scores.shape[1], f"a class of {predictions}")
    _same_length(predictions, len(scores), references, len(labels))
    return score_classification(scores, labels)


def _retrieval(predictions: Path, references: Path) -> Scored:
    scores = matrix(predictions, load(predictions), "text_by_image_scores")
    images = scores.shape[1]
    owners = indices(references, load(references), "text_to_image", images, f"a column of {predictions}")
    _same_length(predictions, len(scores), references, len(owners))
    if bare := sorted(set(range(images)) - set(owners)):
        raise DataError(f"{references}: {len(bare)} of {images} images have no text, the first is {bare[0]}")
    return score_retrieval(scores, owners)


def _perplexity(predictions: Path, references: Path) -> Scored:
    nats = once(
        (r.where, "id", r.id("id"), r.number("nats")) for r in records(predictions, load(predictions))
    )
    documents = _by_id(references, "id", ("data",))
    check_ids(predictions, nats, references, documents, "id")
    tokens = [r.number("tokens") for r in documents.values()]
    for r, count in zip(documents.values(), tokens, strict=True):
        if count < 1 or count % 1:
            raise DataError(f"{r.where}: tokens must be a whole number, 1 or more, found {count:g}")
        if (each := nats[r.id("id")] / count) > MOST_NATS:
            raise DataError(
                f"{r.where}: {each:.4g} nats a token make no perplexity; expected {MOST_NATS} or less: "
                f"write natural logarithms into {predictions}, summed over the tokens of each document"
            )
    sources = [r.text("source") for r in documents.values()]
    return score_perplexity([nats[i] for i in documents], tokens, sources, list(documents))


# --- shared ---------------------------------------------------------------------------------------


def _texts(path: Path, id_key: str, text_key: str) -> dict[Hashable, str]:
    """The predictions, by id."""
    found = records(path, load(path))
    return once((r.where, id_key, r.id(id_key), r.text(text_key)) for r in found)


def _by_id(path: Path, id_key: str, keys: Sequence[str]) -> dict[Any, Record]:
    """The references, by id, in the order of the file."""
    found = records(path, load(path), keys, "annotation")
    return once((r.where, id_key, r.id(id_key), r) for r in found)


def _pictures(questions: dict[Any, Record]) -> list[Hashable]:
    """The picture of each question where the file names it, else the question itself."""
    keys = ("image_id", "image", "image_local_name")
    pictures = [r.unit(keys, ("question", i)) for i, r in questions.items()]
    # Of a single picture a bootstrap can say nothing.
    return pictures if len(set(pictures)) > 1 else list(questions)


def _same_length(predictions: Path, rows: int, references: Path, wanted: int) -> None:
    if rows != wanted:
        what = "incomplete" if rows < wanted else "too many"
        raise DataError(f"{predictions}: {what}: {rows} rows of scores for the {wanted} of {references}")


_vqa_answers = partial(_answers, id_key="question_id", keys=("annotations",))

READERS: Mapping[str, Callable[[Path, Path], Scored]] = {
    "captions": _captions,
    "vqa": partial(_vqa, rule="official"),
    "vqa-lmms": partial(_vqa, rule="lmms"),
    "anls": partial(_answers, id_key="questionId", keys=("data",), metric=score_anls),
    "relaxed": _relaxed,
    "exact": partial(_vqa_answers, metric=score_exact),
    "contains": partial(_vqa_answers, metric=score_contains),
    "mmmu": _mmmu,
    "pope": _pope,
    "classification": _classification,
    "retrieval": _retrieval,
    "perplexity": _perplexity,
}
"""What `fovea score` knows: predictions and references -> the metric. All raise DataError."""
