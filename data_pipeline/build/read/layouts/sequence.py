"""Interleaved documents: `title` and `sequence`, a list of {text} and {image, alt, caption}.

The title is a heading, a caption follows its image. Every other column is kept in `general_metadata`.
"""

from collections.abc import Mapping
from typing import Any

from data_pipeline.build.cut import Block
from data_pipeline.build.read.layouts.fields import Found, Pictures, Unfit, licence, rest, text
from data_pipeline.build.read.rows.row import Row

DOCUMENTS = True  # gives blocks, not segments


def recognises(value: Mapping[str, Any]) -> bool:
    return "sequence" in value


def read(row: Row, pictures: Pictures) -> Found:
    value = row.value
    assert isinstance(value, dict)
    sequence = value.get("sequence")
    if not isinstance(sequence, list) or not all(isinstance(e, dict) for e in sequence):
        raise Unfit("invalid record", "expected `sequence`: a list of {text} and {image, alt, caption}")
    blocks = []
    if title := text(value.get("title"), "title"):
        blocks.append(Block(text=title, heading=True))
    for element in sequence:
        if element.get("image"):
            blocks.append(pictures.block(element["image"], text(element.get("alt"), "alt") or None))
        words = text(element.get("caption" if element.get("image") else "text"), "text").strip()
        if words:
            blocks.append(Block(text=words))
    return Found(
        kind="interleaved",
        blocks=tuple(blocks),
        metadata=rest(value, ("title", "sequence", "license")),
        licence=licence(value),
    )
