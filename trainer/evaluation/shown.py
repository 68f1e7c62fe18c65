"""Samples of a result to look at: the best answers and the worst, with their pictures made small."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from data_pipeline.stream.decode import FORMATS
from trainer.evaluation.question import Question, picture_bytes
from trainer.evaluation.store import Record

SHOWN = 6
"""Best, and worst, of a task."""

SIDE = 256  # pixels


def extremes(records: Sequence[Record], questions: Sequence[Question]) -> dict[str, list[dict[str, Any]]]:
    """{"best", "worst"} of answered records, which stand as their questions. Of equal scores the best is that
    which is worst blind, and the worst that which is best blind. None is both."""
    order = sorted(range(len(records)), key=lambda i: (-records[i]["score"], records[i]["blind_score"]))
    half = (len(order) + 1) // 2
    best, worst = order[:half][:SHOWN], order[half:][::-1][:SHOWN]
    return {
        name: [_shown(records[i], questions[i]) for i in chosen]
        for name, chosen in (("best", best), ("worst", worst))
    }


def _shown(record: Record, question: Question) -> dict[str, Any]:
    return {
        "id": record["id"],
        "image": thumbnail(picture_bytes(question.images[0])) if question.images else None,
        # Where texts are ranked nobody is asked, and nothing is written.
        "prompt": record.get("prompt", ""),
        "answer": record.get("raw", record["answer"]),
        "blind_answer": record.get("blind_raw", record["blind_answer"]),
        "truth": record.get("labels", record["truths"]),
        "score": record["score"],
        "blind_score": record["blind_score"],
    }


def thumbnail(data: bytes) -> str:
    """The picture, made small, as a data URI."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    lossless = max(small.size) <= 96
    small.save(buffer, "PNG" if lossless else "JPEG", **({} if lossless else {"quality": 85}))
    mime = "image/png" if lossless else "image/jpeg"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
