"""Running the tasks of a pipeline as one Slurm array, by datatrove's own executor for Slurm.

The command that started the build stays and waits, as it does for local workers: later steps need all
tasks. If it is killed, the array goes on; the same command finds it and waits for it again.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datatrove.executor.slurm import SlurmPipelineExecutor
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.build.executor import After, Job, Judged
from data_pipeline.errors import ConfigError, PreflightError, TransientError
from data_pipeline.manifest import write_json

_SUBMITTED = "slurm_job.json"
_MAX_ARRAY = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)
_OVER = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
)
_NEEDED = ("sbatch", "squeue", "scontrol")


class SlurmConfig(BaseModel):
    """What the cluster asks for. `--slurm KEY=VALUE` on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str = Field(min_length=1, pattern=r"^[\w.,-]+$")
    time: str = Field("04:00:00", pattern=r"^[\d:-]+$", description="limit of one array element")
    cpus: int = Field(1, ge=1, description="per task")
    mem_gb: int = Field(2, ge=1, description="per cpu; a task needs under 1 GiB")
    max_running: int = Field(-1, ge=-1, description="array elements at once; -1: as many as the cluster runs")
    qos: str | None = Field(None, pattern=r"^[\w.-]+$")
    account: str | None = Field(None, pattern=r"^[\w.-]+$")
    poll_s: float = Field(5.0, gt=0, description="seconds between looks at the queue")


def slurm_config(settings: Sequence[str]) -> SlurmConfig:
    """From `key=value` texts. Raises ConfigError with every mistake."""
    pairs = dict(s.partition("=")[::2] for s in settings)
    try:
        return SlurmConfig.model_validate(pairs)
    except ValidationError as e:
        allowed = ", ".join(SlurmConfig.model_fields)
        wrong = "\n".join(f"  {'.'.join(map(str, x['loc']))}: {x['msg']}" for x in e.errors())
        raise ConfigError(f"--slurm KEY=VALUE:\n{wrong}\n  Keys: {allowed}") from None


class _Array(Judged, SlurmPipelineExecutor):
    """One array for all ranks that are left, whatever MaxArraySize is: an element runs several in turn."""

    def __init__(self, job: Job, config: SlurmConfig, elements: int):
        left = len(job.left())
        super().__init__(
            list(job.pipeline),
            tasks=job.tasks,
            time=config.time,
            partition=config.partition,
            cpus_per_task=config.cpus,
            mem_per_cpu_gb=config.mem_gb,
            workers=config.max_running,
            job_name=job.name,
            qos=config.qos,
            # The tasks run in the very environment that submits them.
            env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
            sbatch_args={"account": config.account} if config.account else {},
            logging_dir=str(job.logs),
            tasks_per_job=math.ceil(left / elements),
        )
        self.job = job

    def launch_merge_stats(self) -> None:
        """Nothing reads datatrove's statistics: the tasks' own records hold the counts."""


@dataclass(frozen=True)
class SlurmExecutor:
    """Submits one array and waits until it has left the queue. Every node must see the dataset."""

    config: SlurmConfig

    def run(self, job: Job, after: After = lambda done: None) -> None:
        """Raises PreflightError where there is no Slurm or it refuses the job; TransientError where array
        elements ended with tasks undone."""
        _check_commands()
        if not job.left():
            return
        # The pickled pipeline in it is executed by every task: nobody else may write here.
        job.logs.mkdir(parents=True, exist_ok=True)
        job.logs.chmod(0o700)
        job_id = _running(job.logs) or self._submit(job)
        while _in_queue(job_id, unanswered=True):
            after(job.tasks - len(job.left()))
            time.sleep(self.config.poll_s)
        # A shared file system may show a record some time after the job that wrote it has ended.
        for _ in range(5):
            if not job.left():
                break
            time.sleep(self.config.poll_s)
        left = job.left()
        after(job.tasks - len(left))
        if left:
            raise TransientError(
                f"Slurm job {job_id} ended with {len(left)} of {job.tasks} tasks undone, "
                f"task {left[0]} the first.\n"
                f"{_last_lines(job.logs)}\n  What is done is kept: repeat the same command"
            )

    def _submit(self, job: Job) -> str:
        array = _Array(job, self.config, _max_array_size() - 1)
        try:
            array.launch_job()
        except subprocess.CalledProcessError as e:
            raise PreflightError(
                f"sbatch refused the job (exit code {e.returncode}); its reason stands above.\n"
                f"  Asked for: {self.config.model_dump(exclude_none=True)}; change it with --slurm KEY=VALUE"
            ) from None
        write_json(job.logs / _SUBMITTED, {"job_id": array.job_id})
        return str(array.job_id)


def array_at_work(directory: Path) -> tuple[str, Path] | None:
    """The job of an earlier command that still works on the dataset, with the folder of its logs."""
    if shutil.which("squeue") is None:
        return None
    for noted in sorted(directory.glob(f"logs/*/{_SUBMITTED}")):
        if job_id := _running(noted.parent):
            return job_id, noted.parent
    return None


def _check_commands() -> None:
    if missing := [c for c in _NEEDED if shutil.which(c) is None]:
        raise PreflightError(
            f"--executor slurm needs {', '.join(missing)}, not on this machine's PATH.\n"
            "  Run it on a login node, or without --executor slurm"
        )
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise PreflightError(
            "a build cannot be submitted from inside an array job: its tasks would take this one's number.\n"
            "  Submit it from a login node or from an ordinary job"
        )


def _running(logs: Path) -> str | None:
    """The array that an earlier command submitted for this job, if it is still in the queue."""
    try:
        job_id = str(json.loads((logs / _SUBMITTED).read_text())["job_id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return job_id if job_id.isdigit() and _in_queue(job_id, unanswered=False) else None


def _in_queue(job_id: str, *, unanswered: bool) -> bool:
    """Whether any element waits or runs. squeue knows a finished job for some minutes, then no more.

    `unanswered`: what to think while the controller does not answer, as when it is restarted.
    """
    found = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}", "--states=all"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        return unanswered and "Invalid job id" not in found.stderr
    return any(state not in _OVER for state in found.stdout.split())


def _max_array_size() -> int:
    found = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    size = _MAX_ARRAY.search(found.stdout)
    return max(int(size.group(1)) if size else 1001, 2)


def _last_lines(logs: Path) -> str:
    """The end of the newest log of an array element: usually the reason stands there."""
    files = sorted((logs / "slurm_logs").glob("*.out"), key=lambda p: p.stat().st_mtime)
    if not files:
        return f"  no log in {logs / 'slurm_logs'}: the job did not start. See: sacct, scontrol show job"
    lines = files[-1].read_text(errors="replace").splitlines()[-8:]
    return f"  end of {files[-1]}:\n" + "\n".join(f"    {line}" for line in lines)
