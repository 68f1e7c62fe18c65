"""The figures of a step: each against another way to come to it, and all of them on a real run."""

import math
from dataclasses import asdict

import pytest
import torch

import crossed_model
from data_pipeline.batch import IGNORE
from data_pipeline.image_spec import PixelShuffle
from data_pipeline.stream.rows import Placed
from packed_rows import SPEC, make_model, pack
from trainer.config import Recipe, Stage
from trainer.distributed import alone
from trainer.figures import Figures
from trainer.models.config import Model
from trainer.models.cross_attention import lay_out
from trainer.models.flops import training
from trainer.models.load import load_of
from trainer.models.masks import dense_mask
from trainer.observe.peaks import peak_tflops

STAGE = {
    "name": "s",
    "init_from": "backbones",
    "train": {"connector": 1.0, "language": 1.0},
    "mixture": {"pairs": 1, "pages": 1, "unseen": 1},
    "steps": 10,
    "global_batch": 2,
    "micro_batch": 2,
    "sequence_length": 32,
    "lr": 1e-3,
}
ROWS = (["i g2 w4", "g3 w5"], ["w6", "i i g1 w3", "g4"])
FROM = (("pairs", "pages"), ("pages", "pairs", "pages"))


def placed(source):
    return Placed(source, 0, 0, 0, 0, 0, 0, 0)


def figures(model, **observe):
    stage = Stage(**STAGE)
    recipe = Recipe(
        name="r",
        model=Model(image=SPEC, connector=PixelShuffle(factor=2)),
        stages=(stage,),
        observe=observe,
    )
    return Figures(recipe, stage, model, alone())


def added(model, batch, **observe):
    found = figures(model, **observe)
    model(batch)
    found.add(batch, [tuple(map(placed, row)) for row in FROM], model.target_losses)
    return found


def test_the_loss_of_a_source_is_that_of_a_batch_with_its_targets_alone():
    model, batch = make_model("image_full"), pack(*ROWS)
    found = added(model, batch).of_step(tokens=60, images=3)
    for source in ("pairs", "pages"):
        theirs = torch.zeros_like(batch.labels, dtype=torch.bool)
        for row, sources in enumerate(FROM):
            for number, name in enumerate(sources, start=1):
                theirs[row] |= (batch.document_ids[row] == number) & (name == source)
        only = torch.where(theirs, batch.labels, IGNORE)
        count = int((only != IGNORE).sum())
        twin = type(batch)(**{**vars(batch), "labels": only})
        assert found[f"target_tokens/{source}"] == count > 0
        assert found[f"loss/{source}"] == pytest.approx(float(model(twin).detach()) / count, rel=1e-5)
    assert "loss/unseen" not in found


def test_a_step_begins_with_nothing_of_the_one_before():
    model, batch = make_model("image_full"), pack(*ROWS)
    twice = added(model, batch)
    first = twice.of_step(60, 3)
    model(batch)
    twice.add(batch, [tuple(map(placed, row)) for row in FROM], model.target_losses)
    memory = {"host_memory_gib": 0}
    assert twice.of_step(60, 3) | memory == first | memory


@pytest.mark.parametrize("mask", ["causal", "image_full", "prefix_full"])
def test_the_pairs_of_a_batch_are_those_that_its_mask_lets_through(mask):
    model, batch = make_model(mask), pack(*ROWS, length=40)
    see = model.see(batch.document_ids, batch.image_ids, batch.labels)
    seen = dense_mask(see, *batch.input_ids.shape, "cpu")[:, 0]
    assert load_of(model, batch).pairs == int(seen[batch.document_ids > 0].sum())


def test_a_window_bounds_the_pairs():
    model, batch = make_model("causal", sliding_window=4), pack(*ROWS, length=40)
    see = model.see(batch.document_ids, batch.image_ids, batch.labels)
    seen = dense_mask(see, *batch.input_ids.shape, "cpu")[:, 0]
    assert load_of(model, batch).pairs == int(seen[batch.document_ids > 0].sum())


