"""The launcher tells the failure that the others followed from."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

import psutil
import pytest
from torch.distributed import TCPStore

from data_pipeline.errors import DataError, TransientError
from trainer.launch import ERROR_FILE, LAUNCHER, _kill_family, _root_cause, meeting_port, report_error
from waiting import wait_for


def test_a_rank_s_own_error_comes_before_the_peers_it_took_along():
    error = _root_cause([75, 4], ["rank 0 lost its connection", "shard x is gone"])
    assert (str(error), error.exit_code) == ("shard x is gone", 4)


def test_a_killed_rank_comes_before_the_peers_that_lost_it():
    error = _root_cause([75, -9], ["rank 0 lost its connection", None])
    assert isinstance(error, TransientError)
    assert "rank 1 was ended by SIGKILL" in str(error)


def test_a_rank_that_said_nothing_keeps_its_exit_code():
    error = _root_cause([1, -15], [None, None])
    assert error.exit_code == 1
    assert "rank 0" in str(error)


def test_a_rank_that_stopped_on_request_comes_before_the_peer_that_broke_for_it():
    error = _root_cause([1, 143], [None, "stopped after step 5"])
    assert (str(error), error.exit_code) == ("stopped after step 5", 143)


def test_an_error_goes_to_the_launcher_where_there_is_one_and_else_to_the_screen(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "said"))
    report_error(DataError("gone"))
    assert (tmp_path / "said").read_text() == "gone"
    assert capsys.readouterr().err == ""
    monkeypatch.delenv(ERROR_FILE)
    report_error(DataError("gone"))
    assert capsys.readouterr().err == "fovea: gone\n"


def test_ranks_end_with_a_launcher_that_was_killed(run_dir):
    words = ["train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2]
    launcher = subprocess.Popen([sys.executable, "-m", "trainer.cli", *map(str, words)])

    def ranks() -> list[psutil.Process]:
        """Both ranks once they load torch, which they do after they have asked the kernel."""
        found = []
        for child in psutil.Process(launcher.pid).children():
            with suppress(psutil.NoSuchProcess):  # a look at the file systems, over by now
                found += [child] if any("libtorch_cpu" in m.path for m in child.memory_maps()) else []
        return found

    found = wait_for(lambda: r if len(r := ranks()) == 2 else None)
    for rank in found:
        rank.suspend()  # it can neither finish nor notice by itself
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(found, timeout=30)
    for rank in alive:
        rank.kill()
    assert not alive


def test_a_data_error_that_one_rank_alone_meets_ends_all_with_its_message(run_dir, fovea):
    """The other rank waits in a collective: it must not wait for its timeout."""
    code = (
        "import trainer.loop as loop, os\n"
        "from data_pipeline.errors import DataError\n"
        "step = loop.train_step\n"
        "def broken(run, oversight):\n"
        "    if run.world.rank == 1 and run.state.step == 2:\n"
        "        raise DataError('sample 42 is bad')\n"
        "    return step(run, oversight)\n"
        "loop.train_step = broken\n"
    )
    (run_dir / "sitecustomize.py").write_text(
        "import os\nif 'RANK' in os.environ:\n    os.environ.setdefault('DS_ACCELERATOR', 'cpu')\n"
        + "".join(f"    {line}\n" for line in code.splitlines())
    )
    done = fovea(
        "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2,
        env={"PYTHONPATH": str(run_dir)},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "sample 42 is bad" in done.stderr
    assert done.stderr.count("sample 42 is bad") == 1
    assert "Traceback" not in done.stderr


def test_the_port_where_ranks_meet_is_given_to_nobody_else_until_rank_0_listens_there():
    with meeting_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        store = TCPStore("127.0.0.1", port, 1, is_master=True, timeout=timedelta(seconds=60))
        store.set("rank", "0")
        assert store.get("rank") == b"0"


@pytest.mark.parametrize("dead", [True, False])
def test_a_rank_whose_launcher_died_before_it_could_ask_the_kernel_ends_as_well(dead):
    program = "from trainer.launch import end_with_launcher; end_with_launcher(); print('alive')"
    launcher = str(2**22 + 1 if dead else os.getpid())  # the first is no process number of Linux
    rank = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, LAUNCHER: launcher},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (rank.returncode, rank.stdout) == ((-9, "") if dead else (0, "alive\n"))


def test_what_a_rank_started_may_end_with_it_before_it_is_killed_too():
    with_child = "import subprocess, time; subprocess.run(['sleep', '600']); time.sleep(600)"

    class Rank(subprocess.Popen):
        def kill(self):
            child.kill()
            wait_for(lambda: not child.is_running())
            super().kill()

    rank = Rank([sys.executable, "-c", with_child])
    (child,) = wait_for(psutil.Process(rank.pid).children)
    _kill_family(rank)
    assert rank.wait() == -9
