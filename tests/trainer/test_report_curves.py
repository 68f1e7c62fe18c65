"""The report's curves of benchmarks, from results as evaluation and watching write them."""

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from data_pipeline.manifest import write_json
from trainer.evaluation.config import Suite
from trainer.evaluation.outcome import outcome
from trainer.evaluation.question import Question
from trainer.evaluation.shown import extremes
from trainer.evaluation.suite_results import note_regressions
from trainer.evaluation.task import load_task
from trainer.observe.charts import Interval, interval_chart
from written_run import HOSTILE, make_run, picture, rendered

N = 40
PICTURE = base64.b64decode(picture(1).partition(",")[2])


def evaluated(run: Path, step: int, right: int, *, limit: int = N, name: str = "scenes") -> dict:
    """Scored by the real metric: `right` of N answers are, and every fourth of the blind ones."""
    task = load_task("scenes").model_copy(update={"name": name})
    records = [
        {
            "id": str(n),
            "unit": str(n),
            "prompt": "?",
            "raw": "yes" if n < right else "no",
            "blind_raw": "yes" if n % 4 == 0 else "no",
            "truths": ["yes"],
            "options": [],
            "about": {},
        }
        for n in range(N)
    ]
    result = {
        "format": 1,
        "task": name,
        "page": task.model_dump(mode="json"),
        "metric": task.metric,
        "n": N,
        "checkpoint": {"name": f"step_{step}", "digest": str(step)},
        "limit": limit,
        "of": 1146,
        "seed": 0,
        "status": "limited",
        **outcome(task, records, ()),
    }
    directory = run / "instruct" / "eval" / f"step_{step:06d}"
    directory.mkdir(parents=True, exist_ok=True)
    for r in records:
        r.setdefault("answer", r["raw"])
    (directory / "scenes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    write_json(directory / "scenes.json", result)
    questions = [Question(id=r["id"], images=(PICTURE,)) for r in records]
    write_json(directory / "scenes.examples.json", extremes(records, questions))
    return result


def watched(run: Path, step: int) -> None:
    """What `fovea watch` notes once that step is evaluated."""
    note_regressions(run / f"instruct/eval/step_{step:06d}", "quick", Suite(tasks=("scenes",), limit=N))


def section(run: Path) -> str:
    html = rendered(run)
    found = html[html.index('<section id="benchmarks">') :]
    return found[: found.index("</section>")]


def heights(svg: str, kind: str) -> list[float]:
    return [
        float(y) for y in re.findall(rf'<circle cx="[\d.]+" cy="([\d.]+)" r="3.5" style="fill:{kind}"', svg)
    ]


def test_a_task_has_a_curve_with_intervals_and_its_blind_twin(tmp_path):
    run = make_run(tmp_path / "run")
    pages = [evaluated(run, step, right) for step, right in ((100, 20), (200, 30), (300, 40))]
    found = section(run)
    assert found.count("<svg") == 1
    assert "scenes, instruct" in found
    assert "folded of 40 of 1,146 samples" in found
    svg = found[found.index("<svg") : found.index("</svg>") + 6]
    ET.fromstring(svg)
    own, blind = heights(svg, r"var\(--accent\)"), heights(svg, r"var\(--blind\)")
    assert own[0] > own[1] > own[2]  # down the page is less
    assert own[0] - own[1] == pytest.approx(own[1] - own[2], abs=0.2)  # 0.5, 0.75, 1
    assert len(set(blind)) == 1
    assert blind[0] > own[0]
    bars = [
        (float(low), float(high))
        for low, high in re.findall(r'class="whisker" d="M[\d.]+ ([\d.]+)V([\d.]+)M', svg)
    ]
    assert len(bars) == 6
    low, high = pages[1]["interval_95"]["folded"]
    per_unit = (own[0] - own[2]) / 0.5
    middle = bars[3 + 1]
    assert middle[0] - middle[1] == pytest.approx((high - low) * per_unit, abs=0.3)
    assert f"0.75 [{low:.4g}, {high:.4g}]" in found
    assert "▼" not in found


def test_the_latest_score_of_a_task_stands_at_the_top_with_its_interval_and_the_blind_one(tmp_path):
    run = make_run(tmp_path / "run")
    for heldout in run.glob("*/eval"):
        shutil.rmtree(heldout)
    assert "no evaluation yet" in rendered(run)
    evaluated(run, 100, 40)
    low, high = evaluated(run, 200, 30)["interval_95"]["folded"]
    broken = evaluated(run, 300, 40) | {"status": "incomplete", "scores": None, "missing_n": 3}
    write_json(run / "instruct/eval/step_000300/scenes.json", broken)
    html = rendered(run)
    cards = html[html.index('<div class="cards">') : html.index("<nav")]
    assert "no evaluation yet" not in html
    assert (
        '<span class="label">scenes</span><b>0.75</b><span class="note">'
        f"folded [{low:.4g}, {high:.4g}], blind 0.25; 40 of 1,146 samples; instruct, step 200</span>"
    ) in cards


def test_the_best_and_the_worst_answers_of_the_last_checkpoint_stand_there_with_their_pictures(tmp_path):
    run = make_run(tmp_path / "run")
    evaluated(run, 100, 10)
    evaluated(run, 200, 30)
    found = section(run)
    best, worst = found[found.index("Best answers") :].split("Worst answers")
    # Of forty thirty are right, and blind every fourth: first those for which the picture mattered most.
    assert re.findall(r'alt="held-out image (\d+)"', best) == ["1", "2", "3", "5", "6", "7"]
    assert re.findall(r'alt="held-out image (\d+)"', worst) == ["36", "32", "39", "38", "37", "35"]
    assert "score 1, blind 0" in best
    assert "score 0, blind 1" in worst
    assert found.count('<img src="data:image/png;base64,') == 12


def test_what_changed_since_the_checkpoint_before_is_shown_sample_by_sample(tmp_path):
    run = make_run(tmp_path / "run")
    evaluated(run, 100, 20)
    assert "From step" not in section(run)
    evaluated(run, 200, 17)
    evaluated(run, 300, 19)
    found = section(run)
    assert "From step 200 to 300: 2 samples better, 0 worse, of 40" in found
    row = "<tr><td>?</td><td>yes</td><td>no</td><td>yes</td>" + '<td class="num">+1</td></tr>'
    assert found.count(row) == 2
    (run / "instruct/eval/step_000300/scenes.jsonl").unlink()
    assert "From step" not in section(run)


def test_hostile_examples_make_a_page_without_them(tmp_path):
    run = make_run(tmp_path / "run")
    evaluated(run, 100, 20)
    shown = {"id": HOSTILE, "prompt": HOSTILE, "answer": None, "score": "x", "image": "http://x/a.png"}
    directory = run / "instruct/eval/step_000100"
    write_json(directory / "scenes.examples.json", {"best": [shown, 3], "worst": {"a": 1}})
    found = section(run)
    assert "<script" not in found
    assert "http://x" not in found
    assert "Worst answers" not in found
    (directory / "scenes.examples.json").write_text("[")
    assert "Best answers" not in section(run)


def test_a_regression_that_watching_noted_is_flagged_at_its_step(tmp_path):
    run = make_run(tmp_path / "run")
    for step, right in ((100, 20), (200, 40), (300, 10), (400, 39)):
        evaluated(run, step, right)
        watched(run, step)
    found = section(run)
    assert re.findall(r"▼ worse at (step \d+: folded \S+) \[.*\] against (step_\d+)", found) == [
        ("step 300: folded -0.75", "step_000200")
    ]  # one of forty is no sure change
    rings = re.findall(r'cx="([\d.]+)" cy="[\d.]+" r="7"', found)
    dots = re.findall(r'cx="([\d.]+)" cy="[\d.]+" r="3.5" style="fill:var\(--accent\)"', found)
    assert rings == [dots[2]]


def test_what_was_asked_otherwise_has_a_chart_of_its_own_and_what_is_incomplete_none(tmp_path):
    run = make_run(tmp_path / "run")
    evaluated(run, 100, 20)
    evaluated(run, 200, 30, limit=7)
    page = evaluated(run, 300, 30)
    page |= {"status": "incomplete", "scores": None, "missing_n": 3}
    write_json(run / "instruct/eval/step_000300/scenes.json", page)
    found = section(run)
    assert found.count("<svg") == 2
    assert "instruct, step 300: scenes, 3 samples" in found


def test_a_broken_or_hostile_result_makes_a_page_all_the_same(tmp_path):
    run = make_run(tmp_path / "run")
    page = evaluated(run, 100, 20, name=HOSTILE)
    evaluated(run, 200, 20)
    directory = run / "instruct/eval"
    odd = page | {
        "scores": {"folded": None},
        "interval_95": {"folded": [1]},
        "blind": 3,
        "n": None,
        "of": "x",
    }
    write_json(directory / "step_000200/scenes.json", odd)
    (directory / "step_000200/quick.regressions.json").write_text('[3, {"task": "scenes"}]')
    (directory / "step_000300").mkdir()
    (directory / "step_000300/scenes.json").write_text('{"task": ')
    html = rendered(run)
    assert "step_000300/scenes.json: not JSON" in html
    assert "<script" not in html
    assert rendered(make_run(tmp_path / "other")).count('id="benchmarks"') == 0


@pytest.mark.parametrize("rows", [[], [(1, 0.5, None, None)], [(1, 2.0, 2.0, 2.0), (5, -1.0, -2.0, 0.0)]])
def test_an_interval_chart_of_any_values_is_well_formed(rows):
    series = Interval(*([r[i] for r in rows] for i in range(4)))
    svg = interval_chart(series, Interval([], [], [], []), [1], label='a "b" <c>')
    ET.fromstring(svg)
    assert svg.count('r="7"') == (1 if rows else 0)
