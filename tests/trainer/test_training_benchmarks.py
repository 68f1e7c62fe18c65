"""The benchmarks of a training step: the GPU's runs at toy size, and both sides of the CPU's see the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def gpu_model(*arguments):
    command = [sys.executable, str(BENCHMARKS / "gpu_model.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpus_benchmark_says_so():
    assert "no GPU here" in gpu_model()


def test_the_gpus_benchmark_runs_from_end_to_end_at_toy_size(tmp_path):
    out = tmp_path / "out.json"
    gpu_model(
        *["--small", "--lengths", "256", "--samples", "4", "--steps", "1", "--peak-tflops", "2"],
        "--out",
        str(out),
    )
    report = json.loads(out.read_text())
    assert report["stages"].keys() == {"pretrain-384", "instruct"}
    for stage in report["stages"].values():
        found = stage["256"]
        for way in ("flex", "sdpa"):
            assert found[way]["mfu"] == pytest.approx(found[way]["tflops"] / 2)
            assert sum(found[way]["shares"].values()) == pytest.approx(1)
        assert found["loss"]["flex"] == pytest.approx(found["loss"]["sdpa"], rel=1e-4)


@pytest.mark.parametrize("kind", ["mixed", "documents", "uniform"])
def test_packed_rows_and_padded_batches_hold_the_same_samples(kind, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from training_samples import Look, draw, packed, padded  # noqa: PLC0415

    look = Look(length=1024, vocabulary=64, smaller=16)
    samples = draw(kind, 9, look)
    rows, batch = packed(samples, 2), padded(samples)
    tokens = sum(map(len, samples))
    assert sum(int((b.document_ids > 0).sum()) for b in rows) == int(batch["attention_mask"].sum()) == tokens
    wanted = [torch.cat([b.labels[b.labels >= 0] for b in rows]), batch["labels"][batch["labels"] >= 0]]
    assert torch.equal(*(w.sort().values for w in wanted))
    patches = sum(len(b.patches) for b in rows)
    assert patches * 14**2 == int(batch["pixel_attention_mask"].sum())
    of_rows = torch.cat([b.patches for b in rows]).double().sum()
    levels = ((batch["pixel_values"].double() + 1) * 127.5)[
        batch["pixel_attention_mask"][:, :, None].expand(-1, -1, 3, -1, -1) > 0
    ]
    assert float(levels.sum()) == pytest.approx(float(of_rows), rel=1e-6)
    if kind == "uniform":
        assert {len(s) for s in samples} == {128}
