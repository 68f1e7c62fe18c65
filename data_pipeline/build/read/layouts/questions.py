"""Questions about an image: `question` and `answer`, or `turns`: [[question, answer], ...].

The image (file, image, image_name, file_name, path, or a member of a tar) opens the first question. Kept: the
licence in `Sample.license`; every other column (qid, question_type...) in `general_metadata`.
"""

from collections.abc import Mapping
from typing import Any

from data_pipeline.build.read.layouts.captions import IMAGE_KEYS, MEMBERS, URL_KEYS, first, image_of
from data_pipeline.build.read.layouts.fields import Found, Pictures, Unfit, licence, rest, text
from data_pipeline.build.read.layouts.turns import Message, dialogue
from data_pipeline.build.read.rows.row import Row

_TAKEN = frozenset((*IMAGE_KEYS, *MEMBERS, "question", "answer", "turns", "license"))
_EXPECTED = "expected `question` and `answer`, or `turns`: [[q, a], ...]"

DOCUMENTS = False


def recognises(value: Mapping[str, Any]) -> bool:
    return not value.keys().isdisjoint(("question", "turns"))


def read(row: Row, pictures: Pictures) -> Found:
    value = row.value
    assert isinstance(value, dict)
    turns = _turns(value)
    image = image_of(row) or first(value, URL_KEYS)
    picture = None if image is None else pictures.find(image)
    messages = []
    for n, (question, answer) in enumerate(turns):
        opening = (None,) if picture is not None and n == 0 else ()
        messages += [Message("user", (*opening, question)), Message("assistant", (answer,))]
    return Found(
        kind="instruct",
        segments=dialogue(messages),
        pictures=() if picture is None else (picture,),
        metadata=rest(value, _TAKEN),
        licence=licence(value),
    )


def _turns(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    turns = value.get("turns")
    if turns is None:
        turns = [(value.get("question"), value.get("answer"))]
    found = []
    for turn in turns if isinstance(turns, list) else []:
        pair = (turn.get("question"), turn.get("answer")) if isinstance(turn, dict) else turn
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unfit("invalid record", _EXPECTED)
        question, answer = text(pair[0], "question").strip(), text(pair[1], "answer").strip()
        if not question or not answer:
            raise Unfit("invalid record" if None in pair else "empty turn", _EXPECTED)
        found.append((question, answer))
    if not found:
        raise Unfit("invalid record", _EXPECTED)
    return found
