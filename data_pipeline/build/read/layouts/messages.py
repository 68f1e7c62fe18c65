"""Chat `messages`: [{role, content}, ...]; content is a text, or a list of {type: text | image | image_url}.

The pictures stand in the parts themselves (`image`, `url`, `image_url: {url}`), or in `images` (or `image`)
beside the messages, where each part {type: image} without one of its own takes the next. In contents that are
texts, `<image>` marks the places; without any mark all pictures open the first question. Kept:

    messages        as they were, in general_metadata["messages"], where `messages_of` of the segments does
                    not give them back; pictures inside them are null there
    other columns   general_metadata
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.build.read.layouts.captions import image_of
from data_pipeline.build.read.layouts.fields import Found, Pictures, Unfit, licence, listed, rest, text
from data_pipeline.build.read.layouts.turns import Message, check_count, dialogue, role_of, split_images
from data_pipeline.build.read.rows.row import Row
from data_pipeline.sample import Segment

_INLINE = ("image", "image_url", "url", "bytes", "path", "base64")

DOCUMENTS = False


def recognises(value: Mapping[str, Any]) -> bool:
    return "messages" in value


def read(row: Row, pictures: Pictures) -> Found:
    value = row.value
    assert isinstance(value, dict)
    beside = value.get("images", value.get("image"))
    beside = image_of(row) if beside is None else beside
    left = list(beside) if isinstance(beside, list) else [] if not beside else [beside]
    given = len(left)
    messages: list[Message] = []
    images: list[Any] = []
    for entry in listed(value["messages"], "messages"):
        if not isinstance(entry, dict) or "content" not in entry:
            raise Unfit("invalid record", "expected `messages`: a list of {role, content}")
        parts: list[str | None] = []
        for part in _parts(entry["content"]):
            if isinstance(part, str):
                parts.append(part)
                continue
            parts.append(None)
            if (own := _own_picture(part)) is not None:
                images.append(own)
            elif left:
                images.append(left.pop(0))
            else:
                raise Unfit("image count mismatch", f"more places for images than the {given} in the row")
        messages.append(Message(role_of(entry.get("role")), tuple(parts)))
    if left and not images:
        messages, images, left = _opened_by(messages, len(left)), left, []
    check_count(given - len(left), given)
    segments = dialogue(messages)
    metadata = rest(value, ("images", "image", "messages", "license"))
    if messages_of(segments) != value["messages"]:
        metadata["messages"] = [_without_pictures(m) for m in value["messages"]]
    return Found(
        kind="instruct",
        segments=segments,
        pictures=tuple(pictures.find(i) for i in images),
        metadata=metadata,
        licence=licence(value),
    )


def messages_of(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """Segments of a dialogue as messages whose contents are lists of {type: text | image}."""
    parts: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for s in segments:
        part = {"type": "image"} if s.type == "image" else {"type": "text", "text": s.text}
        parts.setdefault((s.role or "user", s.turn or 0), []).append(part)
    return [{"role": role, "content": content} for (role, _), content in parts.items()]


def _parts(content: Any) -> Iterator[str | dict[str, Any]]:
    """Texts, and mappings where a picture stands."""
    if not isinstance(content, list):
        for part in split_images(text(content, "content")):
            yield {} if part is None else part
        return
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if words := text(part.get("text"), "text"):
                yield words
        elif kind in ("image", "image_url"):
            yield part
        else:
            raise Unfit(
                "invalid record", f"a part of type {str(kind)[:40]!r}, known are text, image, image_url"
            )


def _own_picture(part: Mapping[str, Any]) -> Any:
    found = next((part[k] for k in _INLINE if part.get(k)), None)
    return found.get("url", found) if isinstance(found, dict) and "bytes" not in found else found


def _opened_by(messages: list[Message], images: int) -> list[Message]:
    """The messages with the pictures before the first question."""
    for n, m in enumerate(messages):
        if m.role == "user":
            return [*messages[:n], Message(m.role, (*(None,) * images, *m.parts)), *messages[n + 1 :]]
    return messages


def _without_pictures(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):
        content = [{k: None if k in _INLINE else v for k, v in p.items() if v is not None} for p in content]
    return {**message, "content": content}
