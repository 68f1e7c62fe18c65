"""A model answers the questions of a task: each rank its share, batches of like length, every answer kept.

Each question is asked twice: with its own pictures, and blind, with those of another question.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from PIL import Image
from torch.nn import functional as F

from data_pipeline.batch import IGNORE
from data_pipeline.errors import DataError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import Rendered, Unusable, render
from data_pipeline.stream.collate import Document, Piece, collate
from data_pipeline.stream.decode import DecodeError, Picture, decode
from trainer.distributed import World
from trainer.evaluation.asking import asked, blinded, drawn_examples, prompt_of, worded
from trainer.evaluation.generate import Prompt, generate
from trainer.evaluation.question import Question, picture_bytes
from trainer.evaluation.sampling import GREEDY
from trainer.evaluation.store import Record, Store
from trainer.evaluation.suite import Subject
from trainer.evaluation.task import Task

T = TypeVar("T")

CAPTIONS_EACH = 5
"""Retrieval takes so many captions of a picture, as papers do: COCO has a sixth for a few."""


@dataclass(frozen=True)
class Pair:
    """A question and the one whose pictures it is asked with when blind."""

    question: Question
    partner: Question


def shares(pairs: Sequence[Pair], world: World, done: frozenset[str], task: Task) -> list[Pair]:
    """What this rank has to answer: sorted by length, dealt out one by one; each question to one rank."""
    left = [p for p in pairs if p.question.id not in done]

    def length(p: Pair) -> tuple[int, int, str]:
        return len(p.question.images), len(asked(task, p.question)), p.question.id

    return sorted(left, key=length)[world.rank :: world.size]


def answer(
    subject: Subject,
    task: Task,
    mine: Sequence[Pair],
    examples: Sequence[Question],
    seed: int,
    store: Store,
) -> None:
    """Put an answer to each of `mine` into the store, or why there is none (all ranks that share a model)."""
    for batch in subject.ranks.rounds(list(_chunks(mine, subject.batch)), ()):
        asked_now: list[tuple[Pair, Prompt, Prompt]] = []
        failed: list[Record] = []
        for pair in batch:
            shown = drawn_examples(task, pair.question, examples, seed)
            try:
                own, blind = (
                    prompt_of(task, q, shown, subject.tokenizer, subject.image, subject.image_tokens)
                    for q in (pair.question, blinded(pair.question, pair.partner))
                )
            except (DecodeError, Unusable, DataError) as e:
                failed.append({"id": pair.question.id, "error": str(e)})
                continue
            asked_now.append((pair, own, blind))
        answers = _write(subject, task, [own for _, own, _ in asked_now])
        blind_answers = _write(subject, task, [blind for _, _, blind in asked_now])
        rows = zip(asked_now, answers, blind_answers, strict=True)
        store.append(
            [*failed, *(_record(subject, pair, own, raw, blind) for (pair, own, _), raw, blind in rows)]
        )


def _record(subject: Subject, pair: Pair, own: Prompt, raw: str, blind_raw: str) -> Record:
    q = pair.question
    return {
        "id": q.id,
        "unit": q.unit,
        "prompt": subject.tokenizer.decode(own.input_ids),
        "raw": raw,
        "blind_raw": blind_raw,
        "truths": list(q.truths),
        "options": list(q.options),
        "about": dict(q.about),
    }


def _write(subject: Subject, task: Task, prompts: Sequence[Prompt]) -> list[str]:
    caption = task.form == "caption" and not task.shots
    # Without anything to write a rank still runs what the others run, on a prompt that asks nothing.
    idle = [Prompt([subject.tokenizer.bos_id], [0])] if subject.ranks.shared else []
    shown = list(prompts) or idle
    rows = generate(
        subject.model,
        shown,
        max_new_tokens=task.max_new_tokens,
        eos_id=subject.tokenizer.eos_id if caption else subject.tokenizer.end_id,
        pad_id=subject.tokenizer.pad_id,
        how=[replace(GREEDY, stop=task.stop)] * len(shown),
        text=subject.tokenizer.decode,
        together=subject.ranks.any,
        device=subject.device,
    )
    return [subject.tokenizer.decode(row) for row in rows[: len(prompts)]]


# --- by likelihood ----------------------------------------------------------------------------------


def ranked_texts(task: Task, questions: Sequence[Question]) -> tuple[list[str], list[int]]:
    """The texts that every picture is compared with, of a label all its wordings one after another; of
    captions also the picture of each, else nothing."""
    if task.metric == "classification":
        wordings = (task.prompt, *task.ensemble)
        labels = [Question(id="", text=label) for label in questions[0].options]
        return [worded(wording, label) for label in labels for wording in wordings], []
    owned = [(t, n) for n, q in enumerate(questions) for t in q.truths[:CAPTIONS_EACH]]
    return [asked(task, Question(id="", text=t)) for t, _ in owned], [n for _, n in owned]


def rank_texts(
    subject: Subject, mine: Sequence[Question], texts: Sequence[str], wordings: int, store: Store
) -> None:
    """Put the log-likelihood of every text given the picture into the store, a line a picture; of so many
    wordings of one thing their mean.

    The texts are captions, in nats summed over their tokens and the end. Nothing is divided out: a text that
    is likely by itself is likely for every picture.
    """
    for question in subject.ranks.rounds(mine, None):
        pictures: tuple[Picture, ...] = ()
        if question is not None:
            try:
                pictures = decode(picture_bytes(question.images[0]), subject.image)
            except (DecodeError, DataError) as e:
                store.append([{"id": question.id, "error": str(e)}])
        if question is not None and pictures:
            of = {"id": question.id, "unit": question.unit, "truths": list(question.truths)}
            each = _score(subject, pictures, texts)
            scores = [sum(each[n : n + wordings]) / wordings for n in range(0, len(each), wordings)]
            store.append([{**of, "scores": scores}])
        elif subject.ranks.shared:
            _score(subject, _blank(subject), texts)


def _score(subject: Subject, pictures: tuple[Picture, ...], texts: Sequence[str]) -> list[float]:
    return [s for chunk in _chunks(texts, subject.batch) for s in _likelihoods(subject, pictures, chunk)]


def _blank(subject: Subject) -> tuple[Picture, ...]:
    """A picture of nothing, for a rank that runs the model only because others do."""
    data = io.BytesIO()
    Image.new("RGB", (32, 32)).save(data, "PNG")
    return decode(data.getvalue(), subject.image)


@torch.no_grad()
def _likelihoods(subject: Subject, pictures: tuple[Picture, ...], texts: Sequence[str]) -> list[float]:
    rows = [[Document(Piece("", "", 0, _caption(subject, text)), pictures)] for text in texts]
    batch = collate(
        rows,
        tokenizer=subject.tokenizer,
        image=subject.image,
        image_tokens=subject.image_tokens,
        sequence_length=max(len(row[0].piece.tokens) for row in rows),
    ).to(subject.device)
    logits = subject.model.logits(batch).float().transpose(1, 2)
    loss = F.cross_entropy(logits, batch.labels, reduction="none", ignore_index=IGNORE)
    found: list[float] = (-loss.sum(1)).tolist()
    return found


def _caption(subject: Subject, text: str) -> Rendered:
    shown = (Segment(type="image", media=0), Segment(type="text", text=text, role="recaption"))
    sample = Sample(
        id="", kind="caption", source="", segments=shown, media=(Media(media_id="0"),), image_bytes=(b"-",)
    )
    return render(sample, subject.tokenizer, subject.image_tokens, "answers")


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
