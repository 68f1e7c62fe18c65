"""The learning rate's shape at its landmarks."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR

from trainer.engine.schedule import lr_factor


def factors(schedule, steps=10, warmup=2, least=0.1):
    return [
        lr_factor(s, steps=steps, warmup_steps=warmup, schedule=schedule, min_ratio=least)
        for s in range(steps)
    ]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warm_up_is_linear_the_peak_follows_and_the_last_step_has_the_least(schedule):
    f = factors(schedule)
    assert f[:2] == [0.5, 1.0]
    assert f[2] == 1.0
    assert f[-1] == pytest.approx(0.1)
    assert f[2:] == sorted(f[2:], reverse=True)


def test_linear_falls_by_the_same_amount_each_step():
    f = factors("linear")[2:]
    assert [a - b for a, b in pairwise(f)] == pytest.approx([0.9 / 7] * 7)


def test_constant_stays_at_its_peak():
    assert factors("constant")[2:] == [1.0] * 8


def test_wsd_stays_at_its_peak_and_falls_evenly_over_the_last_share_of_all_steps():
    f = [
        lr_factor(s, steps=20, warmup_steps=4, schedule="wsd", min_ratio=0.1, decay_share=0.25)
        for s in range(20)
    ]
    assert f[:4] == [0.25, 0.5, 0.75, 1.0]
    assert f[4:15] == [1.0] * 11
    assert f[15:] == pytest.approx([0.82, 0.64, 0.46, 0.28, 0.1])


@pytest.mark.parametrize(
    ("steps", "warmup", "share"), [(1, 0, 0.2), (10, 8, 0.9), (10, 10, 0.2), (10, 0, 0.01)]
)
def test_wsd_of_few_steps_decays_after_its_warm_up_to_the_least(steps, warmup, share):
    f = [
        lr_factor(s, steps=steps, warmup_steps=warmup, schedule="wsd", min_ratio=0.1, decay_share=share)
        for s in range(steps)
    ]
    assert f[:warmup] == [(s + 1) / warmup for s in range(warmup)]
    assert f[-1] == pytest.approx(0.1 if warmup < steps else 1.0)


def test_an_unknown_schedule_is_an_error_naming_the_allowed():
    with pytest.raises(ValueError, match="constant, linear, cosine, wsd"):
        factors("sine")


def test_cosine_by_hand():
    f = factors("cosine", steps=6, warmup=1, least=0.2)
    # 0.2 + 0.8 * (1 + cos(0, 45, 90, 135, 180 degrees)) / 2, behind one step of warm-up
    assert f == pytest.approx([1.0, 1.0, 0.8828427, 0.6, 0.3171573, 0.2])


def torchs(schedule, steps, warmup, least, share):
    """The same by torch's own schedulers, one behind the other."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    last = steps - 1 - warmup  # steps between the peak and the last one
    decaying = round(share * steps)
    falling = {
        "cosine": lambda: [CosineAnnealingLR(optimizer, last, eta_min=least)],
        "linear": lambda: [LinearLR(optimizer, 1.0, least, last)],
        "constant": lambda: [ConstantLR(optimizer, 1.0)],
        "wsd": lambda: [ConstantLR(optimizer, 1.0), LinearLR(optimizer, 1.0, least, decaying)],
    }[schedule]()
    warm = LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    milestones = [warmup, *([steps - 1 - decaying] if schedule == "wsd" else [])]
    chained = SequentialLR(optimizer, [warm, *falling], milestones)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its parts with a step, which torch deprecates
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            chained.step()
    return rates


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize(("steps", "warmup", "least", "share"), [(40, 5, 0.1, 0.25), (23, 3, 0.0, 0.4)])
def test_every_schedule_is_what_torchs_schedulers_give(schedule, steps, warmup, least, share):
    ours = [
        lr_factor(s, steps=steps, warmup_steps=warmup, schedule=schedule, min_ratio=least, decay_share=share)
        for s in range(steps)
    ]
    assert ours == pytest.approx(torchs(schedule, steps, warmup, least, share), abs=1e-12)
