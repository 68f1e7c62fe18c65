"""A tokenizer that a layout cannot use is refused with what is wrong."""

import json

import pytest

import mistral_like
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.stream.tokens import Tokenizer


def test_loading_says_what_is_wrong(tmp_path, learned) -> None:
    source = mistral_like.write(tmp_path / "mistral", *learned, "legacy")
    with pytest.raises(
        DataError, match=r"not where the layout 'tiny' expects them(.|\n)*tiny, idefics2, mistral"
    ):
        Tokenizer.load(source)
    with pytest.raises(ConfigError, match="no 'mistrel'; did you mean 'mistral'"):
        Tokenizer.load(source, "mistrel")
    Tokenizer.load(source, "mistral").save(tmp_path / "saved")
    with pytest.raises(ConfigError, match="saved with the layout 'mistral', not 'idefics2'"):
        Tokenizer.load(tmp_path / "saved", "idefics2")
    (tmp_path / "saved" / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"is no tokenizer_config\.json"):
        Tokenizer.load(tmp_path / "saved")
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "tokenizer.model").write_bytes(b"")
    with pytest.raises(DataError, match=r"tokenizer\.model alone is not read"):
        Tokenizer.load(slow)


def test_special_tokens_are_found_where_they_are_or_refused(tmp_path, learned) -> None:
    source = mistral_like.write(tmp_path, *learned, "legacy")
    text = (source / "tokenizer.json").read_text()
    size = len(json.loads(text)["model"]["vocab"])
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = ("<image>", "<end_of_utterance>", "<fake_token_around_image>")

    def with_tokens(**changes: object) -> Tokenizer:
        tokenizer = json.loads(text)
        tokenizer["added_tokens"] += [
            {"id": size + n, "content": name, **added, **changes} for n, name in enumerate(names)
        ]
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        return Tokenizer.load(source, "idefics2")

    there = with_tokens()
    assert [there.ids[n] for n in names] == [size, size + 1, size + 2]
    assert there.text_vocab_size == size
    with pytest.raises(DataError, match=r"text that says .* gives that special token"):
        with_tokens(special=False)


def test_a_tokenizer_that_the_layout_cannot_use_is_refused(tmp_path, learned) -> None:
    source = mistral_like.write(tmp_path, *learned, "legacy")
    text = (source / "tokenizer.json").read_text()

    def refused(tokenizer: dict, why: str) -> None:
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(DataError, match=why):
            Tokenizer.load(source, "mistral")

    no_bos = json.loads(text)
    no_bos["model"]["vocab"]["<S>"] = no_bos["model"]["vocab"].pop("<s>")
    no_bos["added_tokens"] = [x for x in no_bos["added_tokens"] if x["content"] != "<s>"]
    refused(no_bos, "<s> is missing")
    refused(json.loads(text.replace('"<0x41>"', '"<|image|>"')), r"<\|image\|> is 68, not one of the last")
    later = json.loads(text)
    later["added_tokens"].append({**later["added_tokens"][0], "id": 3, "content": "[INST]"})
    later["model"]["vocab"]["[INST]"] = later["model"]["vocab"].pop("<0x00>")
    refused(later, r"has \[INST\] as a token of its own")
    refused(json.loads(text.replace('"byte_fallback": true', '"byte_fallback": false')), "byte fallback")
