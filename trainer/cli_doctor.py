"""`fovea doctor`: whether the machine, or all nodes of a job, can do what training will ask of them."""

import argparse
import faulthandler
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data_pipeline.cli_parser import Verbs, add_verb, positive
from data_pipeline.errors import FoveaError, PreflightError
from trainer.launch import end_with_launcher, is_rank, launch, report_error

if TYPE_CHECKING:
    from trainer.doctor.examination import RecipeChecks
    from trainer.doctor.report import Report

_SECONDS = 60


def add_doctor_verb(verbs: Verbs) -> None:
    """Mount the verb among those of `fovea`."""
    p = add_verb(
        verbs,
        "doctor",
        _doctor,
        "whether this machine, or under srun each node of a job, is fit to train; codes 0, 1, 2",
        "fovea doctor\n  fovea doctor tiny --run runs/demo --nproc 2\n"
        "  srun --ntasks-per-node=8 fovea doctor runs/mine/recipe.yaml --run runs/mine",
    )
    p.add_argument("recipe", metavar="RECIPE", nargs="?", help="look at what this recipe needs, too")
    p.add_argument(
        "--run", type=Path, default=Path(), metavar="DIR", help="run directory, seen by all nodes (here)"
    )
    p.add_argument(
        "--nproc",
        type=positive,
        default=1,
        metavar="N",
        help="ranks to start here (%(default)s); srun has its own",
    )
    p.add_argument("--json", action="store_true", help="all that was found, as JSON")
    p.add_argument(
        "--seconds", type=positive, default=_SECONDS, metavar="S", help="for all of it, at most (%(default)s)"
    )
    # Where rank 0 leaves its report for the process that started it.
    p.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    p.add_argument("overrides", nargs="*", metavar="key=value")


def _doctor(args: argparse.Namespace) -> int:
    if is_rank():
        _examine_rank(args)
    report = _start_ranks(args) if args.nproc > 1 else _examined(args)
    assert report is not None, "rank 0 reports"
    return _print(report, args.json)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """What is inside has no deadline of its own: where it hangs, say where, and end."""
    last = threading.Timer(seconds, _give_up, [seconds])
    last.daemon = True
    last.start()
    try:
        yield
    finally:
        last.cancel()


def _loading_s(args: argparse.Namespace) -> int:
    """Libraries come from a file server, to all nodes at once."""
    return 3 * args.seconds + 10


def _give_up(seconds: int) -> NoReturn:
    faulthandler.dump_traceback()
    sys.stderr.write(
        f"fovea: nothing to report after {seconds} s; where it hangs stands above.\n"
        "  Look at the file system that the environment is on.\n"
    )
    sys.stderr.flush()
    os._exit(2)


def _examine_rank(args: argparse.Namespace) -> NoReturn:
    """One rank of several. It ends at once when it has spoken: a thread of it may hang for ever."""
    end_with_launcher()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what it notes while it meets, we say ourselves
    code = 0
    try:
        report = _examined(args)
        if report is not None and args.into:
            args.into.write_text(json.dumps(report.to_json()), encoding="utf-8")
        elif report is not None:
            code = _print(report, args.json)
    except FoveaError as e:
        report_error(e)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _examined(args: argparse.Namespace) -> "Report | None":
    """Raises as `Examination.take`, and PreflightError where libraries cannot be loaded, which on rank 0 is a
    finding."""
    from trainer.doctor.finding import BREAKS, Finding
    from trainer.doctor.report import Report, joined
    from trainer.quiet import quiet_libraries

    quiet_libraries()
    rank = int(os.environ.get("RANK", 0)) if is_rank() else 0
    size = int(os.environ["WORLD_SIZE"]) if is_rank() else 1
    checks: RecipeChecks | None = None
    try:
        with _at_most(_loading_s(args)):
            from trainer.doctor.examination import Examination, Order

            if rank == 0 and args.recipe:
                from trainer.doctor import recipe as of_recipe

                checks = of_recipe.checks
    except BREAKS as e:
        host, said = os.uname().nodename, f"cannot be loaded: {type(e).__name__}: {e}"
        fix = "mend what it names, or make the environment anew: make setup"
        if rank:
            raise PreflightError(f"rank {rank} on {host}: software {said}\n  {fix}") from None
        return Report(1, (host,), 0.0, joined({0: [Finding("software", "fail", said, fix)]}, {0: host}))
    order = Order(
        recipe=args.recipe, overrides=tuple(args.overrides), run=args.run, seconds=float(args.seconds)
    )
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    return Examination(order=order, rank=rank, size=size, local_rank=local_rank, of_recipe=checks).take()


def _start_ranks(args: argparse.Namespace) -> "Report":
    """The report of rank 0 of `--nproc` ranks on this machine; where one of them dies, that is a finding."""
    from trainer.doctor.finding import of_error
    from trainer.doctor.report import Report, Row

    argv = ["doctor", *([args.recipe] if args.recipe else []), "--run", str(args.run)]
    host = os.uname().nodename
    rows: tuple[Row, ...] = ()
    with tempfile.TemporaryDirectory() as room:
        into = Path(room) / "report.json"
        try:
            with _at_most(_loading_s(args) + args.seconds + 20):  # its ranks end by themselves before
                launch(
                    [*argv, "--seconds", str(args.seconds), "--into", str(into), *args.overrides], args.nproc
                )
        except FoveaError as e:
            found = of_error("ranks", e)
            rows = (Row("ranks", (host,), "fail", found.said, found.fix),)
        if into.exists():
            report = Report.from_json(json.loads(into.read_text(encoding="utf-8")))
            return Report(report.ranks, report.hosts, report.seconds, (*report.rows, *rows))
    return Report(args.nproc, (host,), 0.0, rows)


def _print(report: "Report", as_json: bool) -> int:
    from trainer.doctor.report import table

    print(json.dumps(report.to_json(), indent=1) if as_json else "\n".join(table(report)))
    return report.exit_code
