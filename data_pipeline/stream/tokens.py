"""Text to ids and back: a byte-level BPE in which every special token has its fixed place.

    0 .. 6                              <|pad|> <|bos|> <|eos|> <|system|> <|user|> <|assistant|> <|end|>
    7 .. text_vocab_size - 1            bytes and merges
    text_vocab_size, + 1, + 2           <|image_start|> <|image_end|> <|image|>

The visual tokens stand after the language model's own vocabulary: the model's output never names them.
Special tokens are ids that the chat layout puts in; text can never spell one.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import commit

CONTROL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
VISUAL = ("<|image_start|>", "<|image_end|>", "<|image|>")
CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"
_SMALLEST = len(CONTROL) + 256


class Tokenizer:
    """Ids of text and of the special tokens. Made by `train_tokenizer` or `Tokenizer.load`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Not part of the JSON: without it, a page that says "<|image|>" would open a picture.
        backend.encode_special_tokens = True
        self._backend = backend
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()
        self._size = backend.get_vocab_size(with_added_tokens=True)
        self.text_vocab_size = self._size - len(VISUAL)
        ids = {name: backend.token_to_id(name) for name in (*CONTROL, *VISUAL)}
        expected = dict(zip(CONTROL, range(len(CONTROL)), strict=True))
        expected |= {name: self.text_vocab_size + n for n, name in enumerate(VISUAL)}
        if wrong := [f"{n} is {ids[n]}, not {expected[n]}" for n in ids if ids[n] != expected[n]]:
            raise DataError(
                f"the tokenizer's special tokens are not where the model expects them: {'; '.join(wrong)}.\n"
                f"  Make one with train_tokenizer (`fovea backbones`), or repair added_tokens."
            )
        self.pad_id, self.bos_id, self.eos_id = ids["<|pad|>"], ids["<|bos|>"], ids["<|eos|>"]
        self.system_id, self.user_id = ids["<|system|>"], ids["<|user|>"]
        self.assistant_id, self.end_id = ids["<|assistant|>"], ids["<|end|>"]
        self.image_start_id, self.image_end_id = ids["<|image_start|>"], ids["<|image_end|>"]
        self.image_id = ids["<|image|>"]
        self._special = frozenset(ids.values())

    def __len__(self) -> int:
        """Text and visual tokens together: the rows of the input embedding."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them special, whatever the text says."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without special tokens. Raises ValueError for an id outside the vocabulary."""
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self._size]:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary, 0..{self._size - 1}")
        # Skipped here by id, so that text that merely looks like a special token stays.
        kept = [i for i in ids if i not in self._special]
        return self._backend.decode(kept, skip_special_tokens=False)

    def save(self, directory: Path | str) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja (transformers reads them)."""
        directory = Path(directory)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<|pad|>",
            "bos_token": "<|bos|>",
            "eos_token": "<|eos|>",
            "additional_special_tokens": [*CONTROL[3:], *VISUAL],
            "clean_up_tokenization_spaces": False,
            "fovea_text_vocab_size": self.text_vocab_size,
        }
        files = {
            "tokenizer.json": self._backend.to_str(pretty=True) + "\n",
            "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
            "chat_template.jinja": CHAT_TEMPLATE.read_text(encoding="utf-8"),
        }
        for name, text in files.items():
            with commit(directory / name) as f:
                f.write(text.encode())

    @classmethod
    def load(cls, directory: Path | str) -> "Tokenizer":
        """The tokenizer that `save` wrote. Raises DataError where it is missing or of another layout."""
        path = Path(directory) / "tokenizer.json"
        if not path.exists():
            raise DataError(f"no tokenizer at {path}.\n  Make it:  fovea backbones RECIPE --run DIR")
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as e:  # noqa: BLE001 - the library raises bare Exception on a broken file
            raise DataError(f"{path} is no tokenizer: {e}") from None
        return cls(backend)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer whose language model has at most `vocabulary` entries; fewer where `texts` has few pairs.

    All 256 bytes are in it, so any text survives the round trip. The same texts give the same tokenizer.
    """
    if vocabulary < _SMALLEST:
        raise ConfigError(
            f"vocabulary {vocabulary} is too small: bytes and special tokens alone are {_SMALLEST}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in VISUAL])
    return Tokenizer(backend)
