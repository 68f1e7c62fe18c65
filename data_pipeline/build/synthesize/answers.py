"""Question-answer pairs out of a model's text: JSON or "Q: ... A: ..." lines, and nothing looser."""

import json
import re
from typing import Any

MAX_PAIRS = 32
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
_LABEL = re.compile(r"^\s*(?:\d{1,2}[.)]\s*)?(Q|A|Question|Answer)(?:\s?\d{1,2})?\s*:\s*(.*)$", re.IGNORECASE)


def pairs(text: str, *, cut: bool = False) -> list[tuple[str, str]] | None:
    """The pairs, or None where the text is anything but pairs, or more than `MAX_PAIRS`.

    JSON: a list of {"question", "answer"}, or an object that holds one under `pairs` or `questions`.
    `cut`: the text ended at the model's limit, so the last answer is not whole and is left out.
    """
    body = text.strip()
    if fenced := _FENCE.match(body):
        body = fenced.group(1).strip()
    found = _from_json(body) if body[:1] in ("[", "{") else _from_lines(body)
    if found and cut and body[:1] not in ("[", "{"):
        found = found[:-1]
    return found if found and len(found) <= MAX_PAIRS else None


def _from_json(body: str) -> list[tuple[str, str]] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and len(value) == 1:
        value = value.get("pairs") or value.get("questions")
    if not isinstance(value, list):
        return None
    found = [_pair(item) for item in value]
    return None if any(p is None for p in found) else [p for p in found if p is not None]


def _pair(item: Any) -> tuple[str, str] | None:
    if not isinstance(item, dict):
        return None
    question, answer = item.get("question"), item.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)  # "how many?" is often answered by a bare number
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    question, answer = question.strip(), answer.strip()
    return (question, answer) if question and answer else None


def _from_lines(body: str) -> list[tuple[str, str]] | None:
    """Labels must alternate, question first; a line without one continues what stands before it."""
    told: list[tuple[str, str]] = []
    for line in body.splitlines():
        if label := _LABEL.match(line):
            told.append((label.group(1)[0].upper(), label.group(2).strip()))
        elif line.strip():
            if not told:
                return None
            told[-1] = (told[-1][0], f"{told[-1][1]} {line.strip()}".strip())
    whole = len(told) % 2 == 0 and all(kind == "QA"[n % 2] for n, (kind, _) in enumerate(told))
    if not whole or not all(text for _, text in told):
        return None
    return [(told[n][1], told[n + 1][1]) for n in range(0, len(told), 2)]
