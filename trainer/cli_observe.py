"""`fovea status` and `fovea report`: a run on one screen, or as one page."""

import argparse
import json
from pathlib import Path

from data_pipeline.cli_parser import Verbs, add_verb


def add_observe_verbs(verbs: Verbs) -> None:
    """Mount the verbs among those of `fovea`."""
    p = add_verb(
        verbs,
        "status",
        _status,
        "stages, step, time left, goodput, last checkpoint and owner, from the run directory alone",
        "fovea status runs/demo",
    )
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("--json", action="store_true", help="the same as JSON")

    p = add_verb(verbs, "report", _report, "one HTML page about a run", "fovea report runs/demo")
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("--out", type=Path, metavar="FILE", help="(RUN/report.html)")


def _status(args: argparse.Namespace) -> int:
    from trainer.observe.status import describe, status_of

    status = status_of(args.run)
    print(json.dumps(status.to_json(), indent=2) if args.json else "\n".join(describe(status)))
    return 0


def _report(args: argparse.Namespace) -> int:
    from trainer.observe.report import write_report

    out = args.out or args.run / "report.html"
    write_report(args.run, out)
    print(f"wrote {out}")
    return 0
