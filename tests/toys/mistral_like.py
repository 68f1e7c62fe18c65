"""Little tokenizers with the structure of Mistral's: SentencePiece's BPE with byte fallback."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, trainers

STYLES = ("legacy", "first", "always")
"""Who puts a blank before a text: Mistral's published file, each after a special token (`legacy`: a
normalizer, `always`: a pre-tokenizer); SentencePiece's own rule, the first of the string alone (`first`)."""


def write(directory: Path, letters: str, merges: Sequence[tuple[str, str]], style: str) -> Path:
    """<unk> <s> </s>, 256 bytes, from id 259 on the `letters` and then what `merges` make."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *letters]
    pieces += [a + b for a, b in merges if a + b not in pieces]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": style, "split": False}
    a = {"Sequence": {"id": "A", "type_id": 0}}
    bos = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": pieces[n], **added} for n in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if style == "legacy" else None,
        "pre_tokenizer": None if style == "legacy" else metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, a],
            "pair": [a, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": bos},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: n for n, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in merges],
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "<unk>"}))
    return directory


def learn(
    texts: Iterable[str], vocabulary: int, across_words: bool = False
) -> tuple[str, list[tuple[str, str]]]:
    """Letters and merges of `texts`; `across_words`: over blanks too, which SentencePiece never makes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    if not across_words:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
            tokenizers.Regex("▁+[^▁]*"), behavior="isolated"
        )
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    letters = "".join(p for p in model["vocab"] if len(p) == 1)
    return letters, [tuple(pair) for pair in model["merges"]]
