"""The verbs of `fovea data` that need a training recipe: measure, explain, and preview of packed rows."""

import argparse
import json
import sys
from pathlib import Path

from data_pipeline.cli_parser import Verbs, add_verb, positive
from data_pipeline.errors import ConfigError

_RUN = "run directory (default: the one that RECIPE lies in)"


def add_stream_verbs(verbs: Verbs) -> None:
    """Mount them beside the verbs of data_pipeline/cli.py; `preview` gains the arguments of a recipe."""
    p = add_verb(
        verbs,
        "measure",
        _measure,
        "record how many tokens and patches each sample takes, which training plans from",
        "fovea data measure tiny --run runs/demo --workers 16",
    )
    p.add_argument("recipe", metavar="RECIPE", help="a training recipe: a YAML page, or one that ships")
    p.add_argument("--run", type=Path, metavar="DIR", help=_RUN)
    p.add_argument("--stage", metavar="NAME", help="one stage only")
    p.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    p.add_argument("overrides", nargs="*", metavar="key=value")

    p = add_verb(
        verbs,
        "explain",
        _explain,
        "which samples, sources and URLs made a training step, and on which rank",
        "fovea data explain tiny --stage align --step 12 --run runs/demo",
    )
    p.add_argument("recipe", metavar="RECIPE", help="a training recipe: a YAML page, or one that ships")
    p.add_argument("--stage", required=True, metavar="NAME")
    p.add_argument("--step", type=positive, required=True, metavar="N", help="as in metrics.jsonl, from 1")
    p.add_argument("--run", type=Path, metavar="DIR", help=_RUN)
    p.add_argument("--nproc", type=positive, metavar="N", help="ranks (default: those of the run, else 1)")
    p.add_argument("--json", action="store_true", help="as one JSON object")
    p.add_argument("overrides", nargs="*", metavar="key=value")

    p = verbs.choices["preview"]
    show_samples = p.get_default("run_verb")
    p.set_defaults(run_verb=lambda args: _preview(args) if args.recipe else show_samples(args))
    rows = p.add_argument_group("packed rows of a training step, as they enter the model, instead of samples")
    rows.add_argument("--recipe", metavar="RECIPE", help="a training recipe: a YAML page, or one that ships")
    rows.add_argument("--stage", metavar="NAME")
    rows.add_argument("--run", type=Path, metavar="DIR", help=_RUN)
    rows.add_argument("--step", type=positive, default=1, metavar="N", help="(%(default)s)")
    rows.add_argument("--rows", type=positive, default=8, metavar="N", help="(%(default)s)")


def _preview(args: argparse.Namespace) -> int:
    if args.directory or not args.stage:
        raise ConfigError(
            "packed rows need --recipe and --stage, and no DIR:\n"
            "  fovea data preview --recipe runs/demo/recipe.yaml --stage align --out rows.html"
        )
    from trainer.config import load_recipe
    from trainer.preview import preview

    recipe, run = load_recipe(args.recipe), _run(args)
    out = args.out or run / args.stage / f"rows.step_{args.step:06d}.html"
    stage = recipe.stage(args.stage)
    found = preview(recipe, stage, run, out, step=args.step, rows=args.rows, ranks=_ranks(run))
    print(f"wrote {out}: {found.shown} of the {found.planned} rows of step {args.step}")
    return 0


def _measure(args: argparse.Namespace) -> int:
    from data_pipeline.stream.tokens import Tokenizer
    from trainer.config import load_recipe
    from trainer.stage_stream import measure, open_datasets

    recipe, run = load_recipe(args.recipe, args.overrides), _run(args)
    stages = [recipe.stage(args.stage)] if args.stage else recipe.stages
    tokenizer = Tokenizer.load(run / recipe.backbones.path / "tokenizer")
    datasets = open_datasets(recipe, run)
    for stage in stages:
        _, sizes = measure(recipe, stage, run, datasets, tokenizer, args.workers, _say)
        for name, table in sizes.items():
            table.verify()  # training trusts what it maps; here there is time to read it all
            _say(
                f"{stage.name}: {name}  {len(table):,} samples, {table.usable:,} usable, "
                f"{table.mean_tokens(stage.splitting):,.1f} tokens each"
            )
    return 0


def _explain(args: argparse.Namespace) -> int:
    from trainer.config import load_recipe
    from trainer.explain import describe, explain

    recipe, run = load_recipe(args.recipe, args.overrides), _run(args)
    found = explain(recipe, recipe.stage(args.stage), run, args.step, args.nproc or _ranks(run))
    if args.json:
        print(json.dumps(found.to_json()))
    else:
        print("\n".join(describe(found)))
    return 0


def _run(args: argparse.Namespace) -> Path:
    """The run directory: as given, else where the recipe's page lies."""
    if args.run is None and not Path(args.recipe).is_file():
        raise ConfigError(
            f"'{args.recipe}' is no file in a run directory: say which run it is about, --run DIR"
        )
    return args.run or Path(args.recipe).parent


def _ranks(run_dir: Path) -> int:
    """The ranks that the run was last trained with."""
    try:
        return int(json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
