"""`fovea plan`, `chain`, `gate`: what a recipe takes on a cluster; its stages, each behind a door."""

import argparse
import json
import os
from pathlib import Path

from data_pipeline.cli_parser import Verbs, add_verb, positive


def add_cluster_verbs(verbs: Verbs) -> None:
    """Mount the verbs among those of `fovea`."""
    p = add_verb(
        verbs,
        "plan",
        _plan,
        "what a recipe takes on a cluster: memory, time, disk, cost; code 3 where it does not fit",
        "fovea plan idefics2-8b --nodes 32 --gpus-per-node 8 --gpu h100\n"
        "  fovea plan align-900m --nodes 1 --gpus-per-node 4 --gpu a100 stages.align.micro_batch=8",
    )
    p.add_argument("recipe", metavar="RECIPE", help="a YAML page, or the name of one that ships")
    p.add_argument("--nodes", type=positive, required=True, metavar="N")
    p.add_argument("--gpus-per-node", type=positive, default=8, metavar="G", help="(%(default)s)")
    p.add_argument(
        "--gpu", required=True, metavar="NAME", help="a100, h100, h200, ...; another name lists all"
    )
    p.add_argument("--ds-config", metavar="NAME", help="of all stages, in place of the recipe's")
    p.add_argument(
        "--images-per-row", type=_not_negative, metavar="X", help="on the average (a quarter of a row)"
    )
    p.add_argument("--patches-per-image", type=positive, metavar="N", help="(those of the largest picture)")
    p.add_argument(
        "--mfu", type=_share, metavar="X", help="share of the peak that is attained while computing"
    )
    p.add_argument("--inter-node-gbps", type=_above_zero, metavar="X", help="Gbit/s of all of a node's cards")
    p.add_argument("--disk-gbps", type=_above_zero, metavar="X", help="Gbit/s of the disk for checkpoints")
    p.add_argument(
        "--price", type=_not_negative, metavar="X", help="of a GPU-hour; without it no cost is told"
    )
    p.add_argument("--json", action="store_true", help="one object with everything, in place of the page")
    p.add_argument("overrides", nargs="*", metavar="key=value")

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
    which.add_argument(
        "--after",
        metavar="NAME",
        help="in a job whose ranks were killed: how its attempt ended; code 75 where the job may try again",
    )
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


def _plan(args: argparse.Namespace) -> int:
    from trainer.config import load_recipe
    from trainer.planning.hardware import gpu_named
    from trainer.quiet import quiet_libraries

    recipe, gpu = load_recipe(args.recipe, args.overrides), gpu_named(args.gpu)
    quiet_libraries()
    from trainer.planning.advice import advice
    from trainer.planning.hardware import Assumed, Attained, Cluster
    from trainer.planning.pages import lines
    from trainer.planning.plan import Asked, plan_of
    from trainer.planning.record import Prices, record

    network = args.inter_node_gbps or gpu.network * args.gpus_per_node
    asked = Asked(
        cluster=Cluster(gpu, args.nodes, args.gpus_per_node, network),
        assumed=Assumed(Attained.all(args.mfu)) if args.mfu else Assumed(),
        images=args.images_per_row,
        patches=args.patches_per_image,
        ds_config=args.ds_config,
    )
    plan = plan_of(recipe, asked)
    told, prices = advice(plan), Prices(args.price, args.disk_gbps)
    if args.json:
        print(json.dumps(record(plan, told, prices), indent=1))
    else:
        print("\n".join(lines(plan, told, prices)))
    return 0 if plan.fits else 3


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
    from trainer.scheduler import Queue
    from trainer.submission import advance

    queue = Queue(or_else="; --dry-run shows the jobs on any machine")
    for line in advance(recipe, settings, queue, os.environ):
        print(line, flush=True)
    return 0


def _gate(args: argparse.Namespace) -> int:
    from trainer.config import load_recipe
    from trainer.quiet import quiet_libraries

    recipe = load_recipe(args.recipe, args.overrides)
    stage = recipe.stage(args.stage or args.before or args.after)
    quiet_libraries()
    from trainer.run import finished_checkpoint
    from trainer.standing import code_of_lost_job, refuse_below_gate, refuse_unready

    if args.after:
        code = code_of_lost_job(args.run / stage.name)
        print(f"{stage.name}: the attempt of this job ended with code {code}", flush=True)
        return code
    if args.before:
        refuse_unready(recipe, stage, args.run, args.nproc)
        print(f"{stage.name}: may begin, from {stage.init_from}")
        return 0
    found = finished_checkpoint(recipe, args.run, stage.name)
    reached = refuse_below_gate(stage, args.run, found)
    told = ", ".join(f"{metric} {score:.4g}" for metric, score in reached.items()) or "no gate"
    print(f"{stage.name}: finished at step {found.step}; {told}")
    return 0


def _above_zero(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def _not_negative(text: str) -> float:
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 on")
    return value


def _share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0, up to 1")
    return value
