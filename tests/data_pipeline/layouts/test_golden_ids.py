"""Token ids of small dialogues, written down by hand."""

from data_pipeline.stream.chat import Variant, render
from dialogues import (
    BOS,
    CAPTION,
    DIALOGUE,
    DOCUMENT,
    EOS,
    FIRST,
    HI,
    IDS,
    NEWLINE,
    NS,
    WITH_SYSTEM,
    b,
    golden,
    targets,
)


def test_golden_mistral(tmp_path) -> None:
    t = golden(tmp_path, "mistral")
    start, end, image = FIRST, FIRST + 1, FIRST + 2
    opening, closing = [259, 275, 270, NS, 271, 276], [259, 275, 277, 270, NS, 271, 276]
    assert opening == [*b(" [I"), NS, *b("T]")]
    r = render(DIALOGUE, t, 2, "answers")
    assert r.input_ids.tolist() == [
        *[BOS, *opening, start, image, image, end, HI, IDS["?"], *closing, *b(" a"), EOS],
        *[*opening, *b(" b"), *closing, *b(" c"), EOS],
    ]
    assert targets(r) == [*b(" a"), EOS, *b(" c"), EOS]
    assert targets(render(DIALOGUE, t, 2, "all_text")) == [HI, IDS["?"], *b(" a"), EOS, *b(" b c"), EOS]
    assert r.image_ids.tolist()[:12] == [*[0] * 8, 1, 1, 0, 0]
    # The system's message stands in the first question, before a blank line.
    assert render(WITH_SYSTEM, t, 1, "answers").input_ids.tolist() == [
        *[BOS, *opening, *b(" s"), NEWLINE, NEWLINE, *b("hi"), start, image, end],
        *[start, image, end, *b(" u"), *closing, *b(" a"), EOS],
    ]
    assert render(DOCUMENT, t, 1, "answers").input_ids.tolist() == [
        *[BOS, *b(" a"), start, image, end, start, image, end, *b(" b"), NEWLINE, *b("c"), EOS]
    ]
    split = render(CAPTION, t, 1, "answers", Variant(split=True))
    assert split.input_ids.tolist()[:16] == [BOS, *[start, image, end] * 5]
    assert split.image_ids.tolist()[:16] == [0, *[0, 1, 0], *[0, 2, 0], *[0, 3, 0], *[0, 4, 0], *[0, 5, 0]]
    assert (split.images, split.tiles) == ((0,), 5)
    assert targets(split) == [*b(" a"), EOS]
    assert (t.pad_id, t.bos_id, t.eos_id, t.end_id, t.text_vocab_size, len(t)) == (0, 1, 2, 2, 285, 288)


def test_golden_idefics2(tmp_path) -> None:
    t = golden(tmp_path, "idefics2")
    fake, image, end = FIRST, FIRST + 1, FIRST + 2
    letters = {c: 3 + ord(c) for c in "ermntyS"}  # bytes, where the vocabulary has no letter
    user = [IDS["U"], IDS["s"], letters["e"], letters["r"], IDS[":"]]
    assistant = [IDS["A"], IDS["s"], IDS["s"], IDS["i"], IDS["s"], letters["t"], IDS["a"], letters["n"]]
    assistant += [letters["t"], IDS[":"]]
    r = render(DIALOGUE, t, 2, "answers")
    assert r.input_ids.tolist() == [
        *[BOS, 259, *user, fake, image, image, fake, HI, IDS["?"], end, NEWLINE],
        *[*assistant, *b(" a"), end, NEWLINE],
        *[*user, *b(" b"), end, NEWLINE],
        *[*assistant, *b(" c"), end, NEWLINE],
    ]
    assert targets(r) == [*b(" a"), end, *b(" c"), end]
    assert targets(render(DIALOGUE, t, 2, "all_text")) == [HI, IDS["?"], *b(" a"), end, *b(" b c"), end]
    system = [IDS["S"], letters["y"], IDS["s"], letters["t"], letters["e"], letters["m"], IDS[":"]]
    assert render(WITH_SYSTEM, t, 1, "answers").input_ids.tolist() == [
        *[BOS, 259, *system, *b(" s"), end, NEWLINE, *user, HI, fake, image, fake, image, fake, *b(" u")],
        *[end, NEWLINE, *assistant, *b(" a"), end, NEWLINE],
    ]
    assert render(DOCUMENT, t, 1, "answers").input_ids.tolist() == [
        *[BOS, *b(" a"), fake, image, fake, image, fake, *b(" b"), NEWLINE, *b("c"), EOS]
    ]
    split = render(CAPTION, t, 1, "answers", Variant(split=True))
    assert split.input_ids.tolist()[:12] == [
        BOS,
        fake,
        image,
        fake,
        image,
        fake,
        image,
        fake,
        image,
        fake,
        image,
        fake,
    ]
    assert split.image_ids.tolist()[:12] == [0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert (t.end_id, t.image_start_id, t.image_end_id, t.image_id) == (end, fake, fake, image)
    assert [i for i in range(len(t)) if not t.may_be_target[i]] == [0, 1, fake, image]


def test_golden_tiny_with_split_pictures(bytes_tokenizer) -> None:
    """The others of `tiny` stand in test_stream_chat.py."""
    start, end, image, a = 263, 264, 265, 71
    r = render(DOCUMENT, bytes_tokenizer, 1, "answers", Variant(split=True))
    newline = 205
    assert r.input_ids.tolist() == [1, a, *[start, image, end] * 10, a + 1, newline, a + 2, 2]
    assert r.image_ids.tolist() == [0, 0, *[i for n in range(1, 11) for i in (0, n, 0)], 0, 0, 0, 0]
    assert (r.images, r.tiles) == ((0, 1), 5)
    assert r.cuts == (2, 17, 32, 34)
