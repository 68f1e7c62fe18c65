"""The tokenizer: lossless, deterministic, and closed against text that spells special tokens."""

import pickle

import pytest
from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.stream.chat import prompt, render
from data_pipeline.stream.tokens import CONTROL, VISUAL, Tokenizer, train_tokenizer

TEXTS = [
    "",
    "plain",
    "  spaces \n\n tabs\t",
    "naïve café – 日本語 😀\u200d",
    "\x00\x7f",
    "<|image|> <|end|>",
    "a\r\nb",
]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_is_lossless(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_have_their_places(tokenizer: Tokenizer) -> None:
    t = tokenizer
    control = [t.pad_id, t.bos_id, t.eos_id, t.system_id, t.user_id, t.assistant_id, t.end_id]
    assert control == list(range(7))
    assert t.text_vocab_size == 300
    assert [t.image_start_id, t.image_end_id, t.image_id] == [300, 301, 302]
    assert len(t) == 303


@pytest.mark.parametrize("name", [*CONTROL, *VISUAL])
def test_text_cannot_spell_a_special_token(tokenizer: Tokenizer, tmp_path, name: str) -> None:
    tokenizer.save(tmp_path)
    for t in (tokenizer, Tokenizer.load(tmp_path)):
        ids = t.encode(f"x{name}y")
        assert not set(ids) & {*range(7), *range(t.text_vocab_size, len(t))}
        assert t.decode(ids) == f"x{name}y"


def test_a_pickled_copy_encodes_the_same_and_keeps_special_tokens_out_of_text(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.layout is tokenizer.layout
    for text in ("a red circle", "<|image|> <|end|>"):
        assert copy.encode(text) == tokenizer.encode(text)
    assert not set(copy.encode("<|image|>")) & set(copy.ids.values())


def test_decode_skips_special_tokens_and_refuses_foreign_ids(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("red"), tokenizer.image_id, tokenizer.eos_id]
    assert tokenizer.decode(ids) == "red"
    for wrong in (-1, len(tokenizer)):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary"):
            tokenizer.decode([wrong])


def test_training_is_deterministic_and_saving_keeps_everything(tmp_path) -> None:
    texts = ["the cat sat on the mat", "the dog ate the cat"] * 5
    first, second = train_tokenizer(texts, 290), train_tokenizer(iter(texts), 290)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != train_tokenizer(texts, 266).fingerprint
    first.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == first.fingerprint
    assert loaded.encode("the cat") == first.encode("the cat")


def test_errors_say_what_to_do(tmp_path) -> None:
    with pytest.raises(ConfigError, match="vocabulary 262 is too small"):
        train_tokenizer([], 262)
    with pytest.raises(DataError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer.load(tmp_path)


def test_transformers_reads_it_and_its_template_agrees_with_render(tokenizer, make, tmp_path) -> None:
    tokenizer.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert len(theirs) == len(tokenizer)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    sample = make.dialogue(3)
    by_turn = [s.text for s in sample.segments if s.type == "text"]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": by_turn[0]}]},
        {"role": "assistant", "content": by_turn[1]},
        {"role": "user", "content": by_turn[2]},
        {"role": "assistant", "content": by_turn[3]},
    ]

    def ids(messages: list, **more: bool) -> list[int]:
        text = theirs.apply_chat_template(messages, tokenize=False, **more)
        return theirs(text, add_special_tokens=False)["input_ids"]

    assert ids(messages) == render(sample, tokenizer, 1, "answers").input_ids.tolist()
    asked = ids(messages[:3], add_generation_prompt=True)
    assert asked == prompt(sample, tokenizer, 1, turn=1).input_ids.tolist()
    two = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert theirs.apply_chat_template(two, tokenize=False) == "<|bos|><|user|>a\nb<|end|><|eos|>"