def test_the_pairs_of_cross_attention_are_those_that_its_blocks_read():
    model, some = crossed_model.make_model(), crossed_model.picture
    batch = crossed_model.pack([[2, some(0), 3], [1, some(1), some(2), 2]], [[4], [5, some(3), 6]])
    media = lay_out(torch.zeros(len(batch.grids), crossed_model.LATENTS, 32), batch)
    assert load_of(model, batch).read == int((media.seen[:, 0] & media.reads).sum()) > 0


def test_padding_asks_nothing_of_a_model():
    model = make_model("image_full")
    assert load_of(model, pack(*ROWS)) == load_of(model, pack(*ROWS, length=64))


def test_flops_are_those_of_the_formula_and_mfu_is_their_share_of_the_peak():
    model, batch = make_model("image_full"), pack(*ROWS)
    found = added(model, batch, peak_tflops=2.0)
    metrics = found.of_step(tokens=60, images=3)
    page, vision, language = model.config, model.vision.config.to_dict(), model.language.config.to_dict()
    want = asdict(training(page, vision, language, load_of(model, batch), Stage(**STAGE).train))
    got = {k.removeprefix("tflops/"): v for k, v in metrics.items() if k.startswith("tflops/")}
    assert got == pytest.approx({k: v / 1e12 for k, v in want.items() if v})
    speed = found.speed(metrics | {"step_s": 0.5})
    assert speed["mfu"] == pytest.approx(sum(want.values()) / (0.5 * 2e12))
    assert speed["mfu/language"] == pytest.approx(want["language"] / 1e12)
    assert sum(v for k, v in speed.items() if "/" in k) == pytest.approx(speed["mfu"])


def test_without_a_known_peak_there_is_no_mfu():
    model = make_model("image_full")
    assert figures(model).speed({"step_s": 1.0, "tflops": 1.0}) == {}
    assert peak_tflops("AMD EPYC") is None


def test_devices_are_known_by_the_names_that_cuda_gives_them():
    names = ("H100 80GB HBM3", "H100 PCIe", "H200", "A100-SXM4-80GB", "B200")
    assert [peak_tflops(f"NVIDIA {n}") for n in names] == [989.5, 756.0, 989.5, 312.0, 2250.0]


def test_on_two_real_ranks_the_parts_sum_to_the_whole(trained, metrics):
    for stage, sources in (("align", 2), ("instruct", 2)):
        lines = metrics(trained / stage)
        for m in lines:
            counts = {k.split("/")[1]: v for k, v in m.items() if k.startswith("target_tokens/")}
            assert sum(counts.values()) == m["target_tokens"]
            summed = sum(m[f"loss/{s}"] * n for s, n in counts.items())
            assert summed / m["target_tokens"] == pytest.approx(m["loss"], rel=1e-5)
            parts = sum(v for k, v in m.items() if k.startswith("tflops/"))
            assert m["tflops"] == pytest.approx(parts)
            assert m["mfu"] == pytest.approx(parts / (m["step_s"] * 0.01 * 2))
            assert 0.05 < m["host_memory_gib"] < 8
            assert m["image_text_ratio"] > 0
        assert len({k for m in lines for k in m if k.startswith("loss/")}) == sources
    by_module = [m for m in metrics(trained / "align") if "grad_norm/connector" in m]
    assert [m["step"] for m in by_module] == [3, 6, 9, 12]
    for m in by_module:
        norms = [v for k, v in m.items() if k.startswith("grad_norm/")]
        assert len(norms) == 2
        assert math.hypot(*norms) == pytest.approx(m["grad_norm"], rel=1e-4)
        for module in ("connector", "new_tokens"):
            assert m[f"update_norm/{module}"] < m[f"weight_norm/{module}"]
            assert (m[f"update_norm/{module}"] > 0) == (m["lr"] > 0)
