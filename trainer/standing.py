"""What stands in a run directory: whether a stage may begin, is done, and reached what its `gate` asks."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from data_pipeline.errors import ConfigError, PreflightError, TransientError
from data_pipeline.manifest import sha256_file, write_json
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import Recipe, Stage
from trainer.engine import checkpoint
from trainer.engine.attempts import Attempt, attempts_dir, refuse_held
from trainer.engine.requests import refuse_stop_file
from trainer.evaluation.thresholds import scores_of, unmet
from trainer.run import ORIGIN, changes, fingerprints_of, finished_checkpoint
from trainer.scheduler import is_known
from trainer.stage_stream import open_datasets

KILLED = 137
"""What a shell makes of SIGKILL: noted for an owner that could not say how it ended."""


def refuse_unready(recipe: Recipe, stage: Stage, run_dir: Path, ranks: int) -> None:
    """Raises PreflightError, ConfigError or DataError where the stage could not begin on so many ranks.

    All that can be said without one: the ranks, the data, the backbones, who holds the stage, and that the
    stage before is finished, whole, and past its gate.
    """
    stage.accumulation(ranks)
    refuse_without_sources(recipe, run_dir)
    refuse_stop_file(run_dir / stage.name)
    note_gone(run_dir / stage.name)
    refuse_held(run_dir / stage.name, Attempt.here(recipe=""))
    if stage.init_from != "backbones":
        before = recipe.stage(stage.init_from)
        refuse_below_gate(before, run_dir, finished_checkpoint(recipe, run_dir, before.name))


def refuse_without_sources(recipe: Recipe, run_dir: Path) -> None:
    """Raises DataError where a dataset is not there, PreflightError where a backbone is not."""
    open_datasets(recipe, run_dir)
    backbones = run_dir / recipe.backbones.path
    if missing := [d for d in ("vision", "language", "tokenizer") if not (backbones / d).is_dir()]:
        raise PreflightError(
            f"{backbones} has no {' and no '.join(missing)}.\n"
            f"  Make them:  fovea backbones RECIPE --run {run_dir}   or take others:  fovea import"
        )


def finished(recipe: Recipe, stage: Stage, run_dir: Path) -> checkpoint.Checkpoint | None:
    """The stage's last checkpoint, verified; None where the stage is not finished.

    Raises ConfigError where what stands there is of another recipe or other data, or was trained from
    another checkpoint of the earlier stage than there is now.
    """
    found, _ = checkpoint.newest(run_dir / stage.name)
    if found is None:
        return None
    tokenizer = Tokenizer.load(run_dir / recipe.backbones.path / "tokenizer")
    ours = fingerprints_of(recipe, stage, open_datasets(recipe, run_dir), tokenizer)
    differ = changes(found.fingerprints, ours)
    origin = run_dir / stage.name / ORIGIN
    if stage.init_from != "backbones" and origin.is_file():
        before = recipe.stage(stage.init_from)
        last = checkpoint.directory_of(run_dir / before.name, before.steps) / checkpoint.COMPLETE
        now = sha256_file(last) if last.is_file() else None
        if json.loads(origin.read_text(encoding="utf-8"))["checkpoint"] != now:
            differ.append(f"init_from: another checkpoint of '{stage.init_from}' than there is now")
    if differ:
        raise ConfigError(
            f"{found.path} is stale:\n  " + "\n  ".join(differ) + "\n"
            f"  Train the stage anew:  mv {run_dir / stage.name} {run_dir / stage.name}.old\n"
            "  or undo the change, or take another --run directory."
        )
    return found if found.step == stage.steps else None


def digest_of(found: checkpoint.Checkpoint) -> str:
    """As evaluations record it."""
    return sha256_file(found.path / checkpoint.COMPLETE)


def is_evaluated(stage: Stage, run_dir: Path, found: checkpoint.Checkpoint) -> bool:
    """Whether an evaluation of this very checkpoint is there, with all that the stage's gate asks for."""
    scores = scores_of(run_dir / stage.name / "eval" / found.path.name, digest_of(found))
    return bool(scores) and stage.gate.keys() <= scores.keys()


def owner(stage_dir: Path) -> Attempt | None:
    """The newest attempt at the stage, where it did not say how it ended."""
    newest = max(attempts_dir(stage_dir).glob("[0-9]*.json"), default=None)
    attempt = Attempt.read(newest) if newest else None
    return attempt if attempt and attempt.ended is None else None


def note_gone(stage_dir: Path) -> None:
    """Where the owner is another job of ours that Slurm no longer knows, note that it was killed: its stage
    is free at once, and not only when its heartbeat has been missed for long."""
    attempt = owner(stage_dir)
    if attempt is None or attempt.job in ("", os.environ.get("SLURM_JOB_ID")):
        return
    record = max(attempts_dir(stage_dir).glob("[0-9]*.json"))
    if record.stat().st_uid == os.getuid() and is_known(attempt.job) is False:
        write_json(record, asdict(replace(attempt, ended=KILLED)))


def code_of_lost_job(stage_dir: Path) -> int:
    """The exit code for a job that lost a rank, by the attempt that it made; its ranks are gone by now.

    That is what the main rank said. Raises TransientError where it was killed, which is noted, and
    PreflightError where this run of the job came to no attempt: nobody would count how often it begins.
    """
    newest = max(attempts_dir(stage_dir).glob("[0-9]*.json"), default=None)
    attempt, me = Attempt.read(newest) if newest else None, Attempt.here(recipe="")
    if newest is None or attempt is None or (attempt.job, attempt.requeued) != (me.job, me.requeued):
        raise PreflightError(
            f"the ranks ended before they had begun with {stage_dir}: what ended them stands above.\n"
            "  Mend it, and submit the job again."
        )
    if attempt.ended is None:
        write_json(newest, asdict(replace(attempt, ended=KILLED)))
    if attempt.ended in (None, KILLED):
        raise TransientError(
            f"the main rank of {stage_dir} was killed.\n"
            "  The same job goes on from the newest verified checkpoint."
        )
    return attempt.ended


def refuse_below_gate(stage: Stage, run_dir: Path, found: checkpoint.Checkpoint) -> dict[str, float]:
    """The scores that the stage's gate asks for. Raises PreflightError where one is missing or too low."""
    results = run_dir / stage.name / "eval" / found.path.name
    scores = scores_of(results, digest_of(found))
    if lines := list(unmet(stage.gate, scores)):
        raise PreflightError(
            f"stage '{stage.name}' does not reach its gate at step {found.step}:\n"
            + "".join(f"  {line}\n" for line in lines)
            + (
                f"  Evaluate it first:  fovea eval {run_dir / stage.name}"
                if not scores
                else f"  The scores stand in {results}; what comes after this stage is not started.\n"
                f"  Train it better, or lower stages.{stage.name}.gate in the recipe."
            )
        )
    return {metric: scores[metric] for metric in stage.gate}
