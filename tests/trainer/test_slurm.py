"""What a task of a Slurm step makes of its environment."""

import pytest

from trainer.slurm import first_host, meeting_port, rank_variables

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_CPUS_PER_TASK": "12",
}


def test_a_task_of_many_is_its_rank_and_all_tasks_name_one_meeting_point():
    mine, other = rank_variables(TASK), rank_variables(TASK | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert mine == {
        "RANK": "11",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "16",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": str(meeting_port(4711, 1)),
        "OMP_NUM_THREADS": "12",
    }
    assert (other["RANK"], other["LOCAL_RANK"]) == ("0", "0")
    assert {k: mine[k] for k in ("MASTER_ADDR", "MASTER_PORT")} == {
        k: other[k] for k in ("MASTER_ADDR", "MASTER_PORT")
    }


def test_what_the_user_says_of_the_meeting_point_is_kept():
    assert rank_variables(TASK | {"MASTER_ADDR": "head", "MASTER_PORT": "1"})["MASTER_ADDR"] == "head"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # the batch script itself
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},
        TASK | {"RANK": "0", "WORLD_SIZE": "1"},  # another launcher inside of the step
    ],
)
def test_what_is_no_task_of_many_is_no_rank(env):
    assert rank_variables(env) == {}


HOSTS = {
    "n1": "n1",
    "n1,n2": "n1",
    "n[1-2]": "n1",
    "gpu[007-012,020],login1": "gpu007",
    "login1,gpu[007-012]": "login1",
    "rack[1-2]n[03-04]-ib": "rack1n03-ib",
}


@pytest.mark.parametrize(("nodes", "first"), HOSTS.items())
def test_the_first_host_of_a_short_list(nodes, first):
    assert first_host(nodes) == first


def test_ports_of_neighbouring_jobs_and_of_their_steps_differ():
    ports = [meeting_port(job, step) for job in range(70_000, 71_000) for step in range(10)]
    assert len(set(ports)) == len(ports)
    assert min(ports) >= 1024
    assert max(ports) < 32_768  # where Linux begins to hand out ports by itself
