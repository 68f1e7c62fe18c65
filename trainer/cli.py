"""`fovea`: thin verbs. What a verb needs is imported inside it, so `fovea --help` loads no torch."""

import argparse
import contextlib
import hashlib
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data_pipeline.cli import add_parser as add_data_parser
from data_pipeline.cli_parser import IntermixedParser, Verbs, add_verb, natural
from data_pipeline.errors import ConfigError, FoveaError, refusal
from trainer.cli_cluster import add_cluster_verbs
from trainer.cli_doctor import add_doctor_verb
from trainer.cli_eval import add_eval_verbs
from trainer.cli_model import add_model_verb
from trainer.cli_observe import add_observe_verbs, add_profile_option, profiled, refuse_profile
from trainer.cli_stream import add_stream_verbs
from trainer.evaluation.score import add_parser as add_score_parser
from trainer.launch import end_with_launcher, is_rank, launch, report_error
from trainer.mounts import refuse_dead_mounts
from trainer.quiet import quiet_libraries
from trainer.slurm import rank_variables

if TYPE_CHECKING:
    from trainer.config import Recipe, Stage


def main(argv: list[str] | None = None) -> int:
    """Run one verb; errors whose fix is the user's are printed as text and become the exit code."""
    # DeepSpeed looks for an accelerator when it is imported; a machine without one says so here.
    if "DS_ACCELERATOR" not in os.environ and not Path("/dev/nvidiactl").exists():
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no weights or data from a hub at run time
    os.environ.update(rank_variables(os.environ))
    args = _parser().parse_args(argv)
    verb: Callable[[argparse.Namespace], int] = args.run_verb
    try:
        return verb(args)
    except FoveaError as e:
        report_error(e)
        return e.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stdout = None
        return 0
    except (OSError, sqlite3.Error) as e:
        if is_rank() or (refused := refusal(e)) is None:  # of a rank the traceback says more
            raise
        report_error(refused)
        return refused.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("fovea: interrupted; the same command resumes\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fovea",
        description="Train vision-language models: from raw documents to an evaluated, exported model.",
        epilog="Start with:  fovea demo --fast",
    )
    verbs: Verbs = parser.add_subparsers(
        title="verbs", metavar="VERB", required=True, parser_class=IntermixedParser
    )

    p = add_verb(
        verbs,
        "demo",
        _demo,
        "the whole road on this machine, in minutes",
        "fovea demo --out runs/demo\n  fovea demo --data my_documents --out runs/mine",
    )
    p.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="run directory (%(default)s)"
    )
    p.add_argument("--fast", action="store_true", help="the same road with less data and fewer steps")
    p.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="a folder of your documents: HTML, crawls, PDF, captions, questions, rows",
    )
    p.add_argument(
        "--scenes-weight",
        type=float,
        default=0.0,
        metavar="W",
        help="with --data: share of generated scenes beside the documents, 0 to 1 (%(default)s)",
    )
    p.add_argument(
        "--bad-inputs",
        choices=("stop", "drop"),
        default="stop",
        help="with --data: stop at files that cannot be read, or drop and count them (%(default)s)",
    )
    p.add_argument("--nproc", type=int, default=2, metavar="N", help="ranks (%(default)s)")

    add_stream_verbs(add_data_parser(verbs))

    p = add_verb(
        verbs,
        "backbones",
        _backbones,
        "train a tokenizer and small backbones for a recipe",
        "fovea backbones tiny --run runs/demo",
    )
    p.add_argument("recipe", metavar="RECIPE")
    p.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")
    p.add_argument(
        "--scenes",
        type=Path,
        metavar="DIR",
        help="dataset whose samples carry objects, for the tower (default: the recipe's dataset)",
    )
    p.add_argument("overrides", nargs="*", metavar="key=value")

    p = add_verb(
        verbs,
        "import",
        _import,
        "backbones from a directory in Idefics2's Hugging Face layout",
        "fovea import idefics2-8b runs/mine/backbones",
    )
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument("out", type=Path, metavar="OUT")

    add_model_verb(verbs)

    p = add_verb(
        verbs,
        "train",
        _train,
        "train one stage; the same command resumes it",
        "fovea train tiny --stage align --run runs/demo --nproc 2 stages.align.lr=5e-4",
    )
    p.add_argument("recipe", metavar="RECIPE", help="a YAML page, or the name of one that ships")
    p.add_argument("--stage", required=True, metavar="NAME")
    p.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")
    p.add_argument(
        "--nproc",
        type=int,
        default=1,
        metavar="N",
        help="ranks to start here (%(default)s); under torchrun they come from it",
    )
    p.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="resume although the dataset is another one than before; its order begins anew",
    )
    p.add_argument(
        "--time-limit",
        metavar="HH:MM:SS",
        help="save and end with code 75 before so much time is over; also seconds (Slurm's end of the job)",
    )
    add_profile_option(p)
    p.add_argument("--faults", default="", help=argparse.SUPPRESS)  # docs/reliability.md
    p.add_argument("overrides", nargs="*", metavar="key=value")

    add_cluster_verbs(verbs)
    add_doctor_verb(verbs)
    add_eval_verbs(verbs)
    add_score_parser(verbs)

    p = add_verb(
        verbs,
        "export",
        _export,
        "a model directory, reopened and compared before it is called done",
        "fovea export runs/demo/adapt exported",
    )
    p.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument(
        "--to",
        choices=("fovea", "idefics2"),
        default="fovea",
        help="fovea: our own format; idefics2: what plain transformers loads (%(default)s)",
    )
    p.add_argument(
        "--adapters",
        type=Path,
        metavar="DIR2",
        help="with --to idefics2: LoRA or DoRA into DIR2, in PEFT's layout, not merged into DIR",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write what was exported and compared there")

    p = add_verb(
        verbs,
        "serve",
        _serve,
        "a checkpoint behind an OpenAI-compatible endpoint, on this machine only",
        "fovea serve runs/demo/adapt --port 8000",
    )
    p.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a stage or a checkpoint of a run, an exported directory, or one in Idefics2's layout",
    )
    p.add_argument("--port", type=natural, default=8000, metavar="N", help="0: any free one (%(default)s)")

    add_observe_verbs(verbs)
    return parser


