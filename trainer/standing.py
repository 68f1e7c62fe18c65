"""What stands in a run directory: whether a stage may begin, is done, and reached what its `gate` asks."""

from pathlib import Path

from data_pipeline.errors import PreflightError
from data_pipeline.manifest import sha256_file
from trainer.config import Recipe, Stage
from trainer.engine import checkpoint
from trainer.engine.attempts import Attempt, refuse_held
from trainer.engine.requests import refuse_stop_file
from trainer.evaluation.thresholds import scores_of, unmet
from trainer.run import finished_checkpoint
from trainer.stage_stream import open_datasets


def refuse_unready(recipe: Recipe, stage: Stage, run_dir: Path, ranks: int) -> None:
    """Raises PreflightError, ConfigError or DataError where the stage could not begin on so many ranks.

    All that can be said without one: the ranks, the data, the backbones, who holds the stage, and that the
    stage before is finished, whole, and past its gate.
    """
    stage.accumulation(ranks)
    open_datasets(recipe, run_dir)
    backbones = run_dir / recipe.backbones.path
    if missing := [d for d in ("vision", "language", "tokenizer") if not (backbones / d).is_dir()]:
        raise PreflightError(
            f"{backbones} has no {' and no '.join(missing)}.\n"
            f"  Make them:  fovea backbones RECIPE --run {run_dir}   or take others:  fovea import"
        )
    refuse_stop_file(run_dir / stage.name)
    refuse_held(run_dir / stage.name, Attempt.here(recipe=""))
    if stage.init_from != "backbones":
        before = recipe.stage(stage.init_from)
        refuse_below_gate(before, run_dir, finished_checkpoint(recipe, run_dir, before.name))


def refuse_below_gate(stage: Stage, run_dir: Path, found: checkpoint.Checkpoint) -> dict[str, float]:
    """The scores that the stage's gate asks for. Raises PreflightError where one is missing or too low."""
    results = run_dir / stage.name / "eval" / found.path.name
    scores = scores_of(results, sha256_file(found.path / checkpoint.COMPLETE))
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
