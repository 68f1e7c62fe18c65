"""`fovea eval` and `fovea compare`: a checkpoint on held-out samples or on benchmarks, and two results."""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cli_parser import Verbs, add_verb, natural, new_file, positive
from data_pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trainer.evaluation.task import Task

_HELDOUT = "heldout"  # evaluation.config.HELDOUT, which would import pydantic for `fovea --help`


def add_eval_verbs(verbs: Verbs) -> None:
    """Mount the verbs among those of `fovea`."""
    p = add_verb(
        verbs,
        "eval",
        _eval,
        "evaluate a checkpoint, beside its blind baseline, on held-out samples or on benchmarks",
        "fovea eval runs/demo/align/checkpoints/step_000200\n"
        "  fovea eval runs/demo/adapt --task vqav2 --task pope --data benchmarks --nproc 8\n"
        "  fovea eval --tasks --data benchmarks",
    )
    p.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        metavar="CHECKPOINT",
        help="a checkpoint, or a stage's directory for its newest one; with --task also an exported "
        "directory, or one in Idefics2's layout",
    )
    p.add_argument(
        "--suite",
        default=_HELDOUT,
        metavar="NAME",
        help="without --task: %(default)s, or one of the recipe's evaluation.suites (%(default)s)",
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="a file that the held-out results are also written to; with --task and --hashes a directory",
    )
    p.add_argument(
        "--task", action="append", metavar="NAME", help="a benchmark, or a task page of your own, *.yaml"
    )
    p.add_argument("--tasks", action="store_true", help="list the benchmarks and the files that each needs")
    p.add_argument(
        "--hashes", metavar="NAME", help="write a benchmark's images and texts for `fovea data decontaminate`"
    )
    p.add_argument(
        "--data", type=Path, default=Path("benchmarks"), metavar="DIR", help="their files (%(default)s)"
    )
    p.add_argument("--limit", type=positive, metavar="N", help="so many samples of each task")
    p.add_argument("--shots", type=natural, metavar="K", help="examples before a question, 0 to 8")
    p.add_argument("--batch", type=positive, default=16, metavar="N", help="samples at once (%(default)s)")
    p.add_argument("--seed", type=natural, default=0, metavar="N", help="draws examples (%(default)s)")
    p.add_argument("--nproc", type=positive, default=1, metavar="N", help="ranks (%(default)s)")

    p = add_verb(
        verbs,
        "watch",
        _watch,
        "evaluate every new checkpoint of a run once, beside its training",
        "fovea watch runs/demo\n  fovea watch runs/demo --suite quick --once\n"
        "  fovea watch runs/demo --suite quick --submit",
    )
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument(
        "--suite",
        default=_HELDOUT,
        metavar="NAME",
        help="one of the recipe's evaluation.suites (%(default)s)",
    )
    p.add_argument("--once", action="store_true", help="evaluate what is there and end")
    p.add_argument(
        "--poll", type=positive, default=30, metavar="S", help="seconds between looks (%(default)s)"
    )
    p.add_argument("--nproc", type=positive, default=1, metavar="N", help="ranks (%(default)s)")
    how = p.add_mutually_exclusive_group()
    how.add_argument(
        "--submit", action="store_true", help="by Slurm: an array with a task for each checkpoint"
    )
    how.add_argument("--task", type=Path, metavar="LIST", help="be the task of such an array")
    p.add_argument(
        "--pin",
        type=natural,
        default=2,
        metavar="N",
        help="so many checkpoints of a stage, at most, are kept until they are evaluated (%(default)s)",
    )

    p = add_verb(
        verbs,
        "compare",
        _compare,
        "two results of `fovea eval --task` on the same samples: B less A, paired",
        "fovea compare runs/demo/instruct/eval/step_000850 runs/demo/adapt/eval/step_000070",
    )
    p.add_argument("a", type=Path, metavar="A", help="TASK.json, or a directory of them")
    p.add_argument("b", type=Path, metavar="B")
    p.add_argument("--samples", type=natural, default=10, metavar="N", help="differences shown (%(default)s)")
    p.add_argument("--json", type=new_file, metavar="FILE", help="all differences, sample by sample")


def _eval(args: argparse.Namespace) -> int:
    if args.tasks:
        from trainer.evaluation.task import describe, load_task, task_names

        print("\n".join(describe(load_task(name), args.data) for name in task_names()))
        return 0
    if args.hashes:
        return _hashes(args)
    if args.checkpoint is None:
        raise ConfigError("CHECKPOINT: name what to evaluate; or list the benchmarks with --tasks")
    if args.task or args.suite != _HELDOUT:
        return _tasks(args)
    return _heldout(args)


def _heldout(args: argparse.Namespace) -> int:
    from trainer.quiet import quiet_libraries
    from trainer.signals import abandoning

    if args.out and args.out.is_dir():
        raise ConfigError(f"--out {args.out} is a directory: name a file for the held-out results")
    with abandoning("the evaluation"):  # its results are written at its end
        quiet_libraries()
        from data_pipeline.manifest import write_json
        from trainer.evaluation.suite import describe
        from trainer.reading import reading
        from trainer.trained import evaluate_trained, open_trained

        with reading(args.checkpoint):
            results = evaluate_trained(open_trained(args.checkpoint))
        if args.out:
            write_json(args.out, results)
    print(describe(results))
    return 0