def _serve(args: argparse.Namespace) -> int:
    from trainer.chat import Chat
    from trainer.serve import serving

    with serving(Chat.open(args.checkpoint), args.port) as url:
        print(f"{url}\n  end it with Ctrl-C", flush=True)
        threading.Event().wait()
    return 0


def _demo(args: argparse.Namespace) -> int:
    from trainer.demo import demo

    demo(
        out=args.out,
        fast=args.fast,
        data=args.data,
        scenes_weight=args.scenes_weight,
        bad_inputs=args.bad_inputs,
        nproc=args.nproc,
    )
    return 0


def _backbones(args: argparse.Namespace) -> int:
    from trainer.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    quiet_libraries()
    from trainer.backbones import make_backbones

    texts = [args.run / d for d in recipe.data.datasets]
    reached = make_backbones(recipe, args.run / recipe.backbones.path, texts, args.scenes or texts[0])
    print(json.dumps(reached))
    return 0


def _import(args: argparse.Namespace) -> int:
    quiet_libraries()
    from trainer.export.importing import import_idefics2

    about = import_idefics2(args.directory, args.out)
    print(
        f"imported {about['directory']} to {args.out}: {about['parameters']:,} parameters, "
        f"{about['tensors']} tensors; the recipe's model stands in {args.out / 'model.yaml'}"
    )
    return 0


def _train(args: argparse.Namespace) -> int:
    from trainer.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    stage = recipe.stage(args.stage)
    refuse_profile(args.profile, stage)
    if args.run.exists() and not args.run.is_dir():
        raise ConfigError(f"--run {args.run}: a file stands there; name a directory.")
    parts = (*recipe.data.datasets, recipe.backbones.path)
    refuse_dead_mounts([args.run, *(args.run / part for part in parts)])  # a node may have its own dead mount
    return _train_rank(args, recipe, stage) if is_rank() else _train_all(args, recipe, stage)


