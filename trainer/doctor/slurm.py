"""What Slurm will do with the job: its time, its signal before the end, whether it may be queued again."""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from trainer.config import Recipe
from trainer.doctor.finding import Finding
from trainer.engine.attempts import last_save_s

_ASKED_S = 10
_SAVES = 2
"""So many saves must fit between the signal and the end: one may be on its way when the signal comes."""

_SCRIPTS = "stage*.sh"
_SIGNAL = re.compile(r"--signal[= ]((?:[A-Z]+:)?)\w+@(\d+)")


def job_and_cluster(recipe: Recipe | None, run: Path) -> Iterator[Finding]:
    """The job that this runs in, and the scripts that it would be submitted by."""
    saves = saves_s(recipe, run)
    if not shutil.which("scontrol"):
        yield Finding("slurm", "skipped", "no scontrol on PATH: no Slurm here")
        return
    job = os.environ.get("SLURM_JOB_ID")
    config = parse(_scontrol("show", "config", check=job is not None), r"^(\w+)\s*=\s(.*?)\s*$")
    if not config:
        yield Finding("slurm", "skipped", "scontrol is here, and no controller answers it")
        return
    yield from kill_wait(config, saves)
    if job:
        about = parse(_scontrol("show", "job", "--oneliner", job), r"(\w+)=(\S*)")
        yield time_left(about, datetime.now())
    else:
        yield Finding("time left", "skipped", "no job here")
    found = scripts(job)
    if not found:
        said = f"neither {_folder()}/{_SCRIPTS} nor a script of this job is here"
        yield Finding("job scripts", "skipped", said)
    requeued = config.get("JobRequeue", "1") == "1"
    faults = [f for name, text in found.items() for f in script_faults(name, text, saves, requeued)]
    yield from faults
    if found and not faults:
        which = next(iter(found)) + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        told = f"queued again, told {soonest(found.values())} s before the end"
        yield Finding("job scripts", "ok", f"{which}: {told}; {_measured(saves)}")


def scripts(job: str | None) -> dict[str, str]:
    """Those that would train: of the checkout, or else that of the job that this runs in."""
    found = {str(p): p.read_text(encoding="utf-8") for p in sorted(_folder().glob(_SCRIPTS))}
    if found or job is None:
        return found
    own = _scontrol("write", "batch_script", job, "-", check=False)
    return {f"job {job}": own} if own.strip() else {}


def _folder() -> Path:
    return Path(os.environ.get("FOVEA_SLURM", "slurm"))


def saves_s(recipe: Recipe | None, run: Path) -> float | None:
    """What a checkpoint took to save, the longest of all stages; None where none was measured."""
    names = [s.name for s in recipe.stages] if recipe else [p.parent.name for p in run.glob("*/attempts")]
    measured = [s for name in names if (s := last_save_s(run / name)) is not None]
    return max(measured, default=None)


def parse(text: str, pairs: str) -> dict[str, str]:
    return dict(re.findall(pairs, text, re.MULTILINE))


def kill_wait(config: Mapping[str, str], saves: float | None) -> Iterator[Finding]:
    """Seconds between SIGTERM and SIGKILL of `scancel`, or of a preemption."""
    found = re.match(r"\d+", config.get("KillWait", ""))
    if found is None:
        yield Finding("kill wait", "skipped", "scontrol show config does not say KillWait")
        return
    seconds = int(found[0])
    if saves is not None and seconds < saves:
        yield Finding(
            "kill wait",
            "warn",
            f"{seconds} s between SIGTERM and SIGKILL, a checkpoint takes {saves:.0f} s to save",
            "let it save before scancel: touch RUN/STOP, or scancel --signal=USR1; or have KillWait raised",
        )
    else:
        yield Finding("kill wait", "ok", f"{seconds} s between SIGTERM and SIGKILL; {_measured(saves)}")


def time_left(job: Mapping[str, str], now: datetime) -> Finding:
    """`job`: what `scontrol show job` says, in local time as `now`."""
    if job.get("TimeLimit", "UNLIMITED") == "UNLIMITED":
        return Finding("time left", "ok", "this job has no limit")
    left = (datetime.fromisoformat(job["EndTime"]) - now).total_seconds()
    shown = f"{left / 60:.0f} minutes" if left < 7200 else f"{left / 3600:.1f} hours"
    return Finding("time left", "ok", f"{shown} of this job, of {job['TimeLimit']}")


def script_faults(name: str, text: str, saves: float | None, requeued: bool) -> Iterator[Finding]:
    """A script's `--requeue` and `--signal`, against what a checkpoint takes to save. `requeued`: what the
    cluster does with jobs that do not say."""
    asked = " ".join(re.findall(r"^#SBATCH\s+(.*)", text, re.MULTILINE))
    if "--no-requeue" in asked or ("--requeue" not in asked and not requeued):
        yield Finding(
            "job scripts",
            "warn",
            f"{name} may not be queued again: it ends for good at its time limit, or with a node",
            "#SBATCH --requeue, as slurm/stage1.sh has it",
        )
    signals = _SIGNAL.findall(asked)
    if not signals:
        yield Finding(
            "job scripts",
            "warn",
            f"{name} asks for no signal before its time limit: steps since the last checkpoint are lost",
            "#SBATCH --signal=USR1@300, as slurm/stage1.sh has it",
        )
        return
    to, before = signals[-1]
    if "B" in to and not re.search(r"^\s*trap\s", text, re.MULTILINE):
        yield Finding(
            "job scripts",
            "warn",
            f"{name} has its signal sent to the script alone (B:), which has no trap to hand it on",
            "#SBATCH --signal=USR1@300, without B:",
        )
    elif saves is not None and int(before) < _SAVES * saves:
        yield Finding(
            "job scripts",
            "warn",
            f"{name} is told {before} s before its end, a checkpoint takes {saves:.0f} s to save",
            f"#SBATCH --signal=USR1@{math.ceil(3 * saves / 60) * 60 + 60}: more than two saves and a step",
        )


def soonest(texts: Iterable[str]) -> int:
    """The smallest number of seconds before the end that one of these scripts asks for."""
    return min(int(_SIGNAL.findall(text)[-1][1]) for text in texts)


def _measured(saves: float | None) -> str:
    return "no save measured yet" if saves is None else f"a checkpoint takes {saves:.1f} s to save"


def _scontrol(*words: str, check: bool = True) -> str:
    asked = ["scontrol", *words]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=_ASKED_S, check=False)
    if done.returncode and check:
        raise RuntimeError(f"{' '.join(asked)}: {done.stderr.strip()}")
    return done.stdout if done.returncode == 0 else ""


def nodes_of_step(env: Mapping[str, str]) -> tuple[str, ...]:
    """The nodes that the step was given; none outside of Slurm."""
    listed = env.get("SLURM_STEP_NODELIST")
    if not listed or not shutil.which("scontrol"):
        return ()
    return tuple(_scontrol("show", "hostnames", listed, check=False).split())
