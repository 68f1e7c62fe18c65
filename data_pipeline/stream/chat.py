"""How a sample becomes tokens: the only place that writes special tokens, and says which are targets.

    document   <bos> text \n text [image] text ... <eos>
    caption    <bos> [image] alt: caption <eos>       ("caption:" before a dense caption)
    dialogue   <bos> (<user> [image] text <end> <assistant> text <end>)... <eos>
    [image]    <image_start> <image> x image_tokens <image_end>

Targets are text, and the <eos> or <end> that closes text of the model's own: without them it never learns
to stop. Pictures, roles, the caption's prefix and the end of a user's turn are never targets.
"""

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from data_pipeline.errors import ConfigError
from data_pipeline.sample import Sample, Segment
from data_pipeline.stream.tokens import Tokenizer

LOSS_ON = ("all_text", "answers")


class Unusable(Exception):
    """The sample cannot be trained on. `reason` is short, so that it can be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Rendered:
    """One document in tokens. L: its length.

    `images[k - 1]` is the media index of the span whose visual tokens have `image_ids == k`; a picture
    used twice has two spans. A cut before position `cuts[i]` falls between segments. `anchored`: text after
    a cut would speak of a picture or a question that is gone, so only the first piece may be kept.
    """

    input_ids: np.ndarray  # int64[L]
    loss: np.ndarray  # bool[L]; may this token be a target
    image_ids: np.ndarray  # int64[L]; 1-based at visual tokens, else 0
    images: tuple[int, ...]
    cuts: tuple[int, ...] = ()
    anchored: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)


def render(
    sample: Sample, tokenizer: Tokenizer, image_tokens: int, loss_on: str, variant: int = 0
) -> Rendered:
    """The tokens and targets of `sample`. Of a caption sample's n captions, number `variant % n` is used.

    Raises Unusable where nothing can be made of it: a video, a picture without bytes, no target at all.
    """
    if loss_on not in LOSS_ON:
        raise ConfigError(f"loss_on: {loss_on!r} is none of {', '.join(LOSS_ON)}")
    tape = _Tape(tokenizer, image_tokens)
    segments = _usable(sample)
    if sample.kind == "caption":
        _caption(tape, segments, variant)
    elif sample.kind == "instruct":
        _dialogue(tape, segments, all_text=loss_on == "all_text")
    else:
        _document(tape, segments)
    if not any(tape.loss):
        raise Unusable("no targets")
    return tape.rendered(anchored=sample.kind in ("caption", "instruct"))


def prompt(sample: Sample, tokenizer: Tokenizer, image_tokens: int, turn: int = 0) -> Rendered:
    """What the model sees before it answers: an exact prefix of `render`'s tokens.

    Caption samples end in "caption:", dialogues in the <assistant> of answer number `turn`. The answer is
    what the model then writes up to <eos> or <end>. Raises ValueError for samples that ask for nothing.
    """
    tape = _Tape(tokenizer, image_tokens)
    segments = _usable(sample)
    if sample.kind == "caption":
        _pictures(tape, segments)
        tape.text("caption:", target=False)
    elif sample.kind == "instruct":
        _dialogue(tape, segments, all_text=False, until=turn)
    else:
        raise ValueError(f"sample {sample.id}: a sample of kind {sample.kind!r} has no prompt")
    return tape.rendered(anchored=True)


def caption_count(sample: Sample) -> int:
    """How many variants `render` knows of this sample."""
    if sample.kind != "caption":
        return 1
    return max(1, sum(s.type == "text" for s in _usable(sample)))


@dataclass
class _Tape:
    """Tokens as they are written, with their targets and picture numbers."""

    tokenizer: Tokenizer
    image_tokens: int
    ids: list[int] = field(default_factory=list)
    loss: list[bool] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.control(self.tokenizer.bos_id)

    def control(self, token: int, target: bool = False) -> None:
        self._put([token], target)

    def text(self, text: str, target: bool) -> None:
        self._put(self.tokenizer.encode(text), target)

    def image(self, media: int) -> None:
        self.images.append(media)
        self.control(self.tokenizer.image_start_id)
        self._put([self.tokenizer.image_id] * self.image_tokens, False, len(self.images))
        self.control(self.tokenizer.image_end_id)

    def cut(self) -> None:
        """A new piece may start here."""
        self.cuts.append(len(self.ids))

    def _put(self, ids: list[int], target: bool, image: int = 0) -> None:
        self.ids += ids
        self.loss += [target] * len(ids)
        self.image_ids += [image] * len(ids)

    def rendered(self, anchored: bool) -> Rendered:
        return Rendered(
            input_ids=np.array(self.ids, dtype=np.int64),
            loss=np.array(self.loss, dtype=np.bool_),
            image_ids=np.array(self.image_ids, dtype=np.int64),
            images=tuple(self.images),
            cuts=tuple(self.cuts),
            anchored=anchored,
        )


def _usable(sample: Sample) -> list[Segment]:
    """The segments that take tokens: pictures, and text that is not blank."""
    kept = []
    for s in sample.segments:
        if s.type == "video":
            raise Unusable("video")
        if s.type == "image":
            if sample.media[s.media].error is not None:
                raise Unusable("picture missing")
            kept.append(s)
        elif s.type == "text" and s.text and not s.text.isspace():
            kept.append(s)
    return kept


def _document(tape: _Tape, segments: list[Segment]) -> None:
    closing = True
    for n, s in enumerate(segments):
        if n:
            tape.cut()
        if s.type == "image":
            tape.image(s.media)
        else:
            _line(tape, segments, n, target=s.loss != 0)
            closing = s.loss != 0
    written = any(tape.loss)
    tape.control(tape.tokenizer.eos_id, target=closing and written)


def _caption(tape: _Tape, segments: list[Segment], variant: int) -> None:
    captions = [s for s in segments if s.type == "text"]
    if not captions:
        raise Unusable("no targets")
    chosen = captions[variant % len(captions)]
    _pictures(tape, segments)
    # Two names for two kinds of text: a model trained on noisy alt text can still be asked for the other.
    tape.text("alt:" if chosen.role == "alt" else "caption:", target=False)
    start = len(tape.ids)
    tape.text(" " + chosen.text.strip(), target=chosen.loss != 0)
    tape.cuts.extend(range(start + 1, len(tape.ids) + 1))
    tape.control(tape.tokenizer.eos_id, target=chosen.loss != 0)


def _pictures(tape: _Tape, segments: list[Segment]) -> None:
    for s in segments:
        if s.type == "image":
            tape.image(s.media)


def _dialogue(tape: _Tape, segments: list[Segment], all_text: bool, until: int | None = None) -> None:
    """Write the messages; with `until`, stop where answer number `until` begins."""
    tokens = tape.tokenizer
    roles = {"system": tokens.system_id, "user": tokens.user_id, "assistant": tokens.assistant_id}
    answers = 0
    for (role, _), group in groupby(segments, key=lambda s: (s.role or "user", s.turn)):
        if role not in roles:
            raise Unusable(f"role {role}")
        message = list(group)
        mine = role == "assistant"
        tape.control(roles[role])
        if mine and answers == until:
            return
        for n, s in enumerate(message):
            if s.type == "image":
                tape.image(s.media)
            else:
                _line(tape, message, n, target=(mine or all_text) and s.loss != 0)
        tape.control(tokens.end_id, target=mine and message[-1].loss != 0)
        if mine:
            answers += 1
            tape.cut()
    if until is not None:
        raise ValueError(f"answer {until} is asked for, the dialogue has {answers}")
    tape.control(tokens.eos_id)


def _line(tape: _Tape, segments: list[Segment], n: int, target: bool) -> None:
    """Text segment n; a newline ends it where another text segment follows."""
    followed = n + 1 < len(segments) and segments[n + 1].type == "text"
    tape.text(segments[n].text + ("\n" if followed else ""), target)
