"""The stages of a recipe as dependent Slurm jobs: the graph, and the command that submits each.

align ─▶ pretrain ─▶ ...          each stage after the one that it starts from;
  └─▶ evaluate align              where that one has a gate, after its evaluation, which ends with code 3
                                  below a threshold: Slurm then cancels what waits for it
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import ConfigError
from trainer.config import Recipe
from trainer.scheduler import mark_of

SCRIPTS = Path(__file__).parents[1] / "slurm"
"""Of the checkout that this module stands in."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of the chain. `needs`: the jobs that must have ended well before it starts."""

    kind: Literal["curate", "train", "evaluate"]
    stage: str
    script: str
    needs: tuple["Job", ...] = ()

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.kind if self.kind != "train" else "", self.stage)))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the jobs are given. `nodes`: of a stage; None leaves it to the script."""

    recipe: str
    run: Path
    overrides: tuple[str, ...] = ()
    data_recipe: str | None = None
    nodes: int | None = None
    scripts: Path = SCRIPTS

    def job_name(self, job: Job) -> str:
        """The same for every command about this run directory, so that a job is found again."""
        return f"fovea-{job.name.replace(' ', '-')}-{mark_of(self.run)}"

    def variables(self, job: Job) -> dict[str, str]:
        page = Path(self.recipe)
        found = {"RECIPE": str(page.resolve()) if page.is_file() else self.recipe}
        found |= {"RUN": str(self.run.resolve()), "FOVEA_SLURM": str(self.scripts)}
        if job.kind == "evaluate":
            found["STAGE"] = job.stage
        if job.kind == "curate":
            found["DATA_RECIPE"] = self.data_recipe or ""
        return found

    def words(self, job: Job, after: Sequence[str]) -> list[str]:
        """The command that submits it, behind the jobs of those numbers."""
        words = ["sbatch", "--parsable", f"--job-name={self.job_name(job)}"]
        words += [f"--output={self.run.resolve() / 'jobs' / '%x-%j.out'}"]
        words += [f"--nodes={self.nodes}"] if self.nodes and job.kind == "train" else []
        if after:
            words += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
        overrides = self.overrides if job.kind != "curate" else ()
        return [*words, str(self.scripts / job.script), *overrides]


def jobs_of(recipe: Recipe, settings: Settings) -> list[Job]:
    """The graph, each job behind those that it needs. Raises ConfigError where a stage has no script."""
    curate = Job(kind="curate", stage="", script="curate.sh")
    jobs = [curate] if settings.data_recipe else []
    ends: dict[str, tuple[Job, ...]] = {"backbones": tuple(jobs)}
    for number, stage in enumerate(recipe.stages, 1):
        script = f"stage{number}.sh"
        if not (settings.scripts / script).is_file():
            raise ConfigError(
                f"{settings.scripts} has no {script}, and the recipe has {len(recipe.stages)} stages.\n"
                f"  Run the chain from a checkout; for a further stage copy stage4.sh and change its number."
            )
        train = Job(kind="train", stage=stage.name, script=script, needs=ends[stage.init_from])
        evaluate = Job(kind="evaluate", stage=stage.name, script="eval.sh", needs=(train,))
        jobs += [train, evaluate]
        ends[stage.name] = (evaluate if stage.gate else train,)
    return jobs


def script_of(jobs: Sequence[Job], settings: Settings) -> Iterator[str]:
    """The graph and the commands that submit all of it, as a shell would run them."""
    for job in jobs:
        behind = f"  after {', '.join(n.name for n in job.needs)}" if job.needs else ""
        yield f"# {job.name:<20}{job.script}{behind}"
    yield f"mkdir -p {shlex.quote(str(settings.run.resolve() / 'jobs'))}"
    for job in jobs:
        given = " ".join(f"{k}={shlex.quote(v)}" for k, v in settings.variables(job).items())
        # Numbers are variables of that shell: no quotes around them.
        after = settings.words(job, [f"${_variable(n)}" for n in job.needs])
        words = (w if w.startswith("--dependency=") else shlex.quote(w) for w in after)
        yield f"{_variable(job)}=$({given} {' '.join(words)})"


def _variable(job: Job) -> str:
    return re.sub(r"\W", "_", job.name.lower())
