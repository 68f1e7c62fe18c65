"""`fovea eval --task`: tasks on one checkpoint, by 1 to n ranks, kept as they go.

OUT/TASK.json        scores, intervals, the blind baseline; `incomplete`, without scores, where one failed
OUT/TASK.jsonl       a line a sample: id, prompt, raw answer, parsed answer, score, and the same blind
OUT/TASK.examples.json  the best answers and the worst, with small pictures, for the report
OUT/TASK.answers/    the answers as they came (evaluation/store.py): the same command goes on from them
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import commit, sha256_file, write_json
from trainer.distributed import World, from_main
from trainer.evaluation.answering import Pair, answer, rank_texts, ranked_texts, shares
from trainer.evaluation.asking import blind_partners, in_order
from trainer.evaluation.layouts.read import read_task
from trainer.evaluation.outcome import name_first, outcome
from trainer.evaluation.shown import extremes
from trainer.evaluation.store import Record, opened
from trainer.evaluation.suite import Subject
from trainer.evaluation.task import Task, check_files, parts, paths_of

MISSING_SHOWN = 100


@dataclass(frozen=True)
class Opened:
    """`name` and `digest` say which weights, `dtype` as what they answer; `results` is where its results
    belong, None outside of a run."""

    subject: Subject
    name: str
    digest: str
    results: Path | None
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to run. `limit`: so many samples of each task. `seed` draws them, examples and blind pictures."""

    tasks: Sequence[Task]
    data: Path
    out: Path | None = None
    limit: int | None = None
    seed: int = 0


def run_tasks(world: World, checkpoint: Opened, asked: Asked) -> list[dict[str, Any]]:
    """The results, which stand in the files when it returns (all ranks; each gets them)."""
    out = asked.out or checkpoint.results
    if out is None:
        raise ConfigError(f"{checkpoint.name} belongs to no run: name a directory for the results with --out")
    check_files(asked.tasks, asked.data)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(
            f"{out}: no directory for results can be made there ({e.strerror}): name another with --out"
        ) from None
    return [_run(world, checkpoint, task, asked, out) for task in asked.tasks]


def _run(world: World, checkpoint: Opened, task: Task, asked: Asked, out: Path) -> dict[str, Any]:
    checkpoint.subject.ranks.agree()
    read, examples = read_task(task, asked.data)
    _check_count(task, len(read), asked)
    every = in_order(read, asked.seed)
    questions = every[: asked.limit]
    # By all, so that a limit changes no answer; texts are ranked against each other alone.
    partners = blind_partners(questions) if task.ranked else blind_partners(every)
    pairs = [Pair(q, p) for q, p in zip(questions, partners, strict=False)]
    texts, owners = ranked_texts(task, questions) if task.ranked else ([], [])
    key = {
        "checkpoint": checkpoint.digest,
        "dtype": checkpoint.dtype,
        "task": task.model_dump(mode="json"),
        "files": from_main(world, _files(task, asked.data) if world.is_main else None),
        "seed": asked.seed,
        "texts": texts,
    }
    with opened(world, out / f"{task.name}.answers", key) as store:
        mine = shares(pairs, world, store.done, task)
        if task.ranked:
            wordings = 1 + len(task.ensemble)
            rank_texts(checkpoint.subject, [p.question for p in mine], texts, wordings, store)
        else:
            answer(checkpoint.subject, task, mine, in_order(examples, asked.seed), asked.seed, store)
    checkpoint.subject.ranks.agree()
    result = None
    if world.is_main:
        about = {
            "checkpoint": {"name": checkpoint.name, "digest": checkpoint.digest, "dtype": checkpoint.dtype},
            "limit": asked.limit,
            "of": len(read),
            "seed": asked.seed,
        }
        named = pairs[0].question.options if task.metric == "classification" else texts
        result = _result(task, pairs, store.read(), named, owners, about, out)
    found: dict[str, Any] = from_main(world, result)
    return found


def _check_count(task: Task, found: int, asked: Asked) -> None:
    if task.n is not None and found != task.n and asked.limit is None:
        raise DataError(
            f"{task.name}: the files have {found:,} samples, the release has {task.n:,}: a score over others "
            "is another score.\n  Complete the files, evaluate a part on purpose with --limit N, or write a "
            "task page of your own with its n."
        )


def _files(task: Task, root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for part in parts(task)
        for file in part.files.values()
        for path in paths_of(file, root)
        if path.is_file()
    }


def _result(
    task: Task,
    pairs: Sequence[Pair],
    kept: Mapping[str, Record],
    texts: Sequence[str],
    owners: Sequence[int],
    about: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    missing = [
        {"id": p.question.id, "why": kept.get(p.question.id, {}).get("error", "no answer was kept")}
        for p in pairs
        if "error" in kept.get(p.question.id, {"error": ""})
    ]
    result = {
        "format": 1,
        "task": task.name,
        "page": task.model_dump(mode="json"),
        "metric": task.metric,
        "n": len(pairs) - len(missing),
        **about,
        "status": "incomplete" if missing else "limited" if len(pairs) < about["of"] else "complete",
    }
    if missing:
        result |= {"scores": None, "missing_n": len(missing), "missing": missing[:MISSING_SHOWN]}
        for kind in ("jsonl", "examples.json"):
            (out / f"{task.name}.{kind}").unlink(missing_ok=True)
    else:
        records = [dict(kept[p.question.id]) for p in pairs]
        if task.ranked:
            _pair_blind(records, pairs)
            name_first(task.metric, records, texts)
        result |= outcome(task, records, owners)
        result |= {"text_to_image": list(owners)} if owners else {}
        with commit(out / f"{task.name}.jsonl") as f:
            f.writelines(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)
        write_json(out / f"{task.name}.examples.json", extremes(records, [p.question for p in pairs]))
    write_json(out / f"{task.name}.json", result)
    return result


def _pair_blind(records: Sequence[Record], pairs: Sequence[Pair]) -> None:
    """What a text is worth with another picture is known already: it is that picture's own row."""
    rows = {r["id"]: r["scores"] for r in records}
    for record, pair in zip(records, pairs, strict=True):
        record["blind_scores"] = rows[pair.partner.id]


def describe(result: Mapping[str, Any]) -> str:
    """One line for the screen."""
    head = f"{result['task']:<18}"
    if result["status"] == "incomplete":
        first = result["missing"][0]
        lost = result["missing_n"]
        return (
            f"{head} incomplete: {lost} of {result['n'] + lost} samples have no answer, "
            f"the first is {first['id']}: {first['why']}"
        )
    name = result["primary"]
    low, high = result["interval_95"][name]
    part = f" of {result['of']}" if result["status"] == "limited" else ""
    return (
        f"{head} {name} {result['scores'][name]:.4g} [{low:.4g}, {high:.4g}]  "
        f"blind {result['blind'][name]:.4g}   n {result['n']}{part}"
    )
