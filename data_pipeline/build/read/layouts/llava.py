"""LLaVA: `image` (a name, a picture, or a list of them) and `conversations`: [{from, value}, ...].

Each `<image>` in a value is the place of the next image; their numbers must be equal. `from` is human, gpt or
system (or user, assistant). Kept:

    value           segments: text around the marks, an image segment for each mark; one line break on either
                    side of a mark belongs to it
    conversations   as it was, in general_metadata["conversations"], where `conversations_of` of the segments
                    does not give it back (other spellings of the marks or roles, other keys)
    image's name    Media.url
    other columns   general_metadata (id, data_source...)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.build.read.layouts.captions import image_of
from data_pipeline.build.read.layouts.fields import Found, Pictures, Unfit, licence, listed, rest, text
from data_pipeline.build.read.layouts.turns import (
    Message,
    check_count,
    dialogue,
    join_images,
    role_of,
    split_images,
)
from data_pipeline.build.read.rows.row import Row
from data_pipeline.sample import Segment

_FROM = {"system": "system", "user": "human", "assistant": "gpt"}

DOCUMENTS = False


def recognises(value: Mapping[str, Any]) -> bool:
    return "conversations" in value


def read(row: Row, pictures: Pictures) -> Found:
    value = row.value
    assert isinstance(value, dict)
    messages = [_message(m) for m in listed(value["conversations"], "conversations")]
    images = value.get("image", value.get("images"))
    images = image_of(row) if images is None else images
    images = images if isinstance(images, list) else [] if not images else [images]
    check_count(sum(m.parts.count(None) for m in messages), len(images))
    segments = dialogue(messages)
    metadata = rest(value, ("image", "images", "conversations", "license"))
    if conversations_of(segments) != value["conversations"]:
        metadata["conversations"] = value["conversations"]
    return Found(
        kind="instruct",
        segments=segments,
        pictures=tuple(pictures.find(i) for i in images),
        metadata=metadata,
        licence=licence(value),
    )


def conversations_of(segments: Sequence[Segment]) -> list[dict[str, str]]:
    """Segments of a dialogue in LLaVA's spelling."""
    parts: dict[tuple[str, int], list[str | None]] = {}
    for s in segments:
        key = (s.role or "user", s.turn or 0)
        parts.setdefault(key, []).append(None if s.type == "image" else s.text)
    return [{"from": _FROM[role], "value": join_images(p)} for (role, _), p in parts.items()]


def _message(entry: Any) -> Message:
    if not isinstance(entry, dict) or not {"from", "value"} <= entry.keys():
        raise Unfit("invalid record", "expected `conversations`: a list of {from, value}")
    return Message(role_of(entry["from"]), split_images(text(entry["value"], "value")))
