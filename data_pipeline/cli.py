"""`fovea data`: build a dataset, prove it, look at it. Each verb imports what it needs when it runs."""

import argparse
import dataclasses
import json
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cli_parser import IntermixedParser, Verbs, add_verb, natural, new_file, positive
from data_pipeline.cli_views import add_view_verbs
from data_pipeline.errors import ConfigError, DataError, FoveaError, refusal, shown

if TYPE_CHECKING:
    from data_pipeline.build.executor import Executor


def add_parser(subparsers: Verbs) -> Verbs:
    """Mount `data` and its verbs; each sets `run_verb`, a function from arguments to an exit code.

    The verbs are returned, so that training can mount its own beside them.
    """
    data = subparsers.add_parser("data", help="build datasets, prove them, look at them")
    verbs: Verbs = data.add_subparsers(
        dest="data_verb", required=True, metavar="VERB", parser_class=IntermixedParser
    )

    p = add_verb(verbs, "build", _build, "build a dataset; safe to repeat after any kill",
              "fovea data build demo --inputs data/raw --out data/demo\n"
              "  fovea data build my_documents/ --out data/mine --bad-inputs drop")  # fmt: skip
    p.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, the name of a shipped recipe, or a folder (./NAME)"
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="where the dataset goes (default: data/<recipe's name>)"
    )
    p.add_argument("--inputs", type=Path, metavar="DIR", help="relative paths of sources count from here")
    p.add_argument("--workers", type=positive, default=1, metavar="N", help="tasks at once (%(default)s)")
    p.add_argument(
        "--executor",
        choices=("local", "slurm"),
        default="local",
        help="where tasks run (%(default)s); with slurm this command submits an array and waits for it",
    )
    p.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="partition (required), time, cpus, mem_gb, max_running, qos, account; repeat it for each",
    )
    p.add_argument(
        "--bad-inputs",
        choices=("stop", "drop"),
        help="unreadable inputs: stop and list them, or leave out and count (default: the recipe's)",
    )
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. tasks=8 sources.scenes_qa.count=1000"
    )

    p = add_verb(verbs, "verify", _verify, "read a dataset whole and prove what its manifest claims",
              "fovea data verify data/demo")  # fmt: skip
    p.add_argument("directory", type=Path, metavar="DIR")

    p = add_verb(verbs, "stats", _stats, "what a dataset holds, and what was left out and why",
              "fovea data stats data/demo --json")  # fmt: skip
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument("--json", action="store_true", help="as JSON")

    p = add_verb(verbs, "preview", _preview, "one static HTML page with samples as training sees them",
              "fovea data preview data/demo --out preview.html --source scenes_qa")  # fmt: skip
    p.add_argument("directory", type=Path, nargs="?", metavar="DIR")
    p.add_argument("--out", type=new_file, metavar="FILE.html", help="(DIR/preview.html)")
    p.add_argument("--split", choices=("train", "heldout"))
    p.add_argument("--source", metavar="NAME")
    p.add_argument("--n", type=positive, default=20, metavar="N", help="samples (%(default)s)")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="draws others (%(default)s)")
    p.add_argument("--excluded", action="store_true", help="what later steps left out, with the reason")

    add_view_verbs(verbs)

    p = add_verb(verbs, "scenes", _scenes, "write HTML pages and PDF files about scenes, the demo's inputs",
              "fovea data scenes --out data/raw --pages 300 --pdfs 150")  # fmt: skip
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--pages", type=natural, default=300, metavar="N", help="HTML pages (%(default)s)")
    p.add_argument("--pdfs", type=natural, default=150, metavar="N", help="PDF files (%(default)s)")
    p.add_argument("--seed", type=int, default=0, metavar="S")
    return verbs


def main(argv: list[str] | None = None) -> int:
    """`python -m data_pipeline.cli data ...`: these verbs alone, on machines without torch."""
    parser = argparse.ArgumentParser(prog="fovea")
    add_parser(parser.add_subparsers(required=True, metavar="VERB"))
    args = parser.parse_args(argv)
    try:
        return args.run_verb(args)
    except FoveaError as e:
        error = e
    except (OSError, sqlite3.Error) as e:
        if (refused := refusal(e)) is None:
            raise
        error = refused
    sys.stderr.write(f"fovea: {shown(error)}\n")
    return error.exit_code


