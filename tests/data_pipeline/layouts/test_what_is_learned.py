"""What is a target, what stays text, and what a layout cannot say."""

import pickle
import random
import re

import pytest
import tokenizers

import mistral_like
from data_pipeline.stream.chat import Unusable, prompt, render
from data_pipeline.stream.layout import LAYOUTS
from data_pipeline.stream.tokens import Tokenizer
from dialogues import b, golden, random_dialogue, sample, says, targets


@pytest.mark.parametrize(("layout", "asks"), [("mistral", " [/INST]"), ("idefics2", "Assistant:")])
def test_no_token_reaches_from_the_prompt_into_the_answer(tmp_path, layout: str, asks: str) -> None:
    """A merge such as "]▁" would: the model is asked with "]", and was trained on something else."""
    t = golden(tmp_path, layout)
    assert t.encode(asks + " a") != t.encode(asks) + t.encode(" a")  # the trap is there
    s = sample("instruct", *says("user", 0, "b?"), *says("assistant", 0, "a"))
    r, asked = render(s, t, 1, "answers"), prompt(s, t, 1)
    assert r.input_ids.tolist()[: len(asked)] == asked.input_ids.tolist()
    assert targets(r) == [*b(" a"), t.end_id]
    assert r.loss[len(asked)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_and_nothing_else_are_targets(tmp_path, layout, learned, tokenizer) -> None:
    """Decoded, the targets are the answers, turn by turn, whatever the dialogue says."""
    t = (
        tokenizer
        if layout == "tiny"
        else Tokenizer.load(mistral_like.write(tmp_path, *learned, "legacy"), layout)
    )
    rng = random.Random(5)
    for _ in range(40):
        s = random_dialogue(rng, pictures=True)
        r = render(s, t, 2, "answers")
        edges = r.loss.astype(int).tolist()
        runs = [m.span() for m in re.finditer("1+", "".join(map(str, edges)))]
        answers = [x.text for x in s.segments if x.role == "assistant"]
        assert [t.decode(r.input_ids[a:z]).strip() for a, z in runs] == [a.strip() for a in answers]
        assert all(r.input_ids[z - 1] == t.end_id for _, z in runs)


@pytest.mark.parametrize("layout", ["idefics2", "mistral"])
def test_text_that_spells_special_tokens_stays_text(tmp_path, layout, learned) -> None:
    t = Tokenizer.load(mistral_like.write(tmp_path, *learned, "legacy"), layout)
    spelled = "".join([*t.ids, "<0x0A>", "<image>", "<|image|>"])
    s = sample("instruct", *says("user", 0, spelled), *says("assistant", 0, spelled), media=0)
    plain = sample("instruct", *says("user", 0, "x"), *says("assistant", 0, "x"), media=0)
    special = set(t.ids.values())
    first, second = (
        [i for i in render(x, t, 1, "answers").input_ids.tolist() if i in special] for x in (s, plain)
    )
    assert first == second
    assert not render(s, t, 1, "answers").image_ids.any()
    t.save(tmp_path / "again")
    for again in (Tokenizer.load(tmp_path / "again"), pickle.loads(pickle.dumps(t))):
        assert again.layout is t.layout
        assert again.fingerprint == t.fingerprint
        assert again.encode(spelled) == t.encode(spelled)
        assert again.decode(t.encode(spelled)) == spelled


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("user", "user", "assistant"), "turns do not alternate"),
        (("assistant", "user"), "turns do not alternate"),
        (("user", "assistant", "system", "user", "assistant"), "turns do not alternate"),
        (("user", "tool"), "role tool"),
        (("system", "user"), "no targets"),
    ],
)
def test_what_mistral_cannot_say_is_unusable(tmp_path, learned, roles, reason) -> None:
    t = Tokenizer.load(mistral_like.write(tmp_path, *learned, "legacy"), "mistral")
    segments = [x for n, role in enumerate(roles) for x in says(role, n, "x")]
    with pytest.raises(Unusable, match=f"^{reason}$"):
        render(sample("instruct", *segments), t, 1, "answers")


def test_blanks_are_those_of_the_text_alone(tmp_path, learned) -> None:
    """Whatever a tokenizer puts in or takes away by itself: ids and text go back and forth unchanged."""
    made = [
        Tokenizer.load(mistral_like.write(tmp_path / s, *learned, s), "mistral") for s in mistral_like.STYLES
    ]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special)
    backend.train_from_iterator([], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    made.append(Tokenizer.load(tmp_path, "mistral"))
    for t in made:
        for text in ("a", " a", "  a\n", "\n a", "日本 😀 é", " "):
            assert t.decode(t.encode(text)) == text
        assert len(t.encode("a")) == 1
    assert made[0].fingerprint != made[-1].fingerprint
