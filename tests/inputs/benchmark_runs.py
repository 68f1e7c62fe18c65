"""Tasks on the small releases of the tests: run, and what they wrote."""

import json
from pathlib import Path

from trainer.benchmarks import Asked, run_tasks
from trainer.distributed import alone
from trainer.evaluation.task import Task, load_task

N = 12

ANSWERED = ("raw", "blind_raw", "answer", "blind_answer", "score", "blind_score", "prompt")


def page(name: str, **changes: object) -> Task:
    """The task with the n of the small release, and short answers."""
    base = load_task(name).model_dump(mode="json")
    return Task.model_validate({**base, "n": N, "max_new_tokens": 4, **changes})


def written(directory: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text("utf-8").splitlines()]


def answers(directory: Path, name: str) -> dict[str, dict]:
    return {r["id"]: {k: r[k] for k in ANSWERED} for r in written(directory, name)}


def run(opened, data, out, *tasks, **how):
    return run_tasks(alone(), opened, Asked(tasks=tasks, data=data, out=out, **how))
