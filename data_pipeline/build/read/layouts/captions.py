"""Images with captions: rows of img2dataset, LAION, COCO (joined by its container), `image` + `text` tables.

    image       a member or column jpg, jpeg, png, webp, gif; else file, image, image_name, file_name, path;
                else an address in url, URL, image_url
    text        caption, captions (a list), text, TEXT, txt, alt: one segment each, duplicates once

The role of `alt` is `alt`. The others are `recaption`, except in rows that name an address: there they are
what the web page said, `alt`. Kept: the address in `Media.url`, original_width and original_height in
`Media.orig_width` and `orig_height`, SCORES in `Sample.scores`, the licence in `Sample.license`; every other
column (key, status, sha256, exif, `__key__` of a tar...) in `general_metadata`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipeline.build.read.layouts.fields import (
    Found,
    Pictures,
    Unfit,
    licence,
    listed,
    numbers,
    rest,
    text,
)
from data_pipeline.build.read.rows.row import Row
from data_pipeline.sample import Segment

IMAGE_KEYS = ("file", "image", "image_name", "file_name", "path")
MEMBERS = ("jpg", "jpeg", "png", "webp", "gif")
URL_KEYS = ("url", "URL", "image_url")
_TEXT_KEYS = ("caption", "text", "TEXT", "txt")
SCORES = (
    "similarity",
    "SIMILARITY",
    "punsafe",
    "pwatermark",
    "aesthetic",
    "AESTHETIC_SCORE",
    "clip_similarity_vitb32",
    "clip_similarity_vitl14",
    "nsfw_score_opennsfw2",
    "nsfw_score_gantman",
    "watermark_score",
    "aesthetic_score_laion_v2",
)
_TAKEN = frozenset((*IMAGE_KEYS, *MEMBERS, *URL_KEYS, *_TEXT_KEYS, *SCORES, "captions", "alt", "license"))

DOCUMENTS = False


def recognises(value: Mapping[str, Any]) -> bool:
    return not value.keys().isdisjoint((*_TEXT_KEYS, "captions", "alt"))


def read(row: Row, pictures: Pictures) -> Found:
    value = row.value
    assert isinstance(value, dict)
    url = text(first(value, URL_KEYS), "url") or None
    texts = _texts(value, url is not None)
    image = image_of(row)
    if image is None and url is None:
        raise Unfit("invalid record", f"no image: expected one of {', '.join(IMAGE_KEYS)}")
    alt = next((t for role, t in texts if role == "alt"), None)
    picture = pictures.find(url if image is None else image, alt, url)
    if not texts:
        raise Unfit("invalid record", "no text: expected one of caption, captions, alt, text")
    width, height = (_pixels(value, k) for k in ("original_width", "original_height"))
    media = dataclasses.replace(picture.media, orig_width=width, orig_height=height)
    segments = (Segment(type="text", text=t, role=role) for role, t in texts)
    return Found(
        kind="caption",
        segments=(Segment(type="image", media=0), *segments),
        pictures=(dataclasses.replace(picture, media=media),),
        metadata=rest(value, _TAKEN),
        scores=numbers(value, SCORES),
        licence=licence(value),
    )


def image_of(row: Row) -> Any:
    """The row's picture: a member of its tar, a column of bytes, or the name of a file. None without one."""
    assert isinstance(row.value, dict)
    if row.images:
        return row.images.get(next((m for m in MEMBERS if m in row.images), min(row.images)))
    return first(row.value, (*MEMBERS, *IMAGE_KEYS))


def _pixels(value: Mapping[str, Any], key: str) -> int | None:
    found = numbers(value, (key,)).get(key, 0)
    return int(found) if 0 < found < 2**31 else None


def first(value: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((value[k] for k in keys if value.get(k)), None)


def _texts(value: Mapping[str, Any], from_web: bool) -> list[tuple[str, str]]:
    """(role, text) of every caption, in the order of the keys."""
    several = value.get("captions")
    several = [several] if isinstance(several, str) else listed(several, "captions")
    written = [*(value.get(k) for k in _TEXT_KEYS), *several]
    role = "alt" if from_web else "recaption"
    found = [(role, text(w, "caption").strip()) for w in written]
    found.append(("alt", text(value.get("alt"), "alt").strip()))
    return [(r, t) for n, (r, t) in enumerate(found) if t and t not in [x for _, x in found[:n]]]
