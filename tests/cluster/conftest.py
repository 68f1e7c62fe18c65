"""A real Slurm of three virtual nodes on this machine, and a run directory that jobs train in."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from small_run import prepare

ROOT = Path(__file__).parents[2]
RIG = ROOT.parent / "shared" / "rig" / "slurm"
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")

STAGES = """
defaults:
  global_batch: 4
  micro_batch: 2
  sequence_length: 96
  lr: 3.0e-3
  ds_config: zero3
  checkpoint_every: 4
  train: {connector: 1.0, new_tokens: 1.0, language: 0.5}
stages:
  - {name: align, init_from: backbones, mixture: {scenes_alt: 1}, steps: 8, train: {connector: 1.0}}
  - {name: pretrain, init_from: align, mixture: {scenes_alt: 1, scenes_dense: 2}, steps: 3}
  - {name: instruct, init_from: pretrain, mixture: {scenes_qa: 3, scenes_text: 1}, steps: 3}
  - {name: adapt, init_from: instruct, mixture: {scenes_qa: 1}, steps: 3}
evaluation:
  {captions: 2, questions: 4, documents: 4, batch: 4, max_new_tokens: 4,
   suites: {quick: {tasks: [scenes], data: ., limit: 4}}}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))


def environment(**more: object) -> dict[str, str]:
    """A user's shell, as far as Fovea is concerned: its command is on the PATH of every job."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    left = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    fixed = {"PATH": path, "VENV": "/nonexistent", "PYTHONPATH": str(ROOT), "RANKS_PER_NODE": "1"}
    return {**left, **fixed, **{k: str(v) for k, v in more.items()}}


@dataclass(frozen=True)
class Cluster:
    """Commands of a login node. A job's output goes to `logs`."""

    state: Path
    logs: Path

    def command(
        self, *words: object, check: bool = True, cwd: Path = ROOT, **env: object
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(w) for w in words],
            cwd=cwd,
            env=environment(SLURM_CONF=self.state / "slurm.conf", **env),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, script: str, *words: object, options: tuple[str, ...] = (), **env: object) -> str:
        """The number of the job of `sbatch slurm/SCRIPT WORDS...`."""
        said = self.command(
            "sbatch", "--parsable", f"--output={self.logs}/%j.out", *options, f"slurm/{script}", *words, **env
        )
        return said.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        shown = self.command("scontrol", "show", "job", "--oneliner", job).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait(self, job: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Until the job is in one of the states, by default until it is over."""
        states = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        deadline = time.monotonic() + seconds
        while (shown := self.job(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{shown}\n{self.output(job)}"
            time.sleep(0.3)
        return shown

    def output(self, job: str) -> str:
        file = self.logs / f"{job}.out"
        return file.read_text() if file.exists() else ""

    def said(self, job: str, text: str, seconds: float = 180) -> None:
        """Wait until the job's output holds the text."""
        deadline = time.monotonic() + seconds
        while text not in self.output(job):
            assert time.monotonic() < deadline, f"no {text!r}: {self.job(job)}\n{self.output(job)}"
            time.sleep(0.2)

    def node(self, what: str, name: str) -> None:
        subprocess.run(["bash", RIG / "slurm-node.sh", self.state, what, name], check=True)


def daemons_of(state: Path) -> list[psutil.Process]:
    """Processes of Slurm whose command line or working files lie under the cluster's directory."""
    found = []
    for p in psutil.process_iter(["name", "cmdline"]):
        if p.info["name"] in DAEMONS and str(state) in " ".join(p.info["cmdline"] or ()):
            found.append(p)
    return found


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not RIG.exists():
        pytest.skip("needs ../shared/rig/slurm, which is not here")
    if os.geteuid() != 0:
        pytest.skip("the Slurm rig starts as root only")
    state = tmp_path_factory.mktemp("slurm")
    logs = tmp_path_factory.mktemp("jobs")
    port = 19300 + os.getpid() % 100 * 100  # another session on this machine has another
    up = ["bash", RIG / "slurm-up.sh", state, "--nodes", "3", "--gpus", "2", "--port", str(port)]
    started = subprocess.run(up, capture_output=True, text=True, check=False)
    try:
        if started.returncode:
            pytest.skip(f"the Slurm rig does not start here: {started.stderr[-500:]}")
        yield Cluster(state, logs)
    finally:
        subprocess.run(["bash", RIG / "slurm-down.sh", state, "--purge"], check=False, capture_output=True)
        left = daemons_of(state)
        for p in left:
            p.kill()
        assert not left, f"the cluster left {left}"


def fovea(*words: object, **env: object) -> subprocess.CompletedProcess[str]:
    """`fovea ...` on this machine, without a Slurm."""
    return subprocess.run(
        [sys.executable, "-m", "trainer.cli", *map(str, words)],
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS=1, **env),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with recipe.yaml, data/ and backbones/; not to be written to."""
    return prepare(tmp_path_factory.mktemp("prepared"), STAGES, fovea)


@pytest.fixture
def run_dir(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    return Path(shutil.copytree(prepared, tmp_path / "run"))


@pytest.fixture(scope="session")
def unbroken(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first stage on two ranks of this machine, never interrupted; not to be written to."""
    run = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("unbroken") / "run"))
    done = fovea("train", run / "recipe.yaml", "--stage", "align", "--run", run, "--nproc", 2)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(name="fovea")
def fovea_fixture() -> Callable[..., subprocess.CompletedProcess[str]]:
    return fovea
