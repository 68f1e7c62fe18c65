"""A benchmark's identity for curation: its pictures and texts as `fovea data decontaminate` reads them.

OUT/items.jsonl      {"id", "question", "answers" | "captions", "text_blake3", "images": [media_id]} a sample
OUT/images/*         each picture once, under its media_id: the hash that a dataset's images have

Pictures are there themselves, as hard links where that can be: a copy in another size is found by what it
shows alone.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError
from data_pipeline.manifest import commit
from data_pipeline.sample import content_id
from trainer.evaluation.question import Image, Question, picture_bytes

_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"GI": ".gif"}


def write_hashes(questions: Sequence[Question], out: Path) -> dict[str, int]:
    """Fill `out`; how many samples and pictures. Raises ConfigError where `out` holds something else,
    DataError where a picture cannot be read."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "items.jsonl").exists())):
        raise ConfigError(f"{out} is not empty and holds no hashes of a task; name another directory")
    (out / "images").mkdir(parents=True, exist_ok=True)
    known: dict[Path, str] = {}
    pictures: set[str] = set()
    with commit(out / "items.jsonl") as f:
        for q in questions:
            ids = [_kept(image, out / "images", known) for image in q.images]
            pictures |= set(ids)
            f.write(json.dumps(_item(q, ids), ensure_ascii=False).encode() + b"\n")
    return {"samples": len(questions), "images": len(pictures)}


def _item(question: Question, ids: list[str]) -> dict[str, Any]:
    # Of a choice the answer is a letter: its text is what a page would say.
    right = [
        question.options[ord(t) - ord("A")]
        if len(t) == 1 and 0 <= ord(t) - ord("A") < len(question.options)
        else t
        for t in question.truths
    ]
    right = list(dict.fromkeys(right))
    texts = {"question": question.text, "answers": right} if question.text else {"captions": right}
    if not question.text and question.options:
        texts = {}  # a class of a picture is no text to look for
    return {"id": question.id, **texts, "text_blake3": content_id(question.text, *right), "images": ids}


def _kept(image: Image, folder: Path, known: dict[Path, str]) -> str:
    if isinstance(image, Path) and image in known:
        return known[image]
    data = picture_bytes(image)
    media_id = content_id(data)
    target = folder / (media_id + _SUFFIXES.get(data[:2], ".bin"))
    if not target.exists() and not (isinstance(image, Path) and _linked(image, target)):
        with commit(target) as f:
            f.write(data)
    if isinstance(image, Path):
        known[image] = media_id
    return media_id


def _linked(image: Path, target: Path) -> bool:
    try:
        os.link(image.resolve(), target)
    except OSError:  # another file system
        return False
    return True
