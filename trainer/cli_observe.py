"""`fovea status` and `fovea report`: a run on one screen, or as one page; `fovea train --profile`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cli_parser import Verbs, add_verb, new_file
from data_pipeline.errors import ConfigError, PreflightError

if TYPE_CHECKING:
    from trainer.config import Stage
    from trainer.observe.profile import ProfileWindow
    from trainer.run import Run


def add_observe_verbs(verbs: Verbs) -> None:
    """Mount the verbs among those of `fovea`."""
    p = add_verb(
        verbs,
        "status",
        _status,
        "stages, step, time left, goodput, last checkpoint, owner; under Slurm the jobs",
        "fovea status runs/demo",
    )
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("--json", action="store_true", help="the same as JSON")

    p = add_verb(verbs, "report", _report, "one HTML page about a run", "fovea report runs/demo")
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("--out", type=new_file, metavar="FILE", help="(RUN/report.html)")


def add_profile_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        type=_window,
        metavar="FIRST:LAST",
        help="torch.profiler over these steps on rank 0: a Chrome trace in RUN/STAGE/profile/",
    )


def refuse_profile(window: tuple[int, int] | None, stage: "Stage") -> None:
    """Raises ConfigError where the stage has no such steps."""
    if window is not None and not 1 <= window[0] <= window[1] <= stage.steps:
        raise ConfigError(
            f"--profile {window[0]}:{window[1]}: FIRST:LAST are steps of stage '{stage.name}', "
            f"from 1 to {stage.steps}"
        )


def profiled(window: tuple[int, int] | None, run: "Run") -> list["ProfileWindow"]:
    """What writes the trace, on the main rank."""
    if window is None or not run.world.is_main:
        return []
    from trainer.observe.profile import ProfileWindow

    return [ProfileWindow(*window, run.state.step, run.stage_dir / "profile")]


def _window(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is not FIRST:LAST, as in 10:13")
    return int(first), int(last)


def _status(args: argparse.Namespace) -> int:
    from trainer.observe.status import describe, status_of, with_jobs

    status = with_jobs(status_of(args.run))
    print(json.dumps(status.to_json(), indent=2) if args.json else "\n".join(describe(status)))
    return 0


def _report(args: argparse.Namespace) -> int:
    from trainer.observe.report import write_report

    if not args.run.is_dir():
        raise PreflightError(
            f"{args.run}: no such directory\n  Name the directory that `fovea train --run DIR` was given."
        )
    out = args.out or args.run / "report.html"
    write_report(args.run, out)
    print(f"wrote {out}")
    return 0
