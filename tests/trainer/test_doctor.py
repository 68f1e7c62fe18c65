"""`fovea doctor` as it is typed: its table, JSON and code, and what it says when something is broken."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import captioned_squares
from trainer.cli import main
from trainer.doctor.examination import Examination, Order
from trainer.doctor.finding import Finding, found_by
from trainer.doctor.recipe import checks
from trainer.doctor.report import Report, joined, table
from trainer.launch import meeting_port

ROOT = Path(__file__).parents[2]
HOSTS = {0: "n1", 1: "n1", 2: "n2", 3: "n2"}
SILENT = """
import sys, time
from trainer.board import Board
Board(1, 2, 200).post("here", {"host": "elsewhere", "facts": {"gpus": "none"}})
time.sleep(600)
"""
LONELY_S = 24
"""Seconds for all of an examination that lacks a rank: half of them it waits for it."""


def started(*words, rank=None, size=2, port=0, program=("-m", "trainer.cli", "doctor"), path="", **env):
    """A process of `fovea doctor`; with `rank`, one of the ranks of a job, as srun starts them."""
    placed = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_PORT": port,
        "MASTER_ADDR": "127.0.0.1",
    }
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **({k: str(v) for k, v in placed.items()} if port else {}),
        **env,
    }
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (path, str(ROOT))))
    command = [sys.executable, *program, *map(str, words)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process, seconds=600):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def took(out):
    """The seconds of an examination, as its last line says."""
    return float(re.search(r" in ([\d.]+) s: ", out.splitlines()[-1])[1])


def rows(page):
    return {r["name"]: r for r in page["rows"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return captioned_squares.lay_out(tmp_path_factory.mktemp("run"))


def test_two_ranks_examine_one_another_and_the_recipe(run):
    words = ("--run", run, "--nproc", 2, "--seconds", 300, "--json", "stages.align.steps=9")
    process = started(run / "recipe.yaml", *words)
    code, out, err = ended(process)
    page = json.loads(out)
    found = rows(page)
    assert err == ""
    assert (page["ranks"], len(page["hosts"])) == (2, 1)
    assert code == page["exit_code"] == int(any(r["status"] == "warn" for r in page["rows"]))
    for name in (
        "recipe", "port", "python", "packages", "torch", "ranks", "gpu", "same everywhere", "clocks",
        "all-reduce", "shared directory", "rename", "one owner", "write speed", "stages", "tokenizer",
        "chat template", "data",
    ):  # fmt: skip
        assert (found[name]["status"], found[name]["fix"]) == ("ok", ""), found[name]
    assert {"deepspeed", "shared memory", "open files", "locked memory", "scratch", "disk"} < found.keys()
    assert "64 MiB by gloo: sums right" in found["all-reduce"]["said"]
    assert "align under zero3, micro-batches a step: 1" in found["stages"]["said"]
    assert sorted(p.name for p in run.iterdir()) == ["backbones", "data", "recipe.yaml"]  # nothing is left


@pytest.mark.slow
def test_ranks_of_other_directories_versions_and_recipes_are_told_apart(run, tmp_path):
    """Started by hand, rank 1 with another package on its path, another --run, and another recipe."""
    older = tmp_path / "path" / "transformers-0.0.1.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 0.0.1\n")
    (tmp_path / "other").mkdir()
    recipe = run / "recipe.yaml"
    with meeting_port() as port:
        one = started(
            recipe,
            "--run",
            tmp_path / "other",
            "stages.align.steps=9",
            "--seconds",
            60,
            rank=1,
            port=port,
            path=str(older.parent),
        )
        code, out, _ = ended(started(recipe, "--run", run, "--json", "--seconds", 60, rank=0, port=port))
        assert ended(one) == (0, "", "")  # rank 0 speaks for both
    page = json.loads(out)
    host = socket.gethostname()
    bad = [(r["name"], r["where"], r["said"]) for r in page["rows"] if r["status"] == "fail"]
    told = {name: said for name, _, said in bad}
    assert code == page["exit_code"] == 2
    assert [w for name, w, _ in bad if name == "packages"] == [[f"{host} rank 1"]]
    assert "transformers 0.0.1 (needs >=" in told["packages"]
    assert re.match("rank 1: recipe .*; transformers 0.0.1, on most ", told["same everywhere"])
    assert [w for name, w, _ in bad if name == "shared directory"] == [[f"{host} rank 0"], [f"{host} rank 1"]]
    assert f"files of rank 1 ({host}) do not appear in {run}" in " ".join(said for _, _, said in bad)
    assert "rename" not in rows(page)  # there is nothing in common to try it on
    assert rows(page)["all-reduce"]["status"] == "ok"


@pytest.fixture(scope="module")
def lonely(tmp_path_factory):
    """Ends of examinations that lack a rank, all at once: (code, output, errors) by name."""
    here = tmp_path_factory.mktemp("lonely")
    broken = here / "path"
    broken.mkdir()
    (broken / "deepspeed.py").write_text(
        "raise ImportError('libcudart.so.12: cannot open shared object file')"
    )
    with socket.socket() as taken, ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [stack.enter_context(meeting_port()) for _ in range(3)]
        processes = {
            "no rank 1": started("--run", here, "--seconds", LONELY_S, rank=0, port=ports[0]),
            "no rank 0": started("--run", here, "--seconds", LONELY_S, rank=1, port=ports[1]),
            "port taken": started("--run", here, rank=0, port=taken.getsockname()[1]),
            "no deepspeed": started("--json", path=str(broken)),
            "rank 1 without deepspeed": started(rank=1, port=ports[2], path=str(broken)),
        }
        return {name: ended(p) for name, p in processes.items()}


def test_a_rank_that_never_comes_is_named_in_time_and_the_rest_is_looked_at(lonely):
    code, out, _ = lonely["no rank 1"]
    assert code == 2
    assert took(out) < 2 * LONELY_S
    assert re.search(r"1 of 2 came within \d+ s; missing: rank 1", out)
    assert "python " in out
    assert "write speed " in out
    assert "all-reduce" not in out


def test_a_rank_without_rank_0_says_where_it_looked_for_it(lonely):
    code, out, err = lonely["no rank 0"]
    assert (code, out) == (2, "")
    assert err.startswith("fovea: rank 1 does not reach rank 0 at 127.0.0.1:")
    assert len(err.splitlines()) == 2


def test_a_port_that_is_taken_is_told_at_once(lonely):
    code, out, _ = lonely["port taken"]
    assert code == 2
    assert "where ranks meet, cannot be opened: Address already in use" in " ".join(out.split())


@pytest.mark.slow
def test_a_rank_that_comes_and_then_hangs_ends_nothing_but_the_collectives(tmp_path):
    with meeting_port() as port:
        one = started(program=("-c", SILENT), rank=1, port=port)
        try:
            code, out, _ = ended(started("--run", tmp_path, "--seconds", LONELY_S, rank=0, port=port))
        finally:
            one.kill()
            ended(one)
    said = " ".join(out.split())
    assert code == 2
    assert "rank 1 (elsewhere) came, and then said no more" in said
    assert re.search(rf"all-reduce +{socket.gethostname()} +fail", said)
    assert took(out) < 2 * LONELY_S


def test_a_library_that_cannot_be_loaded_is_a_finding(lonely):
    code, out, err = lonely["no deepspeed"]
    (row,) = json.loads(out)["rows"]
    assert (code, row["status"], err) == (2, "fail", "")
    assert row["said"] == "cannot be loaded: ImportError: libcudart.so.12: cannot open shared object file"
    code, out, err = lonely["rank 1 without deepspeed"]
    assert (code, out) == (2, "")  # rank 0 alone reports
    assert err.startswith(
        f"fovea: rank 1 on {socket.gethostname()}: software cannot be loaded: ImportError: "
    )


@pytest.mark.slow
def test_libraries_that_load_for_ever_are_given_up_and_it_is_said_where(tmp_path):
    (tmp_path / "deepspeed.py").write_text("import time\ntime.sleep(600)\n")
    code, out, err = ended(started("--json", "--seconds", 1, path=str(tmp_path)))
    assert (code, out) == (2, "")
    assert "in _examined" in err  # where the libraries are loaded
    assert "nothing to report after 13 s" in err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_our_own_in_a_check_is_never_taken_for_well(tmp_path):
    captioned_squares.lay_out(tmp_path)
    order = Order(recipe=str(tmp_path / "recipe.yaml"), run=tmp_path)
    wrong = Examination(order=order, of_recipe=lambda *_: iter([("wrong", lambda: 1 // 0)]))
    report = wrong.take()
    assert report.exit_code == 2
    assert (report.rows[-1].name, report.rows[-1].status) == ("wrong", "fail")


def test_a_check_that_hangs_is_what_is_reported_when_time_is_up(tmp_path):
    """A file that never answers, as one of a mount whose server has gone."""
    captioned_squares.lay_out(tmp_path)
    began = time.monotonic()
    order = Order(recipe=str(tmp_path / "recipe.yaml"), run=tmp_path, seconds=600)
    assert Examination(order=order, of_recipe=checks).take().exit_code < 2
    well_s = time.monotonic() - began
    tokenizer = tmp_path / "backbones" / "tokenizer" / "tokenizer.json"
    tokenizer.unlink()
    os.mkfifo(tokenizer)
    report = Examination(order=replace(order, seconds=int(2 + 3 * well_s)), of_recipe=checks).take()
    tokenizer.open("w").close()  # lets the thread go
    found = {r.name: r for r in report.rows}
    assert (found["tokenizer"].status, found["tokenizer"].said.partition(";")[0]) == (
        "fail",
        f"not done after {int(2 + 3 * well_s)} s",
    )
    assert found["stages"].status == "ok"
    assert "data" not in found
    assert report.exit_code == 2


def test_a_recipe_that_does_not_load_is_one_finding_among_the_others(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("name: small\nstages: 3\n")
    assert main(["doctor", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path), "--json"]) == 2
    found = rows(json.loads(capsys.readouterr().out))
    assert found["recipe"]["status"] == "fail"
    assert "stages" in found["recipe"]["fix"] + found["recipe"]["said"]
    assert found["python"]["status"] == "ok"


def test_a_machine_that_is_well_gives_0_or_with_a_warning_1(tmp_path, capsys, monkeypatch):
    def code():
        reached = main(["doctor", "--run", str(tmp_path)])
        return reached, capsys.readouterr().out

    assert code()[0] in (0, 1)
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    reached, out = code()
    assert reached == 1
    assert "fix: load a compiler's module" in " ".join(out.split())


def test_what_ranks_find_alike_is_one_row_and_a_rank_that_differs_from_its_node_is_named():
    ok = Finding("disk", "ok", "5 GiB free")
    full = Finding("disk", "fail", "full", "make room")
    about = Finding("clocks", "warn", "off", "start chrony", where=("n2",))
    found = {0: [ok, about], 1: [replace(ok, said="4 GiB free")], 2: [full], 3: [ok]}
    rows = joined(found, HOSTS)
    assert [(r.name, r.where, r.status) for r in rows] == [
        ("disk", ("n1", "n2 rank 3"), "ok"),
        ("disk", ("n2 rank 2",), "fail"),
        ("clocks", ("n2",), "warn"),
    ]
    report = Report(4, ("n1", "n2"), 1.0, rows)
    assert report.exit_code == 2
    assert Report(4, ("n1", "n2"), 1.0, rows[::2]).exit_code == 1
    assert Report(4, ("n1", "n2"), 1.0, rows[:1]).exit_code == 0
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    shown = "\n".join(table(report, 100))
    assert "fix: make room" in shown
    assert shown.endswith("4 ranks on 2 nodes in 1.0 s: 1 to mend, 1 to look at, 1 well")


def test_a_check_that_breaks_off_keeps_what_it_had_found():
    def check():
        yield Finding("x", "ok", "first")
        raise OSError("the mount is gone")

    first, second = found_by("x", check)
    assert first.status == "ok"
    assert (second.status, second.said) == ("fail", "broke off: OSError: the mount is gone")
    with pytest.raises(ZeroDivisionError):  # an error of ours is not a finding about the machine
        found_by("x", lambda: 1 // 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_each_gpu_has_a_rank_and_nccl_sums_right(tmp_path):
    ranks = torch.cuda.device_count()
    code, out, _ = ended(started("--run", tmp_path, "--nproc", ranks, "--json", "--seconds", 90), 200)
    found = rows(json.loads(out))
    assert code < 2
    assert "nccl" in found["torch"]["said"]
    assert (found["gpu"]["status"], found["gpu memory"]["status"] in ("ok", "warn")) == ("ok", True)
    assert ranks == 1 or "by nccl: sums right" in found["all-reduce"]["said"]
