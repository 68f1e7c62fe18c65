"""Text to ids and back, and the places of the special tokens of a layout (`layout.py`).

A tokenizer that the project trains is a byte-level BPE of the layout `tiny`:

    0 .. 6                              <|pad|> <|bos|> <|eos|> <|system|> <|user|> <|assistant|> <|end|>
    7 .. text_vocab_size - 1            bytes and merges
    text_vocab_size, + 1, + 2           <|image_start|> <|image_end|> <|image|>

Of another model's tokenizer (Mistral's) the vocabulary stays, and the tokens of the layout are put behind it.
Special tokens are ids that the layout puts in; text can never spell one. The layout alone says where <s> and
blanks stand: `plain` takes from a tokenizer what it would put in by itself.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from data_pipeline.errors import ConfigError, DataError, nearest
from data_pipeline.manifest import commit
from data_pipeline.stream.layout import CONTROL, LAYOUTS, TINY, VISUAL, Layout

_SMALLEST = len(CONTROL) + 256


class Tokenizer:
    """Ids of text and of the special tokens. Made by `train_tokenizer` or `Tokenizer.load`.

    `ids` has the special tokens of the layout by name; `may_be_target` is bool[len(self)]: text, and the
    tokens that end a document or an answer. Ids from `text_vocab_size` on are those of `layout.added`, which
    a language model does not have of its own: of them `idefics2`'s <end_of_utterance> is a target too.
    """

    def __init__(self, backend: tokenizers.Tokenizer, layout: Layout = TINY) -> None:
        # Not part of the JSON: without it, a page that says "<|image|>" would open a picture.
        backend.encode_special_tokens = True
        self.layout = layout
        self._backend = backend
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()
        self._size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.text_vocab_size = self._size - len(layout.added)
        self.ids = ids = self._special_ids()
        self.pad_id, self.bos_id, self.eos_id = ids[layout.pad], ids[layout.bos], ids[layout.eos]
        self.end_id = ids[layout.end]
        # Tokens in `tiny` alone, text elsewhere.
        self.system_id, self.user_id = ids.get("<|system|>"), ids.get("<|user|>")
        self.assistant_id = ids.get("<|assistant|>")
        self.image_start_id, self.image_id, self.image_end_id = (ids[n] for n in layout.picture)
        self._special = frozenset(ids.values())
        self.may_be_target = np.ones(self._size, dtype=np.bool_)
        self.may_be_target[list(self._special)] = False
        self.may_be_target[[self.eos_id, self.end_id]] = True
        self._fixed: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Made anew in another process: what keeps special tokens out of text is not part of the pickle.
        return (_again, (self._backend.to_str(), self.layout.name))

    def _special_ids(self) -> dict[str, int]:
        """By name. Raises DataError where one is missing, misplaced, or within reach of text."""
        layout = self.layout
        ids = {name: self._backend.token_to_id(name) for name in layout.special}
        behind = range(self.text_vocab_size, self._size)
        if layout is TINY:
            expected = dict(zip(CONTROL, range(len(CONTROL)), strict=True))
            expected |= {name: self.text_vocab_size + n for n, name in enumerate(VISUAL)}
            wrong = [f"{n} is {ids[n]}, not {expected[n]}" for n in ids if ids[n] != expected[n]]
        else:
            wrong = [f"{n} is missing" for n in layout.control if ids[n] is None]
            wrong += [f"{n} is {ids[n]}, not one of the last" for n in layout.added if ids[n] not in behind]
        if wrong:
            raise DataError(
                f"the tokenizer's special tokens are not where the layout '{layout.name}' expects them: "
                f"{'; '.join(wrong)}.\n"
                f"  Make one with train_tokenizer (`fovea backbones`), repair added_tokens, or name the "
                f"layout of the tokenizer ({', '.join(LAYOUTS)})."
            )
        if clash := sorted(t for t in self._added_tokens() if any(t in text for text in layout.texts)):
            raise DataError(
                f"the tokenizer has {clash[0]} as a token of its own, which the layout '{layout.name}' "
                f"writes as text: it was made for another layout (as Mistral's since v2)"
            )
        if ids[layout.pad] in self._backend.encode("\U0010fffd", add_special_tokens=False).ids:
            raise DataError("the tokenizer knows some letters only as <unk>: it needs byte fallback")
        spelled = [n for n, i in ids.items() if i in self._backend.encode(n, add_special_tokens=False).ids]
        if spelled:
            raise DataError(
                f"text that says {spelled[0]} gives that special token: in tokenizer.json it must be one "
                f"of added_tokens, with special true"
            )
        return {name: i for name, i in ids.items() if i is not None}

    def _added_tokens(self) -> set[str]:
        """Those that are not the layout's."""
        added = {t.content for t in self._backend.get_added_tokens_decoder().values()}
        return added - set(self.layout.special)

    def __len__(self) -> int:
        """Text and visual tokens together: the rows of the input embedding."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them special, whatever the text says."""
        # The batch of one is the call that keeps no offsets: a sixth quicker.
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def fixed(self, text: str) -> list[int]:
        """`encode` for the few strings of the layouts, each encoded once."""
        if text not in self._fixed:
            self._fixed[text] = self.encode(text)
        return self._fixed[text]

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
        directory, layout = Path(directory), self.layout
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": layout.pad,
            "bos_token": layout.bos,
            "eos_token": layout.eos,
            "additional_special_tokens": [
                n for n in layout.special if n not in (layout.pad, layout.bos, layout.eos)
            ],
            "clean_up_tokenization_spaces": False,
            # Whoever pads with it generates: what follows a prompt must stand beside it.
            "padding_side": "left",
            "fovea_text_vocab_size": self.text_vocab_size,
            "fovea_layout": layout.name,
        }
        files = {
            "tokenizer.json": self._backend.to_str(pretty=True) + "\n",
            "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
            "chat_template.jinja": layout.chat_template,
        }
        for name, text in files.items():
            with commit(directory / name) as f:
                f.write(text.encode())

    @classmethod
    def load(cls, directory: Path | str, layout: str | None = None) -> "Tokenizer":
        """The tokenizer in a directory of transformers format: one that `save` wrote, or another model's.

        `layout` names how dialogues are written; None: what tokenizer_config.json says, else `tiny`.
        Raises DataError where the tokenizer is missing or lacks the layout's tokens, ConfigError for a
        layout that is unknown or not the one that it was saved with.
        """
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.exists():
            slow = " (tokenizer.model alone is not read)" if (directory / "tokenizer.model").exists() else ""
            raise DataError(f"no tokenizer at {path}{slow}.\n  Make it:  fovea backbones RECIPE --run DIR")
        saved = _saved_layout(directory / "tokenizer_config.json")
        if layout and saved and layout != saved:
            raise ConfigError(f"{directory} was saved with the layout '{saved}', not '{layout}'")
        name = layout or saved or TINY.name
        if name not in LAYOUTS:
            raise ConfigError(f"layout: no '{name}'{nearest(name, LAYOUTS)} (there are {', '.join(LAYOUTS)})")
        try:
            text = path.read_text(encoding="utf-8")
            backend = tokenizers.Tokenizer.from_str(text if name == TINY.name else plain(text))
        except Exception as e:  # noqa: BLE001 - the library raises bare Exception on a broken file
            raise DataError(f"{path} is no tokenizer: {e}") from None
        if LAYOUTS[name] is not TINY:
            _add(backend, LAYOUTS[name].added)
        return cls(backend, LAYOUTS[name])


