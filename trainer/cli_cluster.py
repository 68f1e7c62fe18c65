"""`fovea gate` and `fovea chain`: the stages of a recipe one after another, each behind a door."""

import argparse
import os
from pathlib import Path

from data_pipeline.cli_parser import Verbs, add_verb, positive


def add_cluster_verbs(verbs: Verbs) -> None:
    """Mount the verbs among those of `fovea`."""
    p = add_verb(
        verbs,
        "gate",
        _gate,
        "whether a stage reached its thresholds, or whether it may begin; code 3 where not",
        "fovea gate tiny --run runs/demo --stage instruct\n"
        "  fovea gate tiny --run runs/demo --before adapt --nproc 16",
    )
    p.add_argument("recipe", metavar="RECIPE", help="a YAML page, or the name of one that ships")
    p.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--stage", metavar="NAME", help="it is finished, and its evaluation reached its gate")
    which.add_argument("--before", metavar="NAME", help="all that it needs to begin is there")
    p.add_argument("--nproc", type=positive, default=1, metavar="N", help="ranks of --before (%(default)s)")
    p.add_argument("overrides", nargs="*", metavar="key=value")

    p = add_verb(
        verbs,
        "chain",
        _chain,
        "submit the stages as dependent Slurm jobs; again: only what is missing",
        "fovea chain tiny --run runs/demo --dry-run\n  fovea chain tiny --run runs/demo --nodes 4",
    )
    p.add_argument("recipe", metavar="RECIPE", help="a YAML page, or the name of one that ships")
    p.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory, seen by all nodes")
    p.add_argument("--nodes", type=positive, metavar="N", help="of a stage (default: as in its script)")
    p.add_argument("--curate", metavar="DATA_RECIPE", help="build the dataset first, by slurm/curate.sh")
    p.add_argument("--dry-run", action="store_true", help="show the graph and the commands; submit nothing")
    p.add_argument("overrides", nargs="*", metavar="key=value")


def _chain(args: argparse.Namespace) -> int:
    from trainer.chain import Settings, jobs_of, script_of
    from trainer.config import load_recipe
    from trainer.quiet import quiet_libraries

    recipe = load_recipe(args.recipe, args.overrides)
    settings = Settings(
        recipe=args.recipe,
        run=args.run,
        overrides=tuple(args.overrides),
        data_recipe=args.curate,
        nodes=args.nodes,
    )
    if args.dry_run:
        print("\n".join(script_of(jobs_of(recipe, settings), settings)))
        return 0
    quiet_libraries()
    from trainer.submission import Queue, advance

    for line in advance(recipe, settings, Queue(), os.environ):
        print(line, flush=True)
    return 0


def _gate(args: argparse.Namespace) -> int:
    from trainer.config import load_recipe
    from trainer.quiet import quiet_libraries

    recipe = load_recipe(args.recipe, args.overrides)
    stage = recipe.stage(args.stage or args.before)
    quiet_libraries()
    from trainer.run import finished_checkpoint
    from trainer.standing import refuse_below_gate, refuse_unready

    if args.before:
        refuse_unready(recipe, stage, args.run, args.nproc)
        print(f"{stage.name}: may begin, from {stage.init_from}")
        return 0
    found = finished_checkpoint(recipe, args.run, stage.name)
    reached = refuse_below_gate(stage, args.run, found)
    told = ", ".join(f"{metric} {score:.4g}" for metric, score in reached.items()) or "no gate"
    print(f"{stage.name}: finished at step {found.step}; {told}")
    return 0