def _build(args: argparse.Namespace) -> int:
    from rich.console import Console

    from data_pipeline.build.filter.presets import notes
    from data_pipeline.build.look.funnel import funnel, table
    from data_pipeline.build.look.stats import stats
    from data_pipeline.build.look.stats import table as stats_table
    from data_pipeline.build.recipe import BuildRecipe, is_folder
    from data_pipeline.build.run import build

    name = Path(args.recipe).resolve().name if is_folder(args.recipe) else Path(args.recipe).stem
    out = args.out or Path("data") / name
    manifest = build(
        args.recipe,
        out,
        root=args.inputs,
        executor=_executor(args),
        bad_inputs=args.bad_inputs,
        overrides=args.overrides,
        console=Console(),
    )
    found = funnel(manifest)
    print("\n".join(table({**found, "sources": {}})))  # of all sources; each by itself is in the report
    print()
    kept = stats(manifest)
    print("\n".join(stats_table(kept)))
    for note in notes(BuildRecipe.model_validate(manifest.recipe).filters_by_source()):
        print(f"  {note}")
    print(f"dataset '{manifest.name}' is in {out} (digest {manifest.digest})")
    print(f"  What was dropped and why:  {out}/report.html")
    if not any(s["train"] + s["heldout"] for s in kept["sources"].values()):
        raise DataError(
            f"{out} holds no sample: all that was read was dropped, for the reasons above.\n"
            "  Loosen what dropped it (filters, images, dedup of the recipe), or name other inputs."
        )
    print(f"  Look at samples:           fovea data preview {out} --out {out}/preview.html")
    return 0


def _executor(args: argparse.Namespace) -> "Executor":
    from data_pipeline.build.executor import LocalExecutor
    from data_pipeline.build.slurm import SlurmExecutor, slurm_config

    if args.executor == "slurm":
        return SlurmExecutor(slurm_config(args.slurm))
    if args.slurm:
        raise ConfigError("--slurm is for --executor slurm; the executor is local")
    return LocalExecutor(args.workers)


def _verify(args: argparse.Namespace) -> int:
    from data_pipeline.build.verify import verify

    v = verify(args.directory)
    print(
        f"{args.directory}: verified {v.samples:,} samples, {v.images:,} images, {v.shards} shards, "
        f"{v.nbytes / 1e6:.1f} MB ({v.megabytes_per_second:.0f} MB/s)"
    )
    return 0


def _stats(args: argparse.Namespace) -> int:
    from data_pipeline.build.look.stats import curve, stats, table
    from data_pipeline.build.score.columns import column_names
    from data_pipeline.build.score.threshold import step_of, yield_curve
    from data_pipeline.manifest import read_manifest

    found = stats(read_manifest(args.directory))
    yields = {c: yield_curve(args.directory, c, step=step_of(c)) for c in column_names(args.directory)}
    if args.json:
        found["yield"] = {c: [dataclasses.asdict(y) for y in points] for c, points in yields.items()}
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    print("\n".join(table(found)))
    for name, points in yields.items():
        print("\n".join(curve(name, points)))
    return 0


def _preview(args: argparse.Namespace) -> int:
    from data_pipeline.build.look.preview import preview
    from data_pipeline.manifest import read_manifest

    if args.directory is None:
        raise ConfigError("say which dataset:  fovea data preview DIR")
    out = args.out or args.directory / "preview.html"
    read_manifest(args.directory)  # before a folder is made in what is no dataset
    out.parent.mkdir(parents=True, exist_ok=True)
    page = preview(
        args.directory, n=args.n, seed=args.seed, split=args.split, source=args.source, excluded=args.excluded
    )
    out.write_text(page, encoding="utf-8")
    print(f"wrote {out} ({len(page) / 1e3:,.0f} kB): open it in a browser")
    return 0


def _scenes(args: argparse.Namespace) -> int:
    from data_pipeline.build.scenes.documents import write_documents

    pages, pdfs = write_documents(args.out, args.pages, args.pdfs, args.seed)
    print(f"wrote {args.pages} HTML pages to {pages} and {args.pdfs} PDF files to {pdfs}")
    print(f"  Build the demo's dataset:  fovea data build demo --inputs {args.out} --out data/demo")
    return 0


if __name__ == "__main__":
    sys.exit(main())
