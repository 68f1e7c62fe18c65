"""The report's sections about held-out data: scores, types of questions, pictures with answers."""

import re
from typing import Any

from markupsafe import Markup

from trainer.observe.charts import Pair, bar_chart
from trainer.observe.report_parts import fixed, last, mapping
from trainer.observe.run_record import Evaluated, StageRecord
from trainer.observe.wording import finite, number

IMAGE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=\s]+")
"""A picture held in the page itself: an address would make the page call out."""

MOST_EXAMPLES = 24


def score_row(e: Evaluated) -> dict[str, Any]:
    captions, vqa, loss = (mapping(e.results.get(k)) for k in ("captions", "vqa", "loss"))
    return {
        "stage": e.stage,
        "step": e.step,
        "vqa": vqa,
        "captions": captions,
        "loss": loss,
        "cider": fixed(captions.get("CIDEr")),
        "cider_blind": fixed(captions.get("CIDEr_blind")),
        "right": fixed(loss.get("right_image"), 3),
        "wrong": fixed(loss.get("wrong_image"), 3),
    }


def score_charts(stages: list[StageRecord]) -> list[tuple[str, Markup]]:
    charts = []
    for task, key, title in (
        ("vqa", "accuracy", "VQA accuracy"),
        ("captions", "exact", "Captions exactly right"),
    ):
        pairs = []
        for stage in stages:
            found = last(stage.evaluations, task)
            if found:
                pairs.append(Pair(stage.name, finite(found.get(key)), finite(found.get(f"{key}_blind"))))
        if pairs:
            charts.append(
                (title, bar_chart(pairs, label=f"{title} after each stage, with and with another image"))
            )
    return charts


def question_types(evaluations: list[Evaluated]) -> list[dict[str, Any]]:
    vqa = last(evaluations, "vqa")
    blind = mapping(vqa.get("per_question_type_blind"))
    return [
        {"name": name, "share": finite(share), "blind": finite(blind.get(name))}
        for name, share in sorted(mapping(vqa.get("per_question_type")).items())
    ]


def examples(evaluations: list[Evaluated]) -> dict[str, Any]:
    """The pictures of the last evaluation that kept any."""
    with_examples = [e for e in evaluations if e.examples]
    if not with_examples:
        return {"stage": None, "step": None, "cards": []}
    latest = with_examples[-1]
    return {
        "stage": latest.stage,
        "step": latest.step,
        "cards": [example_card(e) for e in latest.examples[:MOST_EXAMPLES]],
    }


def example_card(example: dict[str, Any]) -> dict[str, Any]:
    image, truth = example.get("image"), example.get("truth")
    kind = {"vqa": "question", "caption": "caption"}.get(str(example.get("task")), "example")
    if "score" in example:
        kind = f"score {number(example['score'])}, blind {number(example.get('blind_score'))}"
    truths = truth if isinstance(truth, list) else [truth]
    return {
        "image": image if isinstance(image, str) and IMAGE.fullmatch(image) else None,
        "task": kind,
        "id": example.get("id", ""),
        "prompt": example.get("prompt", ""),
        "answer": str(example.get("answer") or "").strip() or "(nothing)",
        "blind": example.get("blind_answer"),
        # Ten annotators often agree: each answer once.
        "truths": list(dict.fromkeys(str(t) for t in truths if t is not None)),
        "correct": example.get("correct"),
    }
