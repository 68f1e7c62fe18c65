"""From the graph of a chain to jobs: what is done, waits or runs is not submitted again."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainer.chain import Job, Settings, jobs_of
from trainer.config import Recipe
from trainer.engine.attempts import Attempt, refuse_held
from trainer.engine.checkpoint import Checkpoint
from trainer.scheduler import Queue, submitted
from trainer.standing import finished, is_evaluated, owner, refuse_below_gate, refuse_without_sources


def advance(recipe: Recipe, settings: Settings, queue: Queue, env: Mapping[str, str]) -> Iterator[str]:
    """Submit what is missing; a line for each job, as it is known.

    Raises PreflightError where an evaluation that is there is below its stage's gate, ConfigError where what
    is there is stale.
    """
    if not settings.data_recipe:
        refuse_without_sources(recipe, settings.run)
    numbers: dict[Job, str] = {}
    found: dict[str, Checkpoint | None] = {}
    for job in jobs_of(recipe, settings):
        if job.kind == "train":
            found[job.stage] = _finished(recipe, job.stage, settings.run)
        if _is_done(job, recipe, settings.run, found.get(job.stage)):
            yield f"{job.name:<20}done"
            continue
        number = queue.by_name.get(settings.job_name(job)) or _held(job, settings.run, queue)
        if number:
            yield f"{job.name:<20}job {number} is there"
        else:
            for need in job.needs:
                if need.kind == "evaluate" and need not in numbers and (before := found[need.stage]):
                    refuse_below_gate(recipe.stage(need.stage), settings.run, before)
            after = [numbers[n] for n in job.needs if n in numbers]
            number = submit(job, settings, after, env)
            yield f"{job.name:<20}job {number} submitted{', after ' + ', '.join(after) if after else ''}"
        numbers[job] = number


def _finished(recipe: Recipe, stage: str, run: Path) -> Checkpoint | None:
    """Without a dataset there is no fingerprint: a stage that never saved is asked for none."""
    begun = (run / stage / "checkpoints").is_dir()
    return finished(recipe, recipe.stage(stage), run) if begun else None


def _is_done(job: Job, recipe: Recipe, run: Path, found: Checkpoint | None) -> bool:
    """By what stands in the run directory. `found`: the verified last checkpoint of the job's stage."""
    match job.kind:
        case "curate":
            return all((run / d / "manifest.json").is_file() for d in recipe.data.datasets)
        case "train":
            return found is not None
        case "evaluate":
            return found is not None and is_evaluated(recipe.stage(job.stage), run, found)


def _held(job: Job, run: Path, queue: Queue) -> str | None:
    """The job that trains the stage already, under whatever name. Raises PreflightError where a process
    outside of Slurm does."""
    attempt = owner(run / job.stage) if job.kind == "train" else None
    if attempt and not attempt.job:
        refuse_held(run / job.stage, Attempt.here(recipe=""))
    return attempt.job if attempt and queue.has(attempt.job) else None


def submit(job: Job, settings: Settings, after: Sequence[str], env: Mapping[str, str]) -> str:
    """The number of the new job. Raises PreflightError with what sbatch says where it refuses."""
    (settings.run / "jobs").mkdir(parents=True, exist_ok=True)
    return submitted(settings.words(job, after), {**env, **settings.variables(job)}, job.name)