def _train_all(args: argparse.Namespace, recipe: "Recipe", stage: "Stage") -> int:
    """Start the ranks; what can be refused without them is refused here, before torch is imported."""
    if args.nproc < 1:
        raise ConfigError(f"--nproc {args.nproc}: at least 1 rank is needed")
    from trainer.engine.attempts import Attempt, note_end, refuse_held
    from trainer.engine.ds_config import read_ds_config
    from trainer.engine.faults import parse_faults
    from trainer.engine.requests import parse_limit, refuse_stop_file
    from trainer.engine.watchdog import death
    from trainer.evaluation.task import tasks_of
    from trainer.observe.trackers import chosen
    from trainer.stage_stream import open_datasets

    stage.accumulation(args.nproc)
    read_ds_config(stage.ds_config, args.nproc)
    chosen(recipe.observe.trackers)
    every = stage.checkpoint_every
    parse_faults(args.faults, ranks=args.nproc, steps=stage.steps, checkpoint_every=every)
    open_datasets(recipe, args.run)
    if stage.evaluate and (suite := recipe.suite(stage.evaluate.suite)):
        tasks_of(suite, args.run)
    stage_dir = args.run / stage.name
    refuse_stop_file(stage_dir)
    refuse_held(stage_dir, Attempt.here(_trained(recipe, stage, args.nproc)))
    argv = ["train", str(args.recipe), "--stage", stage.name, "--run", str(args.run), *args.overrides]
    argv += ["--accept-changed-data"] if args.accept_changed_data else []
    argv += ["--faults", args.faults] if args.faults else []
    argv += ["--profile", "{}:{}".format(*args.profile)] if args.profile else []
    if args.time_limit:
        parse_limit(args.time_limit)
        argv += ["--time-limit", args.time_limit]
    try:
        launch(argv, args.nproc, partial(death, stage_dir))
    except FoveaError as e:
        with contextlib.suppress(OSError):  # of a disk that is full, or may not be written to
            note_end(stage_dir, os.getpid(), e.exit_code)
        raise
    return 0


def _train_rank(args: argparse.Namespace, recipe: "Recipe", stage: "Stage") -> NoReturn:
    from trainer.engine.faults import parse_faults
    from trainer.engine.requests import Requests, deadline_of, stop_files

    stage_dir = args.run / stage.name
    watched = stop_files(stage_dir) if os.environ["RANK"] == "0" else ()
    requests = Requests(deadline_of(args.time_limit, time.time(), time.monotonic()), watched)
    requests.listen()
    end_with_launcher()
    quiet_libraries()
    from trainer.distributed import end_rank, init_world, lost_peers_are_transient
    from trainer.engine.oversight import owned
    from trainer.engine.watchdog import UNWATCHED_S
    from trainer.loop import train
    from trainer.models.freeze import describe
    from trainer.run import build_run

    world = init_world(stage.watchdog.collective_s, meet_s=UNWATCHED_S)
    trained, every = _trained(recipe, stage, world.size), stage.checkpoint_every
    faults = parse_faults(args.faults, ranks=world.size, steps=stage.steps, checkpoint_every=every)
    try:
        with (
            lost_peers_are_transient(world),
            owned(world, stage_dir, trained, requests, faults, stage.watchdog) as oversight,
        ):
            run = build_run(recipe, stage, args.run, world, accept_changed_data=args.accept_changed_data)
            if world.is_main:
                start = run.state.step
                again = f"; {run.lost} steps of before are trained again" if run.lost else ""
                if start == stage.steps:
                    print(f"{stage.name}: finished already, at step {start}")
                elif start:
                    print(f"{stage.name}: resuming after step {start}{again}")
                else:
                    print("\n".join(describe(run.parameters)))
                    if again:
                        print(f"{stage.name}: no checkpoint to resume from{again}")
            run.sinks.extend(profiled(args.profile, run))
            train(run, oversight)
            run.stream.close()
    except FoveaError as e:
        requests.end()
        if requests.abandoned:  # the interpreter's end would wait for the thread that waits for data
            report_error(e)
            sys.stdout.flush()
            os._exit(e.exit_code)
        raise
    requests.end()
    end_rank()


def _trained(recipe: "Recipe", stage: "Stage", ranks: int) -> str:
    """A digest of what an attempt trains: another one is a new beginning."""
    page = [part.model_dump(mode="json") for part in (recipe.model, recipe.data, stage)]
    return hashlib.sha256(json.dumps([recipe.seed, ranks, page], sort_keys=True).encode()).hexdigest()


def _export(args: argparse.Namespace) -> int:
    quiet_libraries()
    from trainer.reading import reading
    from trainer.trained import export_trained, open_trained

    with reading(args.checkpoint):
        about = export_trained(open_trained(args.checkpoint), args.directory, args.to, args.adapters)
    if args.json:
        from data_pipeline.manifest import write_json

        write_json(args.json, about)
    print(
        f"exported {about['checkpoint']} to {args.directory}: {about['parameters']:,} parameters, "
        f"{about['tensors']} tensors, largest logit difference {about['max_logit_diff']:g}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
