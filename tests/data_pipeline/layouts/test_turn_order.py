"""Turns in another order by seed: the same tokens and pictures."""

import random
import re
from dataclasses import replace

import pytest

import mistral_like
from data_pipeline.stream.chat import Unusable, Variant, prompt, render
from data_pipeline.stream.layout import LAYOUTS
from data_pipeline.stream.tokens import Tokenizer
from dialogues import random_dialogue, sample, says, targets


@pytest.mark.parametrize("layout", LAYOUTS)
def test_turns_come_in_another_order_by_seed_and_take_the_same_tokens(
    tmp_path, layout, learned, tokenizer
) -> None:
    t = (
        tokenizer
        if layout == "tiny"
        else Tokenizer.load(mistral_like.write(tmp_path, *learned, "legacy"), layout)
    )
    parts = [*says("system", 0, "s"), *says("user", 0, 1, 0, "what0?"), *says("assistant", 0, "a0")]
    for n in range(1, 5):
        parts += [*says("user", n, f"what{n}?"), *says("assistant", n, f"a{n}")]
    s = sample("instruct", *parts)
    written = render(s, t, 2, "answers")
    orders = set()
    for seed in range(30):
        r = render(s, t, 2, "answers", Variant(turns=seed))
        assert len(r) == len(written)
        assert r.images == (1, 0)
        assert (r.loss.sum(), r.image_ids.max()) == (written.loss.sum(), 2)
        said = t.decode(r.input_ids)
        order = tuple(re.findall(r"what(\d)", said))
        assert tuple(re.findall(r"a(\d)", said)) == order  # each question with its answer
        assert sorted(order) == list("01234")
        first_question = said.index("what")
        assert 0 <= said.index("s") < first_question
        assert int(r.image_ids.nonzero()[0].max()) < int(r.loss.argmax())
        again = render(s, t, 2, "answers", Variant(turns=seed))
        assert again.input_ids.tolist() == r.input_ids.tolist()
        orders.add(order)
    if layout != "mistral":  # there the system's text and the first question are one string
        assert len(orders) > 10
    assert render(s, t, 2, "answers", Variant(turns=None)).input_ids.tolist() == written.input_ids.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_order_of_any_dialogue_keeps_its_size_and_pictures(tmp_path, layout, learned, tokenizer) -> None:
    t = (
        tokenizer
        if layout == "tiny"
        else Tokenizer.load(mistral_like.write(tmp_path, *learned, "first"), layout)
    )
    rng = random.Random(6)
    moved = 0
    for seed in range(120):
        s = random_dialogue(rng, pictures=seed % 2 == 0)
        written = render(s, t, 2, "answers")
        r = render(s, t, 2, "answers", Variant(turns=seed))
        assert (len(r), r.images, r.loss.sum()) == (len(written), written.images, written.loss.sum())
        moved += r.input_ids.tolist() != written.input_ids.tolist()
    assert moved > 10


@pytest.mark.parametrize(
    "parts",
    [
        [
            *says("user", 0, "a"),
            *says("assistant", 0, "b"),
            *says("user", 1, 0, "c"),
            *says("assistant", 1, "d"),
        ],
        [
            *says("user", 0, "a", 0),
            *says("assistant", 0, "b"),
            *says("user", 1, "c"),
            *says("assistant", 1, "d"),
        ],
        [*says("user", 0, 0), *says("assistant", 0, "b"), *says("user", 1, "c"), *says("assistant", 1, "d")],
        [*says("user", 0, "a"), *says("assistant", 0, "b"), *says("user", 1, "c")],
    ],
    ids=["a later picture", "a picture after text", "a picture alone", "a question without an answer"],
)
def test_a_dialogue_whose_order_matters_stays_as_written(tokenizer, parts) -> None:
    s = sample("instruct", *parts)
    written = render(s, tokenizer, 2, "answers").input_ids.tolist()
    for seed in range(8):
        assert render(s, tokenizer, 2, "answers", Variant(turns=seed)).input_ids.tolist() == written


def test_split_pictures_in_every_kind_of_sample(tokenizer, make) -> None:
    for s in (make.caption(0), make.document(0, pictures=2), make.dialogue(0)):
        whole = render(s, tokenizer, 3, "answers")
        split = render(s, tokenizer, 3, "answers", Variant(split=True))
        assert split.images == whole.images
        assert split.image_ids.max() == 5 * whole.image_ids.max()
        assert len(split) - len(whole) == 4 * 5 * len(whole.images)
        assert targets(split) == targets(whole)
        if s.kind != "interleaved":
            asked = prompt(s, tokenizer, 3, variant=Variant(split=True))
            caption = Variant(caption=1, split=True)
            longer = render(s, tokenizer, 3, "answers", caption).input_ids.tolist()
            assert asked.tiles == 5
            assert longer[: len(asked)] == asked.input_ids.tolist()
    muted = replace(make.caption(0), segments=make.caption(0).segments[:1])
    with pytest.raises(Unusable, match="no targets"):
        render(muted, tokenizer, 3, "answers", Variant(split=True))
