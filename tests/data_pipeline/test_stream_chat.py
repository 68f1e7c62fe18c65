"""The token layout and its targets, against lists written by hand: of the bytes tokenizer '!' is 7."""

from dataclasses import replace

import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import Unusable, Variant, caption_count, prompt, render

BOS, EOS, SYSTEM, USER, ASSISTANT, END = 1, 2, 3, 4, 5, 6
IS, IE, IMG = 263, 264, 265
SPACE, NEWLINE = 227, 205


def b(text: str) -> list[int]:
    """The ids of printable ASCII, by hand."""
    return [{" ": SPACE, "\n": NEWLINE}.get(c) or 7 + ord(c) - ord("!") for c in text]


def targets(rendered) -> list[int]:
    """Position, then the token there, of each target."""
    return [(i, int(rendered.input_ids[i])) for i in rendered.loss.nonzero()[0].tolist()]


def sample(kind: str, *segments: Segment, media: int = 1, **more) -> Sample:
    return Sample(
        id="s",
        kind=kind,
        source="x",
        segments=segments,
        media=tuple(Media(media_id=str(n), **more) for n in range(media)),
        image_bytes=(b"",) * media,
    )


IMAGE = Segment(type="image", media=0)
DIALOGUE = sample(
    "instruct",
    replace(IMAGE, role="user", turn=0),
    Segment(type="text", text="hi?", role="user", turn=0),
    Segment(type="text", text="yo", role="assistant", turn=0),
    Segment(type="text", text="n", role="user", turn=1),
    Segment(type="text", text="7", role="assistant", turn=1),
)
CAPTION = sample(
    "caption",
    IMAGE,
    Segment(type="text", text="cat", role="alt"),
    Segment(type="text", text="a cat", role="recaption"),
)


def test_dialogue_golden(bytes_tokenizer) -> None:
    r = render(DIALOGUE, bytes_tokenizer, 2, "answers")
    h, i, q, y, o, n, seven = 78, 79, 37, 95, 85, 84, 29
    assert r.input_ids.tolist() == [
        *[BOS, USER, IS, IMG, IMG, IE, h, i, q, END],
        *[ASSISTANT, y, o, END],
        *[USER, n, END],
        *[ASSISTANT, seven, END, EOS],
    ]
    assert targets(r) == [(11, y), (12, o), (13, END), (18, seven), (19, END)]
    assert r.image_ids.tolist() == [0, 0, 0, 1, 1, *[0] * 16]
    assert r.images == (0,)
    everything = render(DIALOGUE, bytes_tokenizer, 2, "all_text")
    assert everything.input_ids.tolist() == r.input_ids.tolist()
    assert targets(everything) == [(6, h), (7, i), (8, q), *targets(r)[:3], (15, n), *targets(r)[3:]]


def test_caption_golden(bytes_tokenizer) -> None:
    alt = render(CAPTION, bytes_tokenizer, 2, "all_text", Variant(caption=0))
    a, c, t, ell, colon = 71, 73, 90, 82, 32
    assert alt.input_ids.tolist() == [BOS, IS, IMG, IMG, IE, a, ell, t, colon, SPACE, c, a, t, EOS]
    assert targets(alt) == [(9, SPACE), (10, c), (11, a), (12, t), (13, EOS)]
    dense = render(CAPTION, bytes_tokenizer, 2, "answers", Variant(caption=1))
    assert dense.input_ids.tolist() == [BOS, IS, IMG, IMG, IE, *b("caption: a cat"), EOS]
    assert dense.loss.tolist() == [False] * 13 + [True] * 7
    assert caption_count(CAPTION) == 2
    again = render(CAPTION, bytes_tokenizer, 2, "answers", Variant(caption=5))
    assert again.input_ids.tolist() == dense.input_ids.tolist()


def test_document_golden(bytes_tokenizer) -> None:
    text = sample(
        "interleaved",
        Segment(type="text", text="a"),
        Segment(type="page_break"),
        Segment(type="text", text="b"),
        IMAGE,
        Segment(type="text", text=" "),
        IMAGE,
        Segment(type="text", text="c"),
    )
    r = render(text, bytes_tokenizer, 1, "answers")
    assert r.input_ids.tolist() == [BOS, *b("a\nb"), IS, IMG, IE, IS, IMG, IE, *b("c"), EOS]
    assert targets(r) == [(1, 71), (2, NEWLINE), (3, 72), (10, 73), (11, EOS)]
    assert r.image_ids.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0]
    assert r.images == (0, 0)
    assert r.cuts == (3, 4, 7, 10)


def test_a_segment_can_be_turned_off(bytes_tokenizer) -> None:
    quiet = replace(
        DIALOGUE,
        segments=tuple(replace(s, loss=0.0) if s.text == "yo" else s for s in DIALOGUE.segments),
    )
    r = render(quiet, bytes_tokenizer, 2, "answers")
    assert targets(r) == [(18, 29), (19, END)]


def test_system_message(bytes_tokenizer) -> None:
    s = sample(
        "instruct",
        Segment(type="text", text="s", role="system"),
        Segment(type="text", text="u", role="user"),
        Segment(type="text", text="a", role="assistant"),
        media=0,
    )
    r = render(s, bytes_tokenizer, 2, "answers")
    assert r.input_ids.tolist() == [
        *[BOS, SYSTEM, *b("s"), END, USER, *b("u"), END, ASSISTANT, *b("a"), END, EOS]
    ]


@pytest.mark.parametrize("turn", [0, 1])
def test_prompt_is_a_prefix_of_render(tokenizer, make, turn: int) -> None:
    for n in range(5):
        for s, variant in ((make.dialogue(n), 0), (make.caption(n), 1)):
            asked = prompt(s, tokenizer, 4, turn=turn if s.kind == "instruct" else 0)
            whole = render(s, tokenizer, 4, "answers", Variant(caption=variant))
            assert whole.input_ids[: len(asked)].tolist() == asked.input_ids.tolist()
            assert whole.image_ids[: len(asked)].tolist() == asked.image_ids.tolist()
            assert not whole.loss[: len(asked)].any() or turn > 0
            assert whole.loss[len(asked)]
            assert not asked.loss.any() or turn > 0


def test_prompt_refuses_what_asks_for_nothing(tokenizer, make) -> None:
    with pytest.raises(ValueError, match="kind 'text' has no prompt"):
        prompt(make.document(0, pictures=0), tokenizer, 4)
    with pytest.raises(ValueError, match="answer 2 is asked for, the dialogue has 2"):
        prompt(make.dialogue(0), tokenizer, 4, turn=2)


def test_unusable_samples_say_why(bytes_tokenizer) -> None:
    cases = {
        "no targets": sample("interleaved", IMAGE),
        "video": sample("video", Segment(type="video", media=0)),
        "picture missing": sample("caption", IMAGE, Segment(type="text", text="x"), error="404"),
        "role tool": sample("instruct", Segment(type="text", text="x", role="tool")),
    }
    for reason, s in cases.items():
        with pytest.raises(Unusable, match=f"^{reason}$"):
            render(s, bytes_tokenizer, 1, "answers")
    with pytest.raises(ConfigError, match="loss_on: 'all' is none of all_text, answers"):
        render(CAPTION, bytes_tokenizer, 1, "all")


def test_literal_special_tokens_stay_text(bytes_tokenizer) -> None:
    s = sample("text", Segment(type="text", text="<|image|><|end|>"), media=0)
    r = render(s, bytes_tokenizer, 4, "all_text")
    assert r.input_ids.tolist() == [BOS, *b("<|image|><|end|>"), EOS]
    assert not r.image_ids.any()
