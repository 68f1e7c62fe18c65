"""`fovea score`: a metric alone, on the files in which the benchmarks exchange results; prints JSON."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError, DataError
from trainer.evaluation.intervals import compare, intervals
from trainer.evaluation.meteor import meteor, why_not
from trainer.evaluation.ptb import tokenize
from trainer.evaluation.readers import READERS, read_captions
from trainer.evaluation.spice import spice


def add_parser(subparsers: Any) -> None:
    """Mount `score` on the command line; the parsed arguments go to `run`."""
    parser = subparsers.add_parser(
        "score",
        help="a metric on predictions and references in the benchmark's own file formats; prints JSON",
        description="Score predictions against references, both in the benchmark's own file formats.",
    )
    parser.add_argument("metric", metavar="METRIC", choices=READERS, help=", ".join(READERS))
    parser.add_argument("--predictions", required=True, type=Path, metavar="FILE", help="results")
    parser.add_argument("--references", required=True, type=Path, metavar="FILE", help="the right answers")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="other results on the same samples: are these better?"
    )
    parser.add_argument(
        "--meteor",
        action="store_true",
        help="captions: METEOR of large sets too (it needs java and pycocoevalcap)",
    )
    parser.add_argument(
        "--spice",
        action="store_true",
        help="captions: SPICE too (java, pycocoevalcap, CoreNLP)",
    )
    parser.set_defaults(run_verb=run)


def run(args: argparse.Namespace) -> int:
    for option in ("meteor", "spice"):
        if getattr(args, option) and args.metric != "captions":
            raise ConfigError(f"--{option} belongs to the metric captions, not to {args.metric}")
    result = score(args.metric, args.predictions, args.references, args.compare)
    if args.metric == "captions":
        result |= _by_java(args.predictions, args.references, args.meteor, args.spice)
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    return 0


def score(metric: str, predictions: Path, references: Path, other: Path | None = None) -> dict[str, Any]:
    """What `fovea score` prints: the values, n, and a 95 % interval of each value that is not by type."""
    ours = READERS[metric](predictions, references)
    result = {
        "metric": metric,
        "n": len(ours.terms),
        **ours.values,
        "interval_95": intervals(ours),
        "units": len(set(ours.units)),
    }
    if other is not None:
        theirs = READERS[metric](other, references)
        result["compared_with"] = {"predictions": str(other), **theirs.values}
        result["differences"] = compare(ours, theirs)
    return result


def _by_java(predictions: Path, references: Path, asked: bool, with_spice: bool) -> dict[str, Any]:
    """METEOR, or why it is left out; SPICE where it is asked for. Neither has an interval:
    their programs give no sums to draw from."""
    captions, truths = read_captions(predictions, references)
    reason = why_not(len(truths), asked)
    if reason and not with_spice:
        return {"left_out": {"METEOR": reason}}
    hyps = [tokenize(captions[i]) for i in truths]
    refs = [[tokenize(c) for c in of_one] for of_one in truths.values()]
    found: dict[str, Any] = {"SPICE": spice(hyps, refs)} if with_spice else {}
    try:
        return found | ({"left_out": {"METEOR": reason}} if reason else {"METEOR": meteor(hyps, refs)})
    except DataError as e:  # the other scores stand without it
        if asked:
            raise
        return found | {"left_out": {"METEOR": str(e)}}
