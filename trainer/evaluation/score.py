"""`fovea score`: a metric alone, on the file formats in which the benchmarks exchange results.

    captions  predictions  [{"image_id", "caption"}, ...]
              references   {"annotations": [{"image_id", "caption"}, ...]}
    vqa       predictions  [{"question_id", "answer"}, ...]
              references   {"annotations": [{"question_id", "answers", "answer_type", "question_type"}, ...]},
                           answers as [{"answer"}, ...] or as plain strings

Reading is strict. A number over part of a benchmark looks like a number over all of it, so every record
must be whole and both files must speak of the same ids; else DataError.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from trainer.evaluation.captioning import bleu, cider, rouge_l, tokenize
from trainer.evaluation.vqa import vqa_accuracy

Id = int | str
SHOWN = 5
"""Ids that an error message lists before it only counts."""


def add_parser(subparsers: Any) -> None:
    """Mount `score` on the command line; the parsed arguments go to `run`."""
    parser = subparsers.add_parser(
        "score",
        help="a metric on predictions and references in the benchmark's own file formats; prints JSON",
        description="Score predictions against references, both in the benchmark's own file formats.",
    )
    parser.add_argument("metric", choices=sorted(_METRICS), help="captions: COCO; vqa: the VQA challenge")
    parser.add_argument("--predictions", required=True, type=Path, metavar="FILE", help="results (JSON)")
    parser.add_argument("--references", required=True, type=Path, metavar="FILE", help="annotations (JSON)")
    parser.set_defaults(run_verb=run)


def run(args: argparse.Namespace) -> int:
    scores = _METRICS[args.metric](args.predictions, args.references)
    sys.stdout.write(json.dumps(scores, ensure_ascii=False) + "\n")
    return 0


def score_captions(predictions_path: Path, references_path: Path) -> dict[str, Any]:
    """CIDEr, BLEU and ROUGE-L as the COCO caption benchmark reports them (CIDEr 0.63, not 63)."""
    captions = _predictions(predictions_path, "image_id", "caption")
    references: dict[Id, list[str]] = {}
    for where, record in _annotations(references_path, "image_id"):
        references.setdefault(record["image_id"], []).append(_text(where, record, "caption"))
    _check_ids(predictions_path, captions, references_path, references, "image_id")

    hyps = [tokenize(captions[i]) for i in references]
    refs = [[tokenize(c) for c in captions] for captions in references.values()]
    return {
        "metric": "captions",
        "n": len(hyps),
        "CIDEr": cider(hyps, refs).score,
        **{f"Bleu_{n}": value for n, value in enumerate(bleu(hyps, refs), 1)},
        "ROUGE_L": rouge_l(hyps, refs),
    }


def score_vqa(predictions_path: Path, references_path: Path) -> dict[str, Any]:
    """VQA accuracy in percent: overall, by answer type, by question type."""
    answers = _predictions(predictions_path, "question_id", "answer")
    annotations: dict[Id, dict[str, Any]] = {}
    for where, record in _annotations(references_path, "question_id"):
        if record["question_id"] in annotations:
            raise DataError(f"{where}: question_id {record['question_id']!r} occurs a second time")
        annotations[record["question_id"]] = {
            "question_id": record["question_id"],
            "answers": _human_answers(where, record),
            "answer_type": _text(where, record, "answer_type"),
            "question_type": _text(where, record, "question_type"),
        }
    _check_ids(predictions_path, answers, references_path, annotations, "question_id")
    return {"metric": "vqa", "n": len(annotations), **vqa_accuracy(answers, list(annotations.values()))}


_METRICS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {"captions": score_captions, "vqa": score_vqa}


# --- reading --------------------------------------------------------------------------------------


def _predictions(path: Path, id_key: str, text_key: str) -> dict[Id, str]:
    records = _load(path)
    expected = f'expected a list of {{"{id_key}", "{text_key}"}}'
    if not isinstance(records, list):
        raise DataError(f"{path}: {expected}, found {_kind(records)}")
    found: dict[Id, str] = {}
    for where, record in _records(path, "record", records, id_key):
        if record[id_key] in found:
            raise DataError(f"{where}: {id_key} {record[id_key]!r} occurs a second time; expected one each")
        found[record[id_key]] = _text(where, record, text_key)
    return found


def _annotations(path: Path, id_key: str) -> list[tuple[str, dict[str, Any]]]:
    page = _load(path)
    records = page.get("annotations") if isinstance(page, dict) else None
    if not isinstance(records, list):
        found = f"keys {', '.join(map(repr, page)) or 'none'}" if isinstance(page, dict) else _kind(page)
        raise DataError(f'{path}: expected an object with a list "annotations", found {found}')
    if not records:
        raise DataError(f'{path}: "annotations" is empty; there is nothing to score against')
    return _records(path, "annotation", records, id_key)


def _records(path: Path, noun: str, records: list[Any], id_key: str) -> list[tuple[str, dict[str, Any]]]:
    """Each record with the words that say where it stands; its id is checked."""
    found = []
    for i, record in enumerate(records):
        where = f"{path}: {noun} {i}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected an object, found {_kind(record)}")
        if id_key not in record:
            raise DataError(f"{where}: no {id_key!r}; it has {', '.join(map(repr, record)) or 'no keys'}")
        if isinstance(record[id_key], bool) or not isinstance(record[id_key], int | str):
            raise DataError(
                f"{where}: {id_key} must be a whole number or a string, found {_kind(record[id_key])}"
            )
        found.append((where, record))
    return found


def _text(where: str, record: dict[str, Any], key: str) -> str:
    if key not in record:
        raise DataError(f"{where}: no {key!r}; it has {', '.join(map(repr, record)) or 'no keys'}")
    text = record[key]
    if not isinstance(text, str):
        raise DataError(f"{where}: {key} must be a string, found {_kind(text)}")
    return text


def _human_answers(where: str, record: dict[str, Any]) -> list[str]:
    answers = record.get("answers")
    if not isinstance(answers, list) or len(answers) < 2:
        raise DataError(
            f"{where}: 'answers' must be a list of two or more (an annotator counts only beside others), "
            f"found {len(answers) if isinstance(answers, list) else _kind(answers)}"
        )
    return [
        a if isinstance(a, str) else _text(f"{where}, answer {i}", a if isinstance(a, dict) else {}, "answer")
        for i, a in enumerate(answers)
    ]


def _check_ids(
    predictions_path: Path,
    predictions: Iterable[Id],
    references_path: Path,
    references: Iterable[Id],
    key: str,
) -> None:
    predicted, wanted = dict.fromkeys(predictions), dict.fromkeys(references)
    hint = ""
    if {str(i) for i in predicted} == {str(i) for i in wanted}:
        hint = f"\n  One file writes {key} as a number, the other as a string: write both alike."
    if unknown := [i for i in predicted if i not in wanted]:
        raise DataError(
            f"{predictions_path}: {len(unknown)} of {len(predicted)} predictions are for ids "
            f"that {references_path} does not have; {key} {_some(unknown)}{hint}"
        )
    if missing := [i for i in wanted if i not in predicted]:
        raise DataError(
            f"{predictions_path}: {len(missing)} of {len(wanted)} predictions are missing; "
            f"{references_path} also has {key} {_some(missing)}"
        )


def _load(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise DataError(f"{path}: not JSON: {e}") from None


def _some(ids: list[Id]) -> str:
    return ", ".join(map(repr, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")


def _kind(value: Any) -> str:
    """What JSON calls the value."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return names[type(value)]
