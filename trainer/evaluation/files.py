"""The benchmarks' own files, read strictly: a wrong record is named with its place and what was expected."""

import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from data_pipeline.errors import DataError
from trainer.evaluation.intervals import Array

Id = int | str
T = TypeVar("T")
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # "007" is a name
SHOWN = 5
"""Ids that an error message lists before it only counts."""


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file, with the words that say where it stands."""

    where: str
    fields: dict[str, Any]

    def has(self, key: str) -> bool:
        return key in self.fields

    def value(self, key: str) -> Any:
        if key not in self.fields:
            has = ", ".join(map(repr, self.fields)) or "no keys"
            raise DataError(f"{self.where}: no {key!r}; it has {has}")
        return self.fields[key]

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {key} must be a string, found {kind(value)}")
        return value

    def id(self, key: str) -> Id:
        """A number that is written as a string is that number: files of one benchmark differ in it."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise DataError(f"{self.where}: {key} must be a whole number or a string, found {kind(value)}")
        return int(value) if _NUMBER.fullmatch(str(value)) else value

    def number(self, key: str) -> float:
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise DataError(f"{self.where}: {key} must be a number, 0 or more, found {json.dumps(value)}")
        return float(value)

    def answers(self, key: str, least: int = 1) -> list[str]:
        """Strings, or objects with the string under "answer"."""
        value = self.fields.get(key)
        if not isinstance(value, list) or len(value) < least:
            why = " (an annotator counts only beside others)" if least > 1 else ""
            found = len(value) if isinstance(value, list) else kind(value)
            raise DataError(
                f"{self.where}: {key!r} must be a list of {_many(least)} or more{why}, found {found}"
            )
        return [
            a
            if isinstance(a, str)
            else Record(f"{self.where}, answer {i}", a if isinstance(a, dict) else {}).text("answer")
            for i, a in enumerate(value)
        ]

    def unit(self, keys: Sequence[str], otherwise: Hashable) -> Hashable:
        """What the record shares with others, its picture say: the first of `keys` that it has."""
        found = (self.fields[k] for k in keys if isinstance(self.fields.get(k), int | str))
        return next(found, otherwise)


def load(path: Path) -> Any:
    return _parse(path, _read(path), "")


def load_by_id(path: Path) -> dict[str, Any]:
    """An object with an entry a sample. JSON itself would let the last of two entries with one id count."""

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return once((str(path), "id", key, value) for key, value in pairs)

    page = _parse(path, _read(path), "", each_once)
    if not isinstance(page, dict):
        raise DataError(f"{path}: expected an object with an entry a question, found {kind(page)}")
    return page


def load_lines(path: Path) -> list[Any]:
    """JSON, one value a line."""
    lines = _read(path).split("\n")  # `splitlines` would also cut a text at U+2028
    return [_parse(path, line, f" in line {n}") for n, line in enumerate(lines, 1) if line.strip()]


def records(path: Path, page: Any, keys: Sequence[str] = (), noun: str = "record") -> list[Record]:
    """The objects of a list, or of the list that stands under one of `keys`."""
    found = next((page[k] for k in keys if k in page), None) if isinstance(page, dict) else page
    if not isinstance(found, list) or (keys and isinstance(page, list)):
        if keys:
            has = f"keys {', '.join(map(repr, page)) or 'none'}" if isinstance(page, dict) else kind(page)
            raise DataError(
                f"{path}: expected an object with a list {' or '.join(map(json.dumps, keys))}, found {has}"
            )
        raise DataError(f"{path}: expected a list of objects, found {kind(page)}")
    if keys and not found:
        raise DataError(f"{path}: its list is empty; there is nothing to score against")
    for i, record in enumerate(found):
        if not isinstance(record, dict):
            raise DataError(f"{path}: {noun} {i}: expected an object, found {kind(record)}")
    return [Record(f"{path}: {noun} {i}", record) for i, record in enumerate(found)]


def once(found: Iterable[tuple[str, str, Hashable, T]]) -> dict[Any, T]:
    """(where, name of the id, id, value) -> {id: value}; an id that occurs twice is an error."""
    values: dict[Hashable, T] = {}
    for where, name, key, value in found:
        if key in values:
            raise DataError(f"{where}: {name} {key!r} occurs a second time; expected one each")
        values[key] = value
    return values


def check_ids(
    predictions_path: Path,
    predictions: Iterable[Hashable],
    references_path: Path,
    references: Iterable[Hashable],
    name: str,
) -> None:
    """Both files must speak of the same samples: an average over fewer looks like one over all."""
    predicted, wanted = dict.fromkeys(predictions), dict.fromkeys(references)
    if unknown := [i for i in predicted if i not in wanted]:
        raise DataError(
            f"{predictions_path}: {len(unknown)} of {len(predicted)} predictions are for ids "
            f"that {references_path} does not have; {name} {_some(unknown)}"
        )
    if missing := [i for i in wanted if i not in predicted]:
        raise DataError(
            f"{predictions_path}: incomplete: {len(missing)} of {len(wanted)} predictions are missing; "
            f"{references_path} also has {name} {_some(missing)}"
        )


def matrix(path: Path, page: Any, key: str) -> Array:
    """The rows of numbers under `key`, equally long and finite."""
    rows = page.get(key) if isinstance(page, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f'{path}: expected {{"{key}": [[number, ...], ...]}} with at least one row')
    width = len(rows[0]) if isinstance(rows[0], list) else 0
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width or not row:
            length = f"{len(row)} numbers" if isinstance(row, list) else kind(row)
            raise DataError(
                f"{path}: {key}, row {i}: expected {width or 'one or more'} numbers, found {length}"
            )
        wrong = [x for x in row if isinstance(x, bool) or not isinstance(x, int | float)]
        if wrong:
            raise DataError(f"{path}: {key}, row {i}: expected numbers, found {kind(wrong[0])}")
    values = np.array(rows, dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise DataError(f"{path}: {key}, row {row}: a number is beyond what a float holds")
    return values


def indices(path: Path, page: Any, key: str, below: int, of_what: str) -> list[int]:
    """The whole numbers under `key`, each from 0 to below - 1."""
    found = page.get(key) if isinstance(page, dict) else None
    if not isinstance(found, list) or not found:
        raise DataError(f'{path}: expected {{"{key}": [whole number, ...]}} with at least one')
    for i, value in enumerate(found):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
            raise DataError(
                f"{path}: {key}, entry {i}: expected a whole number from 0 to {below - 1}, "
                f"an index of {of_what}, found {json.dumps(value)}"
            )
    return found


def kind(value: Any) -> str:
    """What JSON calls the value."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return names[type(value)]


def _read(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # some editors put a mark first
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not JSON: {e}") from None


def _parse(
    path: Path,
    text: str,
    place: str,
    as_object: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise DataError(f"{path}: not JSON{place}: {constant} is no number")

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=as_object)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not JSON{place}: {e}") from None


def _many(least: int) -> str:
    return {1: "one", 2: "two"}[least]


def _some(ids: Sequence[Hashable]) -> str:
    return ", ".join(map(repr, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")
