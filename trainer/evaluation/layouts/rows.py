"""Benchmarks that are released as tables with the pictures inside: Parquet, and MMBench's TSV."""

import ast
import base64
import binascii
import csv
import re
import string
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import DataError
from data_pipeline.sample import content_id
from trainer.evaluation.question import Files, Question, only

LETTERS = string.ascii_uppercase
CIRCLE = 1_000_000
"""MMBench: rows whose index is equal modulo this are one question with its choices turned."""
_MAX_FIELD = 64 * 2**20


def read_rows(files: Files, split: str | None) -> list[Question]:
    """rows: image, question, answer (PathVQA and VQA-RAD as Parquet); the place in the release is the id."""
    found = []
    for where, row in _parquet(files):
        picture, answer = _picture(where, row, "image"), _text(where, row, "answer")
        found.append(
            Question(
                id=where, text=_text(where, row, "question"), images=(picture,),
                truths=(answer,), unit=content_id(picture),
                about={"kind": "yes/no" if answer.lower() in ("yes", "no") else "open"},
            )
        )  # fmt: skip
    return found


def read_mmmu(files: Files, split: str | None) -> list[Question]:
    """rows: id, question with <image 1>, options as a Python list, answer, question_type, image_1..."""
    found = []
    for where, row in _parquet(files):
        options = _list(where, row, "options")
        choice = _text(where, row, "question_type") == "multiple-choice"
        text = _text(where, row, "question")
        named = re.findall(r"<image (\d)>", " ".join([text, *options]))
        places = {n: k for k, n in enumerate(dict.fromkeys(named or ["1"]), 1)}
        images = tuple(_picture(where, row, f"image_{n}") for n in places)
        text, *options = [_renumbered(t, places) for t in (text, *options)]
        answer = _text(where, row, "answer")
        found.append(
            Question(
                id=_text(where, row, "id"), text=text, images=images, unit=content_id(*images),
                truths=(answer,) if choice else tuple(_list(where, {"answer": answer}, "answer", bare=True)),
                options=tuple(options) if choice else (),
                about={"subject": "_".join(_text(where, row, "id").split("_")[1:-1])},
            )
        )  # fmt: skip
    return found


def read_mathvista(files: Files, split: str | None) -> list[Question]:
    """rows: pid, question, choices, answer (the text of a choice), question_type, decoded_image. Only
    multiple choice; questions in free form need a judge."""
    found = []
    for where, row in _parquet(files):
        if _text(where, row, "question_type") != "multi_choice":
            continue
        choices, answer = [str(c) for c in row.get("choices") or ()], _text(where, row, "answer")
        if answer not in choices:
            raise DataError(f"{where}: the answer {answer!r} is none of its choices")
        picture = _picture(where, row, "decoded_image")
        found.append(
            Question(
                id=_text(where, row, "pid"), text=_text(where, row, "question"), images=(picture,),
                truths=(LETTERS[choices.index(answer)],), options=tuple(choices), unit=content_id(picture),
            )
        )  # fmt: skip
    return found


def read_ai2d(files: Files, split: str | None) -> list[Question]:
    """rows: question, options, answer (the number of an option, from 0), image."""
    found = []
    for where, row in _parquet(files):
        options, answer = [str(o) for o in row.get("options") or ()], _text(where, row, "answer")
        if not answer.isdigit() or int(answer) >= len(options):
            raise DataError(f"{where}: answer {answer!r} is no number of its {len(options)} options")
        picture = _picture(where, row, "image")
        found.append(
            Question(
                id=where, text=_text(where, row, "question"), images=(picture,),
                truths=(LETTERS[int(answer)],), options=tuple(options), unit=content_id(picture),
            )
        )  # fmt: skip
    return found


def read_mmbench(files: Files, split: str | None) -> list[Question]:
    """rows: a TSV with index, question, hint, A to D, answer, category, image in base64 or the index of the
    row that has it."""
    path = only(files, "rows")
    csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8", newline="") as f:
            table = list(csv.DictReader(f, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: cannot be read: {e}") from None
    images = {row.get("index"): row.get("image") or "" for row in table}
    found = []
    for n, row in enumerate(table, 1):
        where = f"{path}: row {n}"
        index, answer = _text(where, row, "index"), _text(where, row, "answer")
        options = [row[letter] for letter in LETTERS if row.get(letter) not in (None, "", "nan")]
        if not index.isdigit() or answer not in LETTERS[: len(options)]:
            raise DataError(f"{where}: index {index!r}, answer {answer!r} of {len(options)} choices")
        data = images.get(row["image"], row["image"])
        try:
            picture = base64.b64decode(data or "", validate=True)
        except (binascii.Error, ValueError):
            raise DataError(f"{where}: image is no base64") from None
        hint = row.get("hint") or ""
        found.append(
            Question(
                id=index, text=_text(where, row, "question"), images=(picture,), truths=(answer,),
                options=tuple(options), unit=str(int(index) % CIRCLE),
                about={"category": row.get("category") or "", "hint": "" if hint == "nan" else hint},
            )
        )  # fmt: skip
    return found


def _renumbered(text: str, places: dict[str, int]) -> str:
    return re.sub(r"<image (\d)>", lambda m: f"<image {places[m[1]]}>", text)


def _parquet(files: Files) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with the words that say where it stands; also an id that does not depend on the root."""
    for path in files.get("rows", ()):
        try:
            with pq.ParquetFile(path) as file:
                n = 0
                for batch in file.iter_batches(batch_size=64):
                    for row in batch.to_pylist():
                        n += 1
                        yield f"{path.name}:{n}", row
        except (OSError, pa.ArrowException) as e:
            raise DataError(f"{path}: cannot be read: {e}") from None


def _text(where: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str | int) or isinstance(value, bool):
        has = ", ".join(map(repr, row))
        raise DataError(f"{where}: {key!r} must be a text, found {value!r}; the row has {has}")
    return str(value)


def _picture(where: str, row: dict[str, Any], key: str) -> bytes:
    value = row.get(key)
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{where}: {key!r} has no bytes of a picture")
    return data


def _list(where: str, row: dict[str, Any], key: str, bare: bool = False) -> list[str]:
    """A list that Python wrote, as text; with `bare` a text that is no list is one entry."""
    text = _text(where, row, key)
    if bare and not text.startswith("["):
        return [text]
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list):
        if bare:
            return [text]
        raise DataError(f"{where}: {key} must be a list, found {text[:60]!r}")
    return [str(v) for v in found]
