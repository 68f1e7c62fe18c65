"""Dialogues: messages with roles as segments, and pictures in their places.

role    system (only first), user, assistant; they must alternate and end with an answer
turn    number of the question and its answer; a system message is of turn 0
loss    1.0 for answers, 0.0 for the rest
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.build.read.layouts.fields import Unfit
from data_pipeline.sample import Segment

IMAGE = "<image>"
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True)
class Message:
    """`parts` are texts and, for a picture, None; pictures are counted through the dialogue in order."""

    role: str
    parts: tuple[str | None, ...]


def role_of(name: object) -> str:
    """Raises Unfit for a role that is none of ROLES."""
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise Unfit("unknown role", f"role {str(name)[:40]!r}, known are {', '.join(ROLES)}")
    return role


def split_images(value: str) -> tuple[str | None, ...]:
    """The text with None for each `<image>`; one line break on either side belongs to the mark."""
    pieces = value.split(IMAGE)
    parts: list[str | None] = []
    for n, piece in enumerate(pieces):
        if n:
            parts.append(None)
            piece = piece.removeprefix("\n")
        if n < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append(piece)
    return tuple(parts)


def join_images(parts: Sequence[str | None]) -> str:
    """The usual spelling, `<image>` on lines of its own: what `split_images` takes apart."""
    return "\n".join(IMAGE if p is None else p for p in parts)


def check_count(marks: int, images: int) -> None:
    if marks != images:
        detail = f"{marks} places for images in the text, {images} images in the row"
        raise Unfit("image count mismatch", detail)


def dialogue(messages: Sequence[Message]) -> tuple[Segment, ...]:
    """Raises Unfit for messages out of order, without an answer, or without a text where one must be."""
    segments: list[Segment] = []
    turn, media, last = -1, 0, ""
    for n, message in enumerate(messages):
        role = message.role
        _check_order(role, last, first=n == 0)
        turn += role == "user"
        if not any(p is None or p.strip() for p in message.parts):
            raise Unfit("empty turn", f"message {n} ({role}) has no text")
        loss = 1.0 if role == "assistant" else 0.0
        for part in message.parts:
            at = max(turn, 0)
            if part is None:
                segments.append(Segment(type="image", media=media, role=role, turn=at, loss=loss))
                media += 1
            else:
                segments.append(Segment(type="text", text=part, role=role, turn=at, loss=loss))
        if role == "assistant" and not any(p and p.strip() for p in message.parts):
            raise Unfit("empty turn", f"message {n} (assistant) has no text")
        last = role
    if last != "assistant":
        raise Unfit(
            "empty turn" if messages else "invalid record", "the dialogue does not end with an answer"
        )
    return tuple(segments)


def _check_order(role: str, last: str, first: bool) -> None:
    allowed = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
    if role not in allowed[last]:
        after = "first" if first else f"after {last}"
        raise Unfit("roles out of order", f"{role} {after}, expected {' or '.join(allowed[last])}")


def questions_and_answers(turns: Sequence[tuple[str, str]], *, image: bool) -> tuple[Segment, ...]:
    """Pairs of question and answer as a dialogue; with `image`, the only picture opens the first question."""
    messages = []
    for n, (question, answer) in enumerate(turns):
        opening = (None,) if image and n == 0 else ()
        messages += [Message("user", (*opening, question)), Message("assistant", (answer,))]
    return dialogue(messages)
