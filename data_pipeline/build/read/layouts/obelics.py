"""OBELICS: `texts` and `images`, lists of equal length where each place holds one or the other.

An image is an address (as published), a picture, or a file's name. Kept:

    texts             text segments, unchanged to the character
    images            image segments; an address in Media.url
    metadata          a JSON text of a list, parallel to `images`: unchanged in general_metadata["metadata"];
                      of each entry `alt_text` in Media.alt, `src` in Media.url of pictures that have none
    general_metadata  a JSON text: unchanged in general_metadata["general_metadata"]; its `url` in Sample.url
    other columns     general_metadata
"""

import json
from collections.abc import Mapping
from typing import Any

from data_pipeline.build.cut import Block
from data_pipeline.build.read.layouts.fields import Found, Pictures, Unfit, licence, listed, rest, text
from data_pipeline.build.read.rows.row import Row

DOCUMENTS = True  # gives blocks, not segments


def recognises(value: Mapping[str, Any]) -> bool:
    texts, images = value.get("texts"), value.get("images")
    if not (isinstance(texts, list) and isinstance(images, list)):
        return False
    return all(t is None or isinstance(t, str) for t in texts)


def read(row: Row, pictures: Pictures) -> Found:
    value = row.value
    assert isinstance(value, dict)
    texts, images = listed(value.get("texts"), "texts"), listed(value.get("images"), "images")
    if len(texts) != len(images):
        raise Unfit("invalid record", f"{len(texts)} texts and {len(images)} images: the lists are parallel")
    about = _json(value.get("metadata"), "metadata")
    about = about if isinstance(about, list) and len(about) == len(images) else [None] * len(images)
    blocks = []
    for words, image, known in zip(texts, images, about, strict=True):
        known = known if isinstance(known, dict) else {}
        if image is not None:
            alt = text(known.get("alt_text"), "alt_text") or None
            blocks.append(pictures.block(image, alt, text(known.get("src"), "src") or None))
        if words := text(words, "texts"):
            blocks.append(Block(text=words))
    page = _json(value.get("general_metadata"), "general_metadata")
    return Found(
        kind="interleaved",
        blocks=tuple(blocks),
        metadata=rest(value, ("texts", "images", "license")),
        licence=licence(value),
        url=(text(page.get("url"), "url") or None) if isinstance(page, dict) else None,
    )


def _json(value: Any, name: str) -> Any:
    """The value inside a JSON text; values that are no text, as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(text(value, name) or "null")
    except (ValueError, RecursionError) as e:
        raise Unfit("invalid record", f"`{name}` is not JSON: {e}") from None
