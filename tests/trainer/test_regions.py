"""Compiled regions give what eager ones give, are compiled a few times in all, and keep their names.

The fast tests trace as inductor does and run what was traced by ATen's own kernels.
"""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from data_pipeline.errors import ConfigError
from modalities import CASES, batch_of, model_of, stage_of
from trainer.config import load_recipe
from trainer.models.cross_attention import is_gate
from trainer.models.regions import compile_regions

PLAIN, CROSSED = CASES["all trained"], CASES["cross-attention"]


def pair(backend, every=False, case=PLAIN):
    """The same model twice, the second compiled."""
    torch.compiler.reset()
    counters.clear()
    eager, compiled = (model_of(case, stage_of(case, 1, 1)) for _ in range(2))
    for model in (eager, compiled):
        model.enable_activation_checkpointing(every)
        with torch.no_grad():  # a fresh gate is shut
            for name, gate in model.named_parameters():
                if is_gate(name):
                    gate.fill_(0.5)
    assert len(compile_regions(compiled, backend)) == (5 if case is CROSSED else 4)
    return eager, compiled


def compare(eager, compiled, steps, case=PLAIN):
    """Losses and gradients on batches of other pictures each, some with none."""
    for step in steps:
        batch = batch_of(case, step, 0, 0)
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


def test_cross_attention_blocks_are_compiled_in_few_graphs_whatever_the_number_of_pictures():
    eager, compiled = pair("aot_eager", {"cross_attention": 1}, CROSSED)
    compare(eager, compiled, range(4), CROSSED)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= 8
    compare(eager, compiled, range(4, 8), CROSSED)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("case", [PLAIN, CROSSED], ids=["spliced", "crossed"])
def test_inductor_equals_eager_forward_and_backward(case):
    compare(*pair("inductor", {"language": 2}, case), range(4), case)


def test_experts_are_not_compiled():
    load_recipe("tiny", ["stages.align.compile=true"])
    with pytest.raises(ConfigError, match=r"'align': compile: the experts"):
        load_recipe("tiny", ["stages.align.compile=true", "model.moe={}"])
