"""What a task of `srun` knows: which rank it is, and where the ranks meet."""

import re
from collections.abc import Mapping

_FIRST_PORT, _PORTS = 12_000, 20_000  # below the ports that Linux hands out by itself


def rank_variables(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that make a task of a Slurm step a rank; none where `env` is not of one, or has a rank.

    A step of one task is no rank: the command in it may start ranks itself. What `env` says of the meeting
    point (MASTER_ADDR, MASTER_PORT) and of threads is kept.
    """
    if "RANK" in env or int(env.get("SLURM_STEP_NUM_TASKS") or 1) == 1:
        return {}
    found = {
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": first_host(env["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(meeting_port(int(env["SLURM_JOB_ID"]), int(env["SLURM_STEP_ID"]))),
        "OMP_NUM_THREADS": env.get("SLURM_CPUS_PER_TASK", "1"),
    }
    return {name: env.get(name, value) for name, value in found.items()}


def first_host(nodes: str) -> str:
    """The first name of Slurm's short list: `gpu[007-012,020],login1` gives `gpu007`."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)


def meeting_port(job: int, step: int) -> int:
    """One that no other step on the same nodes has: steps of a job, and jobs that began near one another."""
    return _FIRST_PORT + (job * 13 + step) % _PORTS
