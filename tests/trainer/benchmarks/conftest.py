"""Small releases of all benchmarks, and a checkpoint that answers them."""

from pathlib import Path

import pytest

from benchmark_runs import N
from released import release
from trainer.distributed import alone
from trainer.evaluation.task import task_names
from trainer.subject import open_subject


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("releases")
    for name in task_names():
        if name != "scenes":
            release(name, root, N)
    return root


@pytest.fixture(scope="module")
def opened(trained):
    return open_subject(alone(), trained / "instruct", 4)
