"""The report's samples of a benchmark: best and worst answers, and which changed between checkpoints."""

from dataclasses import dataclass
from typing import Any

from trainer.observe.report_parts import mapping
from trainer.observe.report_scores import example_card
from trainer.observe.run_record import Benchmarked
from trainer.observe.stage_files import read_lines
from trainer.observe.wording import finite

SHOWN, LETTERS = 8, 120
MOST_BYTES = 32 * 2**20
"""Of a file of samples: a page is to open at once. `fovea compare` reads any."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Samples by id at two checkpoints. `rows`, of those that changed most: prompt, right answer, answer at
    `since`, answer now, difference of the score."""

    since: int
    step: int
    n: int
    better: int
    worse: int
    rows: list[tuple[str, str, str, str, str]]


def best_and_worst(b: Benchmarked) -> list[tuple[str, list[dict[str, Any]]]]:
    found = []
    for title, key in (("Best answers", "best"), ("Worst answers", "worst")):
        listed = b.examples.get(key)
        examples = [e for e in (listed if isinstance(listed, list) else []) if isinstance(e, dict)][:SHOWN]
        if examples:
            found.append((title, [example_card(e) for e in examples]))
    return found


def changed(before: Benchmarked, after: Benchmarked) -> Changed | None:
    """What is different, sample by sample; None where the files of samples are not there, or too long."""
    old, new = _samples(before), _samples(after)
    differences = {i: new[i][0] - old[i][0] for i in new if i in old}
    if not differences:
        return None
    most = sorted((i for i, d in differences.items() if d), key=lambda i: (-abs(differences[i]), i))
    return Changed(
        before.step,
        after.step,
        len(differences),
        sum(d > 0 for d in differences.values()),
        sum(d < 0 for d in differences.values()),
        [
            (*_asked(new[i][1]), _short(old[i][1].get("answer")), _short(new[i][1].get("answer")),
             f"{differences[i]:+.3g}")
            for i in most[:SHOWN]
        ],
    )  # fmt: skip


def _samples(b: Benchmarked) -> dict[str, tuple[float, dict[str, Any]]]:
    """Score and record by id."""
    if b.samples is None or not b.samples.is_file() or b.samples.stat().st_size > MOST_BYTES:
        return {}
    records = ((r, finite(r.get("score"))) for r in map(mapping, read_lines(b.samples)))
    return {str(r.get("id")): (score, r) for r, score in records if score is not None}


def _asked(record: dict[str, Any]) -> tuple[str, str]:
    truths = record.get("labels", record.get("truths"))
    return _short(record.get("prompt")), _short(truths[0] if isinstance(truths, list) and truths else None)


def _short(value: Any) -> str:
    text = " ".join(str("" if value is None else value).split())
    return (text if len(text) <= LETTERS else text[: LETTERS - 1] + "…") or "(nothing)"
