"""Two results compared sample by sample, and what the documentation shows of both."""

import doctest
import json
import re
import shlex
import shutil

import pytest

from benchmark_runs import N, page, run, written
from data_pipeline.errors import ConfigError, DataError
from documentation import BLOCKS
from trainer.cli import main
from trainer.distributed import alone
from trainer.evaluation.comparison import compare_results, open_results
from trainer.evaluation.task import load_task
from trainer.subject import open_subject


@pytest.fixture(scope="module")
def two(trained, opened, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    before = open_subject(alone(), trained / "align", 4)
    for name, subject in (("a", before), ("b", opened)):
        run(subject, data, out / name, page("coco_captions"), page("pope"), page("coco_retrieval"))
    return out


def test_a_comparison_is_the_difference_of_the_two_scores_with_every_sample(two):
    a, b = (open_results(two / d) for d in "ab")
    for name, value in (
        ("coco_captions", "CIDEr"), ("pope", "accuracy"), ("coco_retrieval", "image_retrieval_recall@1"),
    ):  # fmt: skip
        found = compare_results(a[name], b[name])
        difference = found["differences"][value]
        pages = [json.loads((two / d / f"{name}.json").read_text()) for d in "ab"]
        assert difference["difference"] == pytest.approx(
            pages[1]["scores"][value] - pages[0]["scores"][value]
        )
        assert difference["interval_95"][0] <= difference["difference"] <= difference["interval_95"][1]
        assert len(found["samples"]) == N
        alone_ = {r["id"]: r["score"] for r in written(two / "b", name)}
        assert all(s["b"]["score"] == pytest.approx(alone_[s["id"]]) for s in found["samples"])
        assert found["better"] - found["worse"] == sum(
            (s["difference"] > 0) - (s["difference"] < 0) for s in found["samples"]
        )


def test_other_samples_or_other_right_answers_are_refused(two, opened, data, tmp_path):
    run(opened, data, tmp_path, page("pope"), limit=7)
    whole = open_results(two / "b/pope.json")["pope"]
    with pytest.raises(DataError, match="different samples: 5 are only in"):
        compare_results(whole, open_results(tmp_path)["pope"])
    shutil.copy(two / "b/pope.json", tmp_path / "pope.json")
    rows = written(two / "b", "pope")
    rows[2]["truths"] = ["maybe"]
    (tmp_path / "pope.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError, match="other right answers for " + rows[2]["id"]):
        compare_results(whole, open_results(tmp_path)["pope"])


def test_compare_prints_the_samples_that_changed_and_writes_all(two, tmp_path, capsys):
    words = ["compare", two / "a", two / "b", "--samples", 2, "--json", tmp_path / "all.json"]
    assert main([str(w) for w in words]) == 0
    printed = capsys.readouterr().out
    assert "coco_captions: CIDEr" in printed
    assert sum("(right:" in line for line in printed.splitlines()) in range(1, 7)
    found = json.loads((tmp_path / "all.json").read_text())
    assert [f["task"] for f in found] == ["coco_captions", "coco_retrieval", "pope"]
    assert main(["compare", str(two), str(two / "b")]) == ConfigError.exit_code


def shown_sessions() -> list[tuple[list[str], str]]:
    """Each benchmark command of the page, with the output that is shown below it."""
    found = []
    for block in BLOCKS:
        if block.page == "docs/evaluation.md" and block.language == "console":
            for part in re.split(r"^\$ fovea ", block.text, flags=re.MULTILINE)[1:]:
                line, _, output = part.partition("\n")
                if re.search("--task|--hashes|^compare", line):
                    found.append((shlex.split(line), output))
    return found


def shape(text: str) -> list[str]:
    """The lines without their numbers, and without the samples that changed."""
    return [re.sub(r"[+-]?[\d.]+(e-\d+)?", "#", line) for line in text.splitlines() if "(right:" not in line]


def test_the_shown_commands_run_and_print_what_is_shown_but_for_the_numbers(
    trained, tmp_path, monkeypatch, capsys
):
    """On the tests' small run in place of the demo's."""
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "runs/demo"
    run_dir.mkdir(parents=True)
    for name, target in (("instruct", "instruct"), ("adapt", "align"), ("data", "data")):
        (run_dir / name).symlink_to(trained / target)
    sessions = shown_sessions()
    assert len(sessions) == 6
    for argv, output in sessions:
        capsys.readouterr()
        code = main(argv)
        seen = capsys.readouterr()
        assert (code != 0) == output.startswith("fovea: ")
        if "..." in output:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(output, seen.out, flags)
        else:
            # Libraries that other tests have imported may show their bars on the standard error.
            assert shape(seen.err if code else seen.out) == shape(output)


def test_the_shown_task_page_loads_and_the_shown_sample_has_the_fields_of_a_sample(tmp_path, opened, data):
    blocks = [b for b in BLOCKS if b.page == "docs/evaluation.md"]
    page_shown = next(b for b in blocks if b.file == "mine.yaml")
    (tmp_path / "mine.yaml").write_text(page_shown.text, encoding="utf-8")
    assert load_task(str(tmp_path / "mine.yaml")).n == 40
    sample = next(json.loads(b.text) for b in blocks if b.language == "json" and "blind_raw" in b.text)
    run(opened, data, tmp_path, page("ai2d"))
    assert list(written(tmp_path, "ai2d")[0]) == list(sample)
