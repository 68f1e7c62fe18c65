"""Ranks that silently hold other copies of the same thing are found, named, and stopped before the update."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import NumericError
from dealt import run_of
from ranks import on_ranks
from trainer.engine.guard import Guard
from trainer.engine.replicas import minority
from trainer.loop import train_step


def nudge(run):
    """The smallest change of one weight."""
    weight = run.engine.module.language.lm_head.weight.data.view(-1)
    weight[7] = torch.nextafter(weight[7], torch.tensor(9.0))


def other_buffer(run):
    next(b for b in run.engine.module.language.buffers() if b.is_floating_point()).mul_(1.001)


def other_facts(run):
    run.stage = run.stage.model_copy(update={"lr": 3 * run.stage.lr})
    run.stream.state_dict = lambda: {"ledger": 0, "window": 0, "row": 77}
    run.state = replace(run.state, step=run.state.step + 1)


CASES = {
    "ZeRO 0": ({"stage": 0}, nudge, ["weights of language"]),
    "ZeRO 3, kept whole": ({"stage": 3}, nudge, ["weights of language"]),
    "buffer": ({"stage": 3, "stage3_param_persistence_threshold": 0}, other_buffer, ["weights of language"]),
    "facts": ({"stage": 2}, other_facts, ["learning rates", "place in the data", "step"]),
}


def drift(world, case, directory, check_every=1):
    """What stops a run whose rank 1 is changed after a step; nothing where it goes on."""
    zero, change, _ = CASES[case]
    stage = {"guard": Guard(check_every=check_every)}
    run = run_of(world, zero, 1, Path(directory) / case, **stage)
    run.stage_dir.mkdir(exist_ok=True)
    train_step(run)
    if world.rank == 1:
        change(run)
    try:
        train_step(run)
    except NumericError as e:
        return str(e)
    return None


def all_drift(world, directory):
    found = {case: drift(world, case, directory) for case in CASES}
    return found, drift(world, "ZeRO 0", directory, check_every=None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rank_that_drifted_apart_is_named_and_all_stop_before_the_update(tmp_path):
    for found, unwatched in on_ranks(all_drift, str(tmp_path), ranks=3):
        assert unwatched is None  # nothing else sees it
        for case, (_, _, parts) in CASES.items():
            assert found[case] is not None, case
            for what in parts:
                assert f"{what} (rank 1)" in found[case], found[case]
    events = [json.loads(line) for line in (tmp_path / "ZeRO 0" / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"], e["apart"]) for e in events] == [
        ("ranks drifted apart", 2, {"weights of language": [1]})
    ]


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ([5.0], ()),
        ([5.0, 5.0, 5.0], ()),
        ([5.0, 5.0, 6.0], (2,)),
        ([7.0, 5.0, 6.0, 5.0, 5.0], (0, 2)),
        ([5.0, 6.0], (0, 1)),
        ([5.0, 6.0, 5.0, 6.0], (0, 1, 2, 3)),
    ],
)
def test_the_odd_ones_out_are_those_that_differ_from_most(values, ranks):
    assert minority(values) == ranks
