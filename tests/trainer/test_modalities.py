"""Ranks that draw their modalities at random never wait for one another, and train as one process does.

Text alone, one picture, many, all text on one rank, micro-batches without a target; two micro-batches a step;
every step's loss is compared, in fp32.
"""

import pytest
import torch

from modalities import CASES, draw_batch, ranks_train, twin_trains
from ranks import on_ranks


def agree(names: list[str], ranks: int, steps: int, seconds: float, backend: str = "aot_eager") -> None:
    results = on_ranks(ranks_train, names, steps, backend, ranks=ranks, seconds=seconds)
    for name in names:
        losses = results[0][name]
        assert all(result[name] == losses for result in results), name
        assert len(losses) == steps
        want = torch.tensor(twin_trains(name, ranks, steps), dtype=torch.float64)
        apart = (torch.tensor(losses, dtype=torch.float64) - want).abs()
        first = int((apart > 1e-4).int().argmax())
        assert apart.max() <= 1e-4, f"{name}: {apart.max():.1e} apart, from step {first + 1} on"
        assert want[-5:].mean() < want[0] - 1e-3 * steps  # and there was something to learn


def test_what_is_drawn_holds_every_modality_and_sets_them_against_one_another():
    images = [[[len(draw_batch(s, r, m).grids) for m in range(2)] for r in range(2)] for s in range(20)]
    targets = [draw_batch(s, r, m).target_tokens for s in range(20) for r in range(2) for m in range(2)]
    assert {n for step in images for rank in step for n in rank} == {0, 1, 2, 3, 4, 5}
    assert any(max(step[r]) == 0 and min(step[1 - r]) > 0 for step in images for r in range(2))
    assert 0 < sum(n == 0 for n in targets) < 20
    assert draw_batch(3, 1, 0).patches.equal(draw_batch(3, 1, 0).patches)


@pytest.mark.timeout(1800)
def test_two_ranks_under_zero3_train_as_one_process():
    agree(list(CASES), ranks=2, steps=10, seconds=800)


LONG = [(2, "all trained", 200), (4, "all trained", 200), (4, "frozen tower, LoRA", 200)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("ranks", "name", "steps"), [*LONG, *((2, name, 60) for name in CASES if name != "all trained")]
)
def test_long_runs_under_zero3_train_as_one_process(ranks, name, steps):
    agree([name], ranks=ranks, steps=steps, seconds=600)
