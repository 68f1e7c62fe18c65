"""From a step to its samples: what `fovea data explain` names is what was trained."""

import json
import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import load_recipe
from trainer.explain import explain
from trainer.stage_stream import open_datasets, open_stream

STAGE = "align"


def explained(fovea, run: Path, step: int, *more: object) -> dict:
    words = ("--stage", STAGE, "--step", step, "--json", *more)  # the run is the one that the recipe lies in
    done = fovea("data", "explain", run / "recipe.yaml", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def made(run: Path, steps: int) -> list[dict[int, list[str]]]:
    """Ids of the samples that each of two ranks really gets, in each step."""
    recipe = load_recipe(run / "recipe.yaml")
    tokenizer = Tokenizer.load(run / "backbones" / "tokenizer")
    streams = [
        open_stream(
            recipe, recipe.stage(STAGE), run, open_datasets(recipe, run), tokenizer, rank=r, world_size=2
        )
        for r in range(2)
    ]
    found = []
    for _ in range(steps):
        batches = [s.next() for s in streams]
        found.append(
            {r: [i for b in bs for row in b.sample_ids for i in row] for r, bs in enumerate(batches)}
        )
    for s in streams:
        s.close()
    return found


def test_it_names_the_samples_that_each_rank_trained(trained, fovea) -> None:
    steps = made(trained, 12)
    for step in (1, 7, 12):
        found = explained(fovea, trained, step)
        assert found["recorded"] is True  # the same digest stands in metrics.jsonl
        by_rank: dict[int, list[str]] = {0: [], 1: []}
        for entry in found["entries"]:
            by_rank[entry["rank"]].append(entry["id"])
        assert by_rank == steps[step - 1]


def test_the_step_is_the_same_on_any_number_of_ranks_and_without_a_record(trained, prepared, fovea) -> None:
    recorded = explained(fovea, trained, 9)

    def content(found: dict) -> list:
        return sorted((e["source"], e["id"], e["piece"], e["tokens"]) for e in found["entries"])

    planned = explained(fovea, prepared, 9)  # never trained: planned from the first step on
    assert planned["recorded"] is None
    assert content(planned) == content(recorded)
    one = explained(fovea, trained, 9, "--nproc", 1)
    assert content(one) == content(recorded)
    assert {e["rank"] for e in one["entries"]} == {0}


def test_as_text_it_gives_a_line_for_each_document(trained, fovea) -> None:
    done = fovea("data", "explain", trained / "recipe.yaml", "--stage", STAGE, "--step", 3, "--run", trained)
    assert done.returncode == 0, done.stderr
    first, header, *lines = done.stdout.splitlines()
    assert first.startswith("step 3: ")
    assert first.endswith("as the run recorded")
    assert header.split() == ["rank", "micro", "row", "tokens", "images", "patches", "source", "id", "url"]
    assert len(lines) == len(explained(fovea, trained, 3)["entries"])


def test_another_recipe_than_the_run_had_is_an_error_not_a_wrong_answer(trained, fovea) -> None:
    done = fovea(
        "data", "explain", trained / "recipe.yaml", "--stage", STAGE, "--step", 3, "--run", trained, "seed=4"
    )
    assert done.returncode == 4
    assert "on other samples than this recipe and data give" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("step", [0, 13])
def test_a_step_that_the_stage_does_not_have_is_refused(trained, step: int) -> None:
    recipe = load_recipe(trained / "recipe.yaml")
    with pytest.raises(ConfigError, match=f"--step {step}: stage 'align' has the steps 1 to 12"):
        explain(recipe, recipe.stage(STAGE), trained, step, 1)


def test_measuring_beforehand_is_all_the_measuring_there_is(run_dir, fovea) -> None:
    done = fovea("data", "measure", run_dir / "recipe.yaml", "--run", run_dir, "--workers", 2)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["align:", "scenes_alt"],
        ["align:", "scenes_dense"],
        ["instruct:", "scenes_qa"],
        ["instruct:", "scenes_text"],
    ]
    before = sorted((run_dir / "sizes").glob("*.sizes"))
    assert len(before) == 4
    explained(fovea, run_dir, 1)
    assert sorted((run_dir / "sizes").glob("*.sizes")) == before
    altered = bytearray(before[0].read_bytes())
    altered[16] ^= 1
    before[0].write_bytes(altered)
    done = fovea("data", "measure", run_dir / "recipe.yaml", "--run", run_dir)
    assert done.returncode == 4
    assert f"sizes {before[0]} were altered" in done.stderr


def test_packed_rows_become_a_page(trained, fovea, tmp_path) -> None:
    words = ("--recipe", trained / "recipe.yaml", "--stage", STAGE, "--run", trained, "--step", 4)
    done = fovea("data", "preview", *words, "--rows", 2, "--out", tmp_path / "rows.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "rows.html").read_text(encoding="utf-8")
    ids = {e["id"] for e in explained(fovea, trained, 4)["entries"] if e["rank"] == 0}
    assert any(i in page for i in ids)
    assert page.startswith("<!DOCTYPE html>")
    incomplete = fovea("data", "preview", "--recipe", "tiny", "--out", tmp_path / "x.html")
    assert incomplete.returncode == 2
    assert "packed rows need --recipe and --stage" in incomplete.stderr
    nowhere = fovea("data", "preview", "--recipe", "tiny", "--stage", "align")
    assert nowhere.returncode == 2
    assert "say which run it is about, --run DIR" in nowhere.stderr
    neither = fovea("data", "preview", "--out", tmp_path / "x.html")
    assert neither.returncode == 2
    assert "say which dataset" in neither.stderr


@pytest.mark.slow
def test_changed_data_is_refused_and_goes_on_in_a_new_ledger_where_accepted(
    trained, tmp_path, fovea, metrics
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    last = metrics(run / STAGE)[-1]
    victim = explained(fovea, run, 12)["entries"][0]["id"]
    (tmp_path / "ids.txt").write_text(victim + "\n")
    gone = fovea("data", "withdraw", run / "data", "--ids", tmp_path / "ids.txt")
    assert gone.returncode == 0, gone.stderr
    train = (
        "train",
        run / "recipe.yaml",
        "--stage",
        STAGE,
        "--run",
        run,
        "--nproc",
        2,
        "stages.align.steps=14",
    )
    again = fovea(*train)
    assert again.returncode == 2, again.stderr
    assert "stage.steps" in again.stderr  # the length of a stage is part of it
    train = train[:-1]
    (run / STAGE / "checkpoints" / "step_000012").rename(tmp_path / "away")
    refused = fovea(*train)
    assert refused.returncode == 2
    assert "data: " in refused.stderr
    assert "--accept-changed-data" in refused.stderr
    accepted = fovea(*train, "--accept-changed-data")
    assert accepted.returncode == 0, accepted.stderr
    lines = metrics(run / STAGE)
    assert [line["ledger"] for line in lines] == [0] * 8 + [1] * 4
    assert lines[-1]["samples"] != last["samples"]
    assert victim not in {e["id"] for e in explained(fovea, run, 12)["entries"]}
