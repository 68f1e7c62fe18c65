"""How a sample becomes tokens: the only place that writes special tokens, and says which are targets.

    document   <bos> text \\n text [image] text ... <eos>
    caption    <bos> [image] alt: caption <eos>       ("caption:" before a dense caption)
    dialogue   <bos> (question [image] answer)...     as the tokenizer's layout writes it (`layout.py`)

Targets are text, and the token that ends text of the model's own: without it the model never learns to stop.
Pictures, roles, the caption's prefix and the end of a user's turn are never targets. The parts are encoded
one by one, so that no token reaches over the border of prompt and answer.
"""

import random
from dataclasses import dataclass, field
from itertools import groupby, takewhile

import numpy as np

from data_pipeline.errors import ConfigError
from data_pipeline.image_spec import SPLIT_TILES
from data_pipeline.sample import Sample, Segment
from data_pipeline.stream.tokens import Tokenizer

LOSS_ON = ("all_text", "answers")

_Message = tuple[str, list[Segment]]  # role, segments


class Unusable(Exception):
    """The sample cannot be trained on. `reason` is short, so that it can be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Variant:
    """Which of the ways to show a sample.

    Of a caption sample's n captions, number `caption % n`. `split`: each picture as its four quarters and the
    whole. `turns` seeds the order of a dialogue's questions, each with its answer (None: as written).
    """

    caption: int = 0
    split: bool = False
    turns: int | None = None


AS_WRITTEN = Variant()


@dataclass(frozen=True, eq=False)
class Rendered:
    """One document in tokens. L: its length.

    `images[k]` is the media index of span k; a picture used twice has two. A span has `tiles` tiles, and tile
    t of the document, counted from 1 (span (t - 1) // tiles), owns the visual tokens with `image_ids == t`.
    A cut before position `cuts[i]` falls between segments. `anchored`: text after a cut would speak of a
    picture or a question that is gone, so only the first piece may be kept.
    """

    input_ids: np.ndarray  # int64[L]
    loss: np.ndarray  # bool[L]; may this token be a target
    image_ids: np.ndarray  # int64[L]; 1-based at visual tokens, else 0
    images: tuple[int, ...]
    cuts: tuple[int, ...] = ()
    anchored: bool = False
    tiles: int = 1

    def __len__(self) -> int:
        return len(self.input_ids)


def render(
    sample: Sample, tokenizer: Tokenizer, image_tokens: int, loss_on: str, variant: Variant = AS_WRITTEN
) -> Rendered:
    """The tokens and targets of `sample`; `image_tokens` is the number of visual tokens of one tile.

    Turns in another order never change the number of tokens: a dialogue in which they would, or whose later
    turns have pictures of their own, or whose roles do not alternate, stays as written.
    Raises Unusable where nothing can be made of it: a video, a picture without bytes, no target at all.
    """
    if loss_on not in LOSS_ON:
        raise ConfigError(f"loss_on: {loss_on!r} is none of {', '.join(LOSS_ON)}")
    segments = _usable(sample)
    tape = _Tape(tokenizer, image_tokens, variant.split)
    if sample.kind == "caption":
        _caption(tape, segments, variant.caption)
    elif sample.kind == "instruct":
        messages = _messages(segments)
        _dialogue(tape, messages, all_text=loss_on == "all_text")
        if variant.turns is not None and (other := _reordered(messages, variant.turns)):
            tried = _Tape(tokenizer, image_tokens, variant.split, known=tape.known)
            _dialogue(tried, other, all_text=loss_on == "all_text")
            tape = tried if len(tried.ids) == len(tape.ids) else tape
    else:
        _document(tape, segments)
    if not tape.has_target:
        raise Unusable("no targets")
    return tape.rendered(anchored=sample.kind in ("caption", "instruct"))


def prompt(
    sample: Sample, tokenizer: Tokenizer, image_tokens: int, turn: int = 0, variant: Variant = AS_WRITTEN
) -> Rendered:
    """What the model sees before it answers: an exact prefix of `render`'s tokens.

    Caption samples end in "caption:", dialogues where answer number `turn` begins. The answer is what the
    model then writes up to <eos>, or to the layout's end of a turn. Turns are asked as written, whatever
    `variant` says. Raises ValueError for samples that ask for nothing.
    """
    tape = _Tape(tokenizer, image_tokens, variant.split)
    segments = _usable(sample)
    if sample.kind == "caption":
        _pictures(tape, segments)
        tape.write("caption:")
    elif sample.kind == "instruct":
        _dialogue(tape, _messages(segments), all_text=False, until=turn)
    else:
        raise ValueError(f"sample {sample.id}: a sample of kind {sample.kind!r} has no prompt")
    return tape.rendered(anchored=True)


def caption_count(sample: Sample) -> int:
    """How many captions `render` can choose from; 1 for what is no caption sample."""
    if sample.kind != "caption":
        return 1
    return max(1, sum(s.type == "text" for s in _usable(sample)))


@dataclass
class _Tape:
    """Tokens as they are written, with their targets and tile numbers. `known`: texts encoded before."""

    tokenizer: Tokenizer
    image_tokens: int
    split: bool
    known: dict[str, list[int]] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    runs: list[tuple[int, bool, int]] = field(default_factory=list)  # length, target, tile
    images: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tiles = SPLIT_TILES if self.split else 1
        self.control(self.tokenizer.bos_id)

    def control(self, token: int, target: bool = False) -> None:
        self.ids.append(token)
        self.runs.append((1, target, 0))
        self._after_special, self._after_picture = True, False

    def text(self, text: str, target: bool) -> None:
        """Text of the sample's own."""
        text = self._spaced(text)
        ids = self.known.get(text)
        if ids is None:
            ids = self.known[text] = self.tokenizer.encode(text)
        self._put(ids, target)
        self._after_special = self._after_picture = False

    def write(self, item: str, target: bool = False) -> None:
        """A string of the layout's: the name of a special token, text, or nothing."""
        token = self.tokenizer.ids.get(item)
        if token is not None:
            self.control(token, target)
        elif item:
            self._put(self.tokenizer.fixed(self._spaced(item)), target)
            self._after_special = self._after_picture = False

    def image(self, media: int) -> None:
        """The span of one picture: all its tiles."""
        t = self.tokenizer
        first = len(self.images) * self.tiles + 1
        self.images.append(media)
        for tile in range(first, first + self.tiles):
            if not (t.layout.shared and self._after_picture):
                self.control(t.image_start_id)
            self._put([t.image_id] * self.image_tokens, False, tile)
            self.control(t.image_end_id)
            self._after_picture = True

    def cut(self) -> None:
        """A new piece may start here."""
        self.cuts.append(len(self.ids))

    def _spaced(self, text: str) -> str:
        """`text` with the layout's gap before it, where one is needed.

        None before "<" and blanks, as in Idefics2Processor: it opens a gap after a picture by that rule.
        """
        gap = self.tokenizer.layout.gap
        bare = gap and self._after_special and text[0] != "<" and not text[0].isspace()
        return gap + text if bare else text

    def _put(self, ids: list[int], target: bool, tile: int = 0) -> None:
        self.ids += ids
        self.runs.append((len(ids), target, tile))

    @property
    def has_target(self) -> bool:
        return any(target and length for length, target, _ in self.runs)

    def rendered(self, anchored: bool) -> Rendered:
        lengths, targets, tiles = zip(*self.runs, strict=True)
        return Rendered(
            input_ids=np.array(self.ids, dtype=np.int64),
            loss=np.repeat(np.array(targets, dtype=np.bool_), lengths),
            image_ids=np.repeat(np.array(tiles, dtype=np.int64), lengths),
            images=tuple(self.images),
            cuts=tuple(self.cuts),
            anchored=anchored,
            tiles=self.tiles,
        )


def _usable(sample: Sample) -> list[Segment]:
    """The segments that take tokens: pictures, and text that is not blank."""
    kept = []
    for s in sample.segments:
        if s.type == "video":
            raise Unusable("video")
        if s.type == "image":
            if s.media is None or sample.media[s.media].error is not None:
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
        if s.type == "image" and s.media is not None:
            tape.image(s.media)
        else:
            followed = n + 1 < len(segments) and segments[n + 1].type == "text"
            tape.text((s.text or "") + ("\n" if followed else ""), target=s.loss != 0)
            closing = s.loss != 0
    tape.control(tape.tokenizer.eos_id, target=closing and tape.has_target)


def _caption(tape: _Tape, segments: list[Segment], number: int) -> None:
    captions = [s for s in segments if s.type == "text"]
    if not captions:
        raise Unusable("no targets")
    chosen = captions[number % len(captions)]
    _pictures(tape, segments)
    # Two names for two kinds of text: a model trained on noisy alt text can still be asked for the other.
    tape.write("alt:" if chosen.role == "alt" else "caption:")
    start = len(tape.ids)
    tape.text(" " + (chosen.text or "").strip(), target=chosen.loss != 0)
    tape.cuts.extend(range(start + 1, len(tape.ids) + 1))
    tape.control(tape.tokenizer.eos_id, target=chosen.loss != 0)


def _pictures(tape: _Tape, segments: list[Segment]) -> None:
    for s in segments:
        if s.type == "image" and s.media is not None:
            tape.image(s.media)


def _messages(segments: list[Segment]) -> list[_Message]:
    """The segments by role and turn."""
    groups = groupby(segments, key=lambda s: (s.role or "user", s.turn))
    return [(role, list(group)) for (role, _), group in groups]


def _dialogue(tape: _Tape, messages: list[_Message], all_text: bool, until: int | None = None) -> None:
    """Write the messages; with `until`, stop where answer number `until` begins."""
    layout = tape.tokenizer.layout
    system, messages = _take_turns(messages) if layout.alternating else ([], messages)
    answers = 0
    for role, message in messages:
        if role not in layout.opens:
            raise Unusable(f"role {role}")
        mine = role == "assistant"
        tape.write(layout.opens[role])
        if mine and answers == until:
            return
        if system:
            _message(tape, system, layout.lead, all_text)
            tape.write("\n\n")
        _message(tape, message, "" if system else layout.lead, mine or all_text)
        system = []
        for item in layout.closes[role]:
            tape.write(item, target=mine and item == layout.end and message[-1].loss != 0)
        if mine:
            answers += 1
            tape.cut()
    if until is not None:
        raise ValueError(f"answer {until} is asked for, the dialogue has {answers}")
    if layout.closed:
        tape.control(tape.tokenizer.eos_id)


def _message(tape: _Tape, segments: list[Segment], lead: str, target: bool) -> None:
    """The segments of one message; the layout's joint stands between two texts."""
    layout = tape.tokenizer.layout
    held = lead
    for n, s in enumerate(segments):
        if s.type == "image" and s.media is not None:
            tape.image(s.media)
            held = ""
            continue
        text = s.text or ""
        held += text.strip() if layout.trim else text
        after = segments[n + 1] if n + 1 < len(segments) else None
        if after is not None and after.type == "text":
            held += layout.joint
            # With nothing between them they are one text, as any other program would encode it.
            if not layout.joint and (after.loss != 0) == (s.loss != 0):
                continue
        tape.text(held, target and s.loss != 0)
        held = ""


def _take_turns(messages: list[_Message]) -> tuple[list[Segment], list[_Message]]:
    """The system's message, and the others. Raises Unusable where user and assistant do not alternate."""
    system: list[Segment] = []
    if messages and messages[0][0] == "system":
        system, messages = messages[0][1], messages[1:]
    for n, (role, _) in enumerate(messages):
        if role not in ("system", "user", "assistant"):
            raise Unusable(f"role {role}")
        if role != ("assistant" if n % 2 else "user"):
            raise Unusable("turns do not alternate")
    return system, messages


def _reordered(messages: list[_Message], seed: int) -> list[_Message] | None:
    """The questions in another order, each with its answer, behind the pictures that the first began with.

    None where nothing may move: see `render`.
    """
    system = list(takewhile(lambda m: m[0] == "system", messages))
    turns = messages[len(system) :]
    roles = [role for role, _ in turns]
    if len(turns) < 4 or roles != ["user", "assistant"] * (len(turns) // 2):
        return None
    pictures = list(takewhile(lambda s: s.type == "image", turns[0][1]))
    first = turns[0][1][len(pictures) :]
    rest = [("user", first), *turns[1:]]
    if not first or any(s.type == "image" for _, message in [*system, *rest] for s in message):
        return None
    order = list(range(len(turns) // 2))
    random.Random(seed).shuffle(order)
    moved = [rest[2 * n + k] for n in order for k in (0, 1)]
    return [*system, ("user", pictures + moved[0][1]), *moved[1:]]
