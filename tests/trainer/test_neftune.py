"""NEFTune against the paper's formula, per document, on text only, while training only."""

import itertools
import math

import pytest
import torch

from packed_rows import make_model, pack
from trainer.models.neftune import noisy

DOCUMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0], [1] + [2] * 10])
LENGTHS = torch.tensor([[3] * 3 + [6] * 6 + [2] * 2, [1] + [10] * 10])
ALPHA, WIDTH = 5.0, 64


def test_the_noise_is_uniform_of_the_papers_size_by_document():
    torch.manual_seed(0)
    clean = torch.randn(2, 11, WIDTH)
    noise = noisy(clean, DOCUMENTS, ALPHA) - clean
    torch.manual_seed(0)
    torch.randn(2, 11, WIDTH)
    drawn = torch.rand(2, 11, WIDTH) * 2 - 1  # uniform between -1 and 1, from the same numbers
    for b, t in itertools.product(range(2), range(11)):
        bound = ALPHA / math.sqrt(int(LENGTHS[b, t]) * WIDTH)
        torch.testing.assert_close(noise[b, t], bound * drawn[b, t], rtol=1e-5, atol=1e-6)


def test_its_norm_is_what_the_paper_expects():
    """For components uniform in (-1, 1) the L x d of a document have the norm alpha / sqrt(3)."""
    torch.manual_seed(0)
    documents = torch.ones(1, 500, dtype=torch.int64)
    noise = noisy(torch.zeros(1, 500, 256), documents, ALPHA)
    assert noise.norm().item() == pytest.approx(ALPHA / math.sqrt(3), rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=1e-4)
    assert noisy(torch.zeros(1, 500, 256).bfloat16(), documents, ALPHA).dtype == torch.bfloat16


def test_a_model_adds_it_to_text_while_training_and_never_to_pictures():
    model, batch = make_model("image_full"), pack(["i g2 w4", "g3 i w2"])
    model.neftune_alpha = ALPHA
    clean = model.embed(batch)
    assert clean.equal(model.embed(batch))  # evaluating
    model.train()
    torch.manual_seed(0)
    first = model.embed(batch)
    moved = (first != clean).any(-1)
    assert moved.equal(batch.image_ids == 0)
    torch.manual_seed(0)
    assert first.equal(model.embed(batch))
    assert not first.equal(model.embed(batch))
    model.neftune_alpha = 0.0
    assert clean.equal(model.embed(batch))


def test_a_stage_trains_with_its_alpha(run_dir, trained, fovea, metrics):
    """The trained run has 5. What a resumed run draws is compared in test_resume.py."""
    done = fovea(
        "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2,
        "stages.align.neftune_alpha=0", "stages.align.steps=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (without,), with_noise = metrics(run_dir / "align"), metrics(trained / "align")[0]
    assert without["samples"] == with_noise["samples"]
    assert abs(without["loss"] - with_noise["loss"]) > 1e-3
