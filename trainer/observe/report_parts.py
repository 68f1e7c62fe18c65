"""What the sections of the report share."""

from typing import Any

from trainer.observe import wording
from trainer.observe.run_record import Evaluated
from trainer.observe.wording import finite


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def total(steps: list[dict[str, Any]], key: str) -> float:
    return sum(v for m in steps if (v := finite(m.get(key))) is not None)


def fixed(value: Any, places: int = 2) -> str:
    """Scores stand below one another: as many places for each."""
    v = finite(value)
    return wording.MISSING if v is None else f"{v:.{places}f}"


def last(evaluations: list[Evaluated], task: str) -> dict[str, Any]:
    """The last results of that task."""
    measured = [e.results[task] for e in evaluations if isinstance(e.results.get(task), dict)]
    return measured[-1] if measured else {}
