"""The held-out suite: captions, questions and loss, each beside its blind baseline.

Blind: the same checkpoint, each picture replaced by another sample's. What is left of the score then comes
from language alone, and only the difference was seen.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from data_pipeline.batch import Batch
from data_pipeline.image_spec import ImageSpec
from data_pipeline.sample import Sample
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.chat import Rendered, Unusable, prompt, render
from data_pipeline.stream.collate import Document, Piece, collate
from data_pipeline.stream.decode import DecodeError, Picture, decode
from data_pipeline.stream.fit import fit
from data_pipeline.stream.source import Source
from data_pipeline.stream.tokens import Tokenizer
from trainer.evaluation.captioning import cider, exact_match
from trainer.evaluation.config import Evaluation
from trainer.evaluation.generate import Prompt, generate
from trainer.evaluation.lockstep import Lockstep
from trainer.evaluation.ptb import tokenize
from trainer.evaluation.sampling import GREEDY, Decoding, until_stop
from trainer.evaluation.shown import thumbnail
from trainer.evaluation.vqa import vqa_accuracy
from trainer.models.autoregressive import AutoregressiveVLM

EXAMPLES = 12
"""Pictures a task shows in the report."""


@dataclass(frozen=True)
class Subject:
    """A trained model and what it needs to read a sample."""

    model: AutoregressiveVLM
    tokenizer: Tokenizer
    image: ImageSpec
    image_tokens: int
    batch: int
    max_new_tokens: int
    decoding: Decoding = GREEDY
    ranks: Lockstep = field(default_factory=Lockstep)
    computes_on: torch.device | None = None
    """Where the model computes, where that need not be where its weights stand."""

    @property
    def device(self) -> torch.device:
        return self.computes_on or self.model.new_tokens.weight.device


@dataclass(frozen=True)
class Item:
    """One held-out sample, rendered, with its own pictures and with another sample's."""

    sample: Sample
    tokens: Rendered
    pictures: tuple[Picture, ...]
    other: tuple[Picture, ...] = ()


