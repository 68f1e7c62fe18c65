"""Compiled regions give what eager ones give, are compiled a few times in all, and keep their names.

The fast tests trace as inductor does and run what was traced by ATen's own kernels.
"""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from data_pipeline.errors import ConfigError
from modalities import CASES, draw_batch, model_of, stage_of
from trainer.config import load_recipe
from trainer.models.regions import compile_regions

STAGE = stage_of(CASES["all trained"], 1, 1)


def pair(backend, every=False):
    """The same model twice, the second compiled."""
    torch.compiler.reset()
    counters.clear()
    eager, compiled = (model_of(CASES["all trained"], STAGE) for _ in range(2))
    for model in (eager, compiled):
        model.enable_activation_checkpointing(every)
    assert len(compile_regions(compiled, backend)) == 4
    return eager, compiled


def compare(eager, compiled, steps):
    """Losses and gradients on batches of other pictures each, some with none."""
    for step in steps:
        batch = draw_batch(step, 0, 0)
        losses = [model(batch) for model in (eager, compiled)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        for loss in losses:
            loss.backward()
        for (name, want), got in zip(eager.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-5, atol=1e-5, msg=name)
        eager.zero_grad()
        compiled.zero_grad()


@pytest.mark.parametrize("every", [False, {"language": 2, "vision": 1}])
def test_forward_and_backward_equal_eager_in_few_graphs_without_a_break(every):
    eager, compiled = pair("aot_eager", every)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    compare(eager, compiled, range(4))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= 6  # of layers and MLPs, recomputed or not; of the blank image's one patch
    compare(eager, compiled, range(4, 12))
    assert counters["stats"]["unique_graphs"] == graphs  # other pictures need no others
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_equals_eager_forward_and_backward():
    compare(*pair("inductor", {"language": 2}), range(4))


def test_experts_are_not_compiled():
    load_recipe("tiny", ["stages.align.compile=true"])
    with pytest.raises(ConfigError, match=r"'align': compile: the experts"):
        load_recipe("tiny", ["stages.align.compile=true", "model.moe={}"])