def _tasks(args: argparse.Namespace) -> int:
    from trainer.evaluation.task import check_files, load_task
    from trainer.launch import is_rank, launch

    if not args.task:
        _take_suite(args)
    tasks = [load_task(name, args.shots) for name in args.task]
    check_files(tasks, args.data)
    if args.nproc == 1 or is_rank():
        return _task_rank(args, tasks)
    launch(["eval", *_words(args)], args.nproc)
    return 0


def _take_suite(args: argparse.Namespace) -> None:
    """The recipe's suite as if it had been said by options; what was said goes before it."""
    from trainer.config import load_recipe

    run_dir = _run_of(args.checkpoint)
    suite = load_recipe(run_dir / "recipe.resolved.yaml").suite(args.suite)
    assert suite is not None
    args.task, args.data = list(suite.tasks), run_dir / suite.data
    args.limit = args.limit if args.limit is not None else suite.limit
    args.shots = args.shots if args.shots is not None else suite.shots
    args.batch, args.seed = suite.batch, suite.seed


def _run_of(checkpoint: Path) -> Path:
    for run_dir in checkpoint.resolve().parents:
        if (run_dir / "recipe.resolved.yaml").is_file():
            return run_dir
    raise ConfigError(f"{checkpoint} belongs to no run, and suites stand in a run's recipe: name --task")


def _words(args: argparse.Namespace) -> list[str]:
    """The command for a rank."""
    words = [str(args.checkpoint), "--data", str(args.data), "--batch", str(args.batch)]
    words += ["--seed", str(args.seed)]
    for name in args.task:
        words += ["--task", name]
    for flag, value in (("--limit", args.limit), ("--shots", args.shots), ("--out", args.out)):
        words += [flag, str(value)] if value is not None else []
    return words


def _task_rank(args: argparse.Namespace, tasks: "list[Task]") -> int:
    from trainer.launch import end_with_launcher, is_rank
    from trainer.quiet import quiet_libraries

    end_with_launcher()
    quiet_libraries()
    from trainer.benchmarks import Asked, describe, run_tasks
    from trainer.distributed import alone, close_world, init_world, lost_peers_are_transient
    from trainer.reading import reading
    from trainer.subject import open_subject

    # Ranks meet at the end of a task: the slowest one's share may take hours more.
    world = init_world(timeout_s=24 * 3600.0) if is_rank() else alone()
    kept = reading(args.checkpoint) if world.is_main else nullcontext()
    with lost_peers_are_transient(world), kept:
        opened = open_subject(world, args.checkpoint, args.batch)
        asked = Asked(tasks=tasks, data=args.data, out=args.out, limit=args.limit, seed=args.seed)
        results = run_tasks(world, opened, asked)
    close_world()
    if world.is_main:
        print("\n".join(describe(r) for r in results), flush=True)
    if broken := [r["task"] for r in results if r["status"] == "incomplete"]:
        raise DataError(f"no score for {', '.join(broken)}: a sample without an answer makes it incomplete")
    return 0


def _watch(args: argparse.Namespace) -> int:
    from trainer.watch import Watch, watch
    from trainer.watch_jobs import run_task, watch_by_jobs

    def say(text: str) -> None:
        print(text, flush=True)

    watched = Watch.open(args.run, args.suite, args.nproc, args.pin)
    if args.task:
        return run_task(watched, args.task, os.environ.get("SLURM_ARRAY_TASK_ID"), say)
    by = watch_by_jobs if args.submit else watch
    if given_up := by(watched, once=args.once, poll_s=args.poll, say=say):
        lists = f", and {args.run}/jobs/watch-{args.suite}-*.json" if args.submit else ""
        raise DataError(
            "without results:\n"
            + "\n".join(f"  {d.results / args.suite}.log" for d in given_up)
            + f"\n  Mend the cause, delete {args.suite}.failed.json beside it{lists}, and repeat the command."
        )
    return 0


def _hashes(args: argparse.Namespace) -> int:
    from trainer.evaluation.hashes import write_hashes
    from trainer.evaluation.layouts.read import read_task
    from trainer.evaluation.task import load_task

    if args.out is None:
        raise ConfigError("--hashes: name the directory to write with --out")
    task = load_task(args.hashes)
    found = write_hashes(read_task(task, args.data)[0], args.out)
    print(
        f"{task.name}: {found['samples']} samples, {found['images']} images, in {args.out}\n"
        "  search a dataset for them:  fovea data decontaminate DATASET "
        f"--benchmark {args.out} --out pairs.html"
    )
    return 0


def _compare(args: argparse.Namespace) -> int:
    from trainer.evaluation.comparison import compare_results, describe, open_results

    ours, theirs = open_results(args.a), open_results(args.b)
    names = sorted(ours.keys() & theirs.keys())
    if not names:
        raise ConfigError(
            f"no task is in both: {args.a} has {', '.join(ours)}; {args.b} has {', '.join(theirs)}"
        )
    found = [compare_results(ours[name], theirs[name]) for name in names]
    if args.json:
        from data_pipeline.manifest import write_json

        write_json(args.json, found)
    print("\n".join(describe(f, args.samples) for f in found))
    return 0