def evaluate(
    subject: Subject, sources: Mapping[str, Source], config: Evaluation, *, sequence_length: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores by task (None: the held-out split has nothing for it) and examples for the report.

    VQA accuracy, exact match: shares from 0 to 1. CIDEr: the benchmark's unit. Loss: nats a target token.
    """

    subject = replace(
        subject,
        decoding=Decoding(
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=seed * 2**32 % 2**63,  # each item draws by a seed of its own, whatever the batches
            stop=config.stop,
        ),
    )

    def items(names: Sequence[str], n: int, fits: Callable[[Sample], bool], render_one: Any) -> list[Item]:
        chosen = {name: sources[name] for name in (names or sources) if name in sources}
        return _with_others(_draw(chosen, n, fits, render_one, subject.image, seed))

    def ask(sample: Sample) -> list[Rendered]:
        return [prompt(sample, subject.tokenizer, subject.image_tokens)]

    def read(sample: Sample) -> list[Rendered]:
        whole = render(sample, subject.tokenizer, subject.image_tokens, "all_text")
        fitted = fit(whole, Budget(tokens=sequence_length), (), subject.tokenizer.bos_id)
        return list(fitted.pieces[:1])

    captions, shown = _captions(subject, items(config.caption_sources, config.captions, _is_captioned, ask))
    answers, shown_too = _questions(subject, items(config.vqa_sources, config.questions, _is_question, ask))
    loss = _loss(subject, items(config.loss_sources, config.documents, _has_picture, read), sequence_length)
    return {"captions": captions, "vqa": answers, "loss": loss}, [*shown, *shown_too]


def _is_captioned(sample: Sample) -> bool:
    return sample.kind == "caption" and any(s.role != "alt" and s.type == "text" for s in sample.segments)


def _is_question(sample: Sample) -> bool:
    return sample.kind == "instruct" and bool(sample.media)


def _has_picture(sample: Sample) -> bool:
    return bool(sample.media)


def _draw(
    sources: Mapping[str, Source],
    n: int,
    fits: Callable[[Sample], bool],
    render_one: Callable[[Sample], list[Rendered]],
    image: ImageSpec,
    seed: int,
) -> list[Item]:
    """Up to `n` samples that fit, in an order that depends on the seed alone."""
    places = [(name, i) for name in sorted(sources) for i in range(len(sources[name]))]
    random.Random(seed).shuffle(places)
    items: list[Item] = []
    for name, i in places:
        if len(items) == n:
            break
        if not fits(sources[name].without_pixels(i)):
            continue
        sample = sources[name][i]
        try:
            rendered = render_one(sample)
            pictures = tuple(
                tile for r in rendered for m in r.images for tile in decode(sample.image_bytes[m], image)
            )
        except (Unusable, DecodeError):
            continue
        if rendered and pictures:
            items.append(Item(sample, rendered[0], pictures))
    return items


def _with_others(items: list[Item]) -> list[Item]:
    """Give each item the pictures of the next one that shows something else."""

    def other(i: int) -> tuple[Picture, ...]:
        mine = {m.media_id for m in items[i].sample.media}
        for step in range(1, len(items)):
            next_item = items[(i + step) % len(items)]
            if not mine & {m.media_id for m in next_item.sample.media}:
                theirs = next_item.pictures
                return tuple(theirs[k % len(theirs)] for k in range(len(items[i].pictures)))
        return items[i].pictures  # a single picture in all: there is no other

    return [Item(item.sample, item.tokens, item.pictures, other(i)) for i, item in enumerate(items)]


def _captions(subject: Subject, items: list[Item]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    if not items:
        return None, []
    refs = [[s.text or "" for s in i.sample.segments if s.type == "text" and s.role != "alt"] for i in items]
    seen, blind = _answers(subject, items, subject.tokenizer.eos_id)
    tokenized = [[tokenize(r) for r in rs] for rs in refs]
    scores = {
        "n": len(items),
        "CIDEr": cider([tokenize(a) for a in seen], tokenized).score,
        "CIDEr_blind": cider([tokenize(a) for a in blind], tokenized).score,
        "exact": exact_match(seen, refs),
        "exact_blind": exact_match(blind, refs),
    }
    examples = [
        _example("caption", item, "caption:", a, b, r, a.strip() in {x.strip() for x in r})
        for item, a, b, r in zip(items[:EXAMPLES], seen, blind, refs, strict=False)
    ]
    return scores, examples


def _questions(subject: Subject, items: list[Item]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    if not items:
        return None, []
    seen, blind = _answers(subject, items, subject.tokenizer.end_id)
    questions = [_text_of(i.sample, "user") for i in items]
    truths = [_text_of(i.sample, "assistant") for i in items]
    annotations = []
    for i, (item, truth) in enumerate(zip(items, truths, strict=True)):
        about = json.loads(item.sample.general_metadata or "{}")
        annotations.append(
            {
                "question_id": i,
                # One annotator stands for the ten of the benchmark: all agree.
                "answers": [{"answer": truth}] * 10,
                "answer_type": str(about.get("answer_type") or "other"),
                "question_type": str(about.get("question_type") or "other"),
            }
        )
    score, score_blind = (vqa_accuracy(dict(enumerate(a)), annotations) for a in (seen, blind))
    scores = {
        "n": len(items),
        "accuracy": score["overall"] / 100,
        "accuracy_blind": score_blind["overall"] / 100,
        "per_question_type": {k: v / 100 for k, v in score["per_question_type"].items()},
        "per_question_type_blind": {k: v / 100 for k, v in score_blind["per_question_type"].items()},
    }
    examples = [
        _example("vqa", item, q, a, b, [t], a.strip() == t.strip())
        for item, q, a, b, t in zip(items[:EXAMPLES], questions, seen, blind, truths, strict=False)
    ]
    return scores, examples


def _answers(subject: Subject, items: list[Item], end_id: int) -> tuple[list[str], list[str]]:
    """What the model writes about each item: with its own pictures, and with another's."""
    # Prompts of like length stand together, so that little is padded.
    order = sorted(range(len(items)), key=lambda i: len(items[i].tokens))
    written: list[list[str]] = []
    for blind in (False, True):
        texts = [""] * len(items)
        for start in range(0, len(order), subject.batch):
            subject.ranks.agree()
            chunk = order[start : start + subject.batch]
            prompts = [_prompt(items[i], blind) for i in chunk]
            ids = generate(
                subject.model,
                prompts,
                max_new_tokens=subject.max_new_tokens,
                eos_id=end_id,
                pad_id=subject.tokenizer.pad_id,
                how=[replace(subject.decoding, seed=subject.decoding.seed + i) for i in chunk],
                text=subject.tokenizer.decode,
                together=subject.ranks.any,
                device=subject.device,
            )
            for i, row in zip(chunk, ids, strict=True):
                texts[i] = until_stop(subject.tokenizer.decode(row), subject.decoding.stop).strip()
        written.append(texts)
    return written[0], written[1]


def _prompt(item: Item, blind: bool) -> Prompt:
    return Prompt(
        input_ids=item.tokens.input_ids.tolist(),
        image_ids=item.tokens.image_ids.tolist(),
        pictures=item.other if blind else item.pictures,
        written=item.tokens.loss.tolist(),
    )


@torch.no_grad()
def _loss(subject: Subject, items: list[Item], sequence_length: int) -> dict[str, Any] | None:
    """Mean loss over the targets of all items: with their own pictures, and with another's."""
    if not items:
        return None
    sums, targets = [0.0, 0.0], 0
    for start in range(0, len(items), subject.batch):
        subject.ranks.agree()
        for blind in (False, True):
            rows = [
                [Document(Piece(i.sample.id, i.sample.source, 0, i.tokens), i.other if blind else i.pictures)]
                for i in items[start : start + subject.batch]
            ]
            batch: Batch = collate(
                rows,
                tokenizer=subject.tokenizer,
                image=subject.image,
                image_tokens=subject.image_tokens,
                sequence_length=max(len(i.tokens) for i in items[start : start + subject.batch]),
            )
            sums[blind] += float(subject.model(batch.to(subject.device)))
            targets += batch.target_tokens * (not blind)
    return {
        "n": len(items),
        "right_image": sums[0] / max(1, targets),
        "wrong_image": sums[1] / max(1, targets),
    }


def _text_of(sample: Sample, role: str) -> str:
    """The text of the first turn of that role."""
    first = next((s.turn for s in sample.segments if s.role == role), None)
    return " ".join(s.text for s in sample.segments if s.role == role and s.turn == first and s.text)


def _example(
    task: str, item: Item, asked: str, answer: str, blind: str, truth: list[str], correct: bool
) -> dict[str, Any]:
    return {
        "task": task,
        "id": item.sample.id,
        "image": thumbnail(item.sample.image_bytes[item.tokens.images[0]] or b""),
        "prompt": asked,
        "answer": answer,
        "blind_answer": blind,
        "truth": truth,
        "correct": correct,
    }


def describe(results: Mapping[str, Any]) -> str:
    """The scores as a few lines for the screen."""
    lines = [f"{results['stage']} at step {results['step']}, held-out (blind: another sample's picture)"]
    if c := results["captions"]:
        lines.append(
            f"  captions   CIDEr {c['CIDEr']:.3f}  blind {c['CIDEr_blind']:.3f}   "
            f"exact {c['exact']:.3f}  blind {c['exact_blind']:.3f}   n {c['n']}"
        )
    if v := results["vqa"]:
        lines.append(
            f"  questions  VQA accuracy {v['accuracy']:.3f}  blind {v['accuracy_blind']:.3f}   n {v['n']}"
        )
    if s := results["loss"]:
        lines.append(
            f"  loss       {s['right_image']:.4f}  with the wrong picture {s['wrong_image']:.4f}   n {s['n']}"
        )
    return "\n".join(lines)
