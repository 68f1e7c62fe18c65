"""A few broken samples are named and passed over; too many of them end the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.stream.faults import Fault, Faults, append_faults

FAULT = Fault(
    sample_id=None, source="docs", shard="shards/a.arrow", row=7, reason="no bytes", detail="x\ny\u2028"
)


def meet(faults: Faults, bad: str) -> None:
    for n, letter in enumerate(bad):
        if letter == "b":
            faults.bad(f"s{n}", FAULT.reason, FAULT.where)
        else:
            faults.good()


def test_as_many_in_a_row_as_allowed_end_the_run() -> None:
    meet(Faults(in_a_row=3, window=1000), "bbgbbgbb")
    with pytest.raises(
        DataError, match=r"3 in a row.*sample s5, row 7 of shards/a.arrow \(source 'docs'\): no bytes"
    ):
        meet(Faults(in_a_row=3, window=1000), "bbgbbb")


def test_a_share_above_the_allowed_ends_the_run_once_the_window_is_full() -> None:
    meet(Faults(share=0.25, window=8), "bbgbgg" + "g")  # 3 of 7: no verdict yet
    meet(Faults(share=0.25, window=8), "bggbgggg" * 4)
    with pytest.raises(DataError, match="3 of the last 8"):
        meet(Faults(share=0.25, window=8), "bggbgggg" + "bb")
    meet(Faults(share=1.0, window=2, in_a_row=100), "b" * 99)
    with pytest.raises(DataError):
        meet(Faults(share=0.0, window=1), "b")


@pytest.mark.parametrize("wrong", [{"share": 1.1}, {"share": -0.1}, {"window": 0}, {"in_a_row": 0}])
def test_limits_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="are allowed"):
        Faults(**wrong)


def test_a_fault_is_one_line_of_json_that_says_where(tmp_path: Path) -> None:
    append_faults(tmp_path / "skipped.jsonl", [FAULT], step=7)
    append_faults(tmp_path / "skipped.jsonl", [FAULT, FAULT], step=8)
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": n, **vars(FAULT)} for n in (7, 8, 8)]
    assert json.loads(lines[0])["row"] == 7


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from data_pipeline.stream.faults import Fault, append_faults;"
        "f = Fault(sample_id=sys.argv[2], source='s', shard='x', row=1, reason='r', detail='d' * 3000);"
        "append_faults(Path(sys.argv[1]), [f] * 300, step=1)"
    )
    path = tmp_path / "skipped.jsonl"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(3)]
    assert [p.wait() for p in running] == [0, 0, 0]
    found = [json.loads(line)["sample_id"] for line in path.read_text().splitlines()]
    assert sorted(found) == ["0"] * 300 + ["1"] * 300 + ["2"] * 300