def plain(tokenizer_json: str) -> str:
    """The tokenizer without what it puts in by itself: <s> before a text, and a blank that decoding removes.

    Whether a tokenizer puts a blank before each text, before the first alone, or none, differs between
    copies of one and the same vocabulary; the layout writes it, so that all of them give the same ids.
    """
    tokenizer = json.loads(tokenizer_json)
    tokenizer["post_processor"] = None
    tokenizer["normalizer"] = _without(tokenizer.get("normalizer"), "normalizers", "Prepend")
    tokenizer["decoder"] = _without(tokenizer.get("decoder"), "decoders", "Strip")
    parts = [tokenizer.get("pre_tokenizer") or {}, tokenizer["decoder"] or {}]
    for part in [*parts, *(p for s in parts for p in s.get("pretokenizers") or s.get("decoders") or ())]:
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
    return json.dumps(tokenizer)


def _without(part: Any, members: str, unwanted: str) -> Any:
    """`part` of a tokenizer.json (itself or a Sequence of them) without those of the type `unwanted`."""
    if not part or part["type"] == unwanted:
        return None
    if part["type"] != "Sequence":
        return part
    return {**part, members: [p for p in part[members] if p["type"] != unwanted]}


def _add(backend: tokenizers.Tokenizer, names: tuple[str, ...]) -> None:
    """Put those of the special tokens `names` behind the vocabulary that it does not have."""
    missing = [n for n in names if backend.token_to_id(n) is None]
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in missing])


def _saved_layout(config: Path) -> str | None:
    if not config.exists():
        return None
    try:
        found: str | None = json.loads(config.read_text(encoding="utf-8")).get("fovea_layout")
    except (ValueError, AttributeError) as e:
        raise DataError(f"{config} is no tokenizer_config.json: {e}") from None
    return found


def _again(backend: str, layout: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(backend), LAYOUTS[layout])


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
    _add(backend, VISUAL)
    return Tokenizer(backend)
