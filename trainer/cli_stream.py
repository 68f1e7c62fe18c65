"""The verbs of `fovea data` that need a training recipe: measure, explain, and preview of packed rows."""

import argparse
import json
import sys
from pathlib import Path

from data_pipeline.cli_parser import Verbs, add_verb, positive
from data_pipeline.errors import ConfigError


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
    p.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")
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
    p.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")
    p.add_argument("--nproc", type=positive, metavar="N", help="ranks (default: those of the run, else 1)")
    p.add_argument("--json", action="store_true", help="as one JSON object")
    p.add_argument("overrides", nargs="*", metavar="key=value")

    p = verbs.choices["preview"]
    show_samples = p.get_default("run_verb")
    p.set_defaults(run_verb=lambda args: _preview(args) if args.recipe else show_samples(args))
    rows = p.add_argument_group("packed rows of a training step, as they enter the model, instead of samples")
    rows.add_argument("--recipe", metavar="RECIPE", help="a training recipe: a YAML page, or one that ships")
    rows.add_argument("--stage", metavar="NAME")
    rows.add_argument("--run", type=Path, metavar="DIR", help="run directory")
    rows.add_argument("--step", type=positive, default=1, metavar="N", help="(%(default)s)")
    rows.add_argument("--rows", type=positive, default=8, metavar="N", help="(%(default)s)")


def _preview(args: argparse.Namespace) -> int:
    if args.directory or not (args.stage and args.run):
        raise ConfigError(
            "packed rows need --recipe, --stage and --run, and no DIR:\n"
            "  fovea data preview --recipe tiny --stage align --run runs/demo --out rows.html"
        )
    from trainer.config import load_recipe
    from trainer.preview import preview

    recipe = load_recipe(args.recipe)
    found = preview(
        recipe,
        recipe.stage(args.stage),
        args.run,
        args.out,
        step=args.step,
        rows=args.rows,
        ranks=_ranks(args.run),
    )
    print(f"wrote {args.out}: {found.shown} of the {found.planned} rows of step {args.step}")
    return 0


def _measure(args: argparse.Namespace) -> int:
    from data_pipeline.stream.tokens import Tokenizer
    from trainer.config import load_recipe
    from trainer.stage_stream import measure, open_datasets

    recipe = load_recipe(args.recipe, args.overrides)
    stages = [recipe.stage(args.stage)] if args.stage else recipe.stages
    tokenizer = Tokenizer.load(args.run / recipe.backbones.path / "tokenizer")
    datasets = open_datasets(recipe, args.run)
    for stage in stages:
        _, sizes = measure(recipe, stage, args.run, datasets, tokenizer, args.workers, _say)
        for name, table in sizes.items():
            _say(
                f"{stage.name}: {name}  {len(table):,} samples, {table.usable:,} usable, "
                f"{table.mean_tokens(stage.splitting):,.1f} tokens each"
            )
    return 0


def _explain(args: argparse.Namespace) -> int:
    from trainer.config import load_recipe
    from trainer.explain import describe, explain

    recipe = load_recipe(args.recipe, args.overrides)
    found = explain(recipe, recipe.stage(args.stage), args.run, args.step, args.nproc or _ranks(args.run))
    if args.json:
        print(json.dumps(found.to_json()))
    else:
        print("\n".join(describe(found)))
    return 0


def _ranks(run_dir: Path) -> int:
    """The ranks that the run was last trained with."""
    try:
        return int(json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
