"""The report page: whole from the run directory alone, safe to open, and there for partial runs too."""

import base64
import io
import json
import math
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from data_pipeline.manifest import Funnel, Manifest, TaskRecord, write_manifest
from trainer.observe.charts import Line, Pair, bar_chart, line_chart, log_ticks, moving_mean, tick_text, ticks
from trainer.observe.report import write_report
from trainer.observe.wording import compact, duration, number, percent, points

STAGES = ("align", "pretrain", "documents", "instruct")
HOSTILE = '<script>alert(1)</script> a "red" cube & it\'s <img src=x onerror=y>'


def picture(seed: int) -> str:
    rng = random.Random(seed)
    image = Image.new("RGB", (96, 96), (40, 44, 52))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y, r = rng.randint(12, 70), rng.randint(12, 70), rng.randint(8, 18)
        draw.ellipse((x, y, x + r, y + r), fill=tuple(rng.randint(60, 255) for _ in range(3)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def example(i: int) -> dict:
    right = i % 4 != 3
    task = "vqa" if i % 2 else "caption"
    return {
        "task": task,
        "id": f"scene-{i}",
        "image": picture(i),
        "prompt": "What colour is the ball?" if task == "vqa" else "Describe the image.",
        "answer": HOSTILE if i == 0 else ("red" if right else "green"),
        "blind_answer": "blue",
        "truth": ["red", "red"] if task == "vqa" else ["a red ball left of a small cube"],
        "correct": right,
    }


def write_stage(run: Path, name: str, index: int, steps: int = 150) -> None:
    rng = random.Random(index)
    (run / name).mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        seconds = 0.4 + 0.05 * rng.random() + (3 if step == 1 else 0)
        record = {
            "stage": name,
            "step": step,
            "loss": 5 * math.exp(-step / 30) + 0.3 + 0.08 * rng.random(),
            "lr": 1e-3 * min(1, step / 10) * (1 + math.cos(math.pi * step / steps)) / 2,
            "grad_norm": 2 * math.exp(-step / 40) + 0.2 + 0.2 * rng.random(),
            "tokens": 4000,
            "target_tokens": 900,
            "images": 32,
            "tokens_per_s": 4000 / seconds,
            "step_s": seconds,
            "time": 1.7e9 + step,
        }
        lines.append(json.dumps(record))
    (run / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_evaluation(run: Path, name: str, index: int) -> None:
    kinds = {"colour": 0.95, "count": 0.62, "shape": 0.9, "where": 0.7, "yes/no": 0.99}
    results = {
        "stage": name,
        "step": 150,
        "captions": {
            "n": 200,
            "CIDEr": 2.1 * index,
            "CIDEr_blind": 0.41,
            "exact": 0.22 * index,
            "exact_blind": 0.01,
        },
        "vqa": {
            "n": 400,
            "accuracy": 0.25 + 0.2 * index,
            "accuracy_blind": 0.31,
            "per_question_type": kinds,
            "per_question_type_blind": {k: v / 2 for k, v in kinds.items()},
        }
        if index
        else None,
        "loss": {"n": 200, "right_image": 0.412, "wrong_image": 1.937},
    }
    directory = run / name / "eval" / "step_150"
    directory.mkdir(parents=True)
    (directory / "results.json").write_text(json.dumps(results))
    (directory / "examples.json").write_text(json.dumps([example(i) for i in range(12)]))


def write_dataset(directory: Path) -> None:
    funnel = {
        "scenes": Funnel(
            read=12000, written=11210, dropped={"too_small": 300, "near_duplicate": 440, "no_text": 50}
        ),
        "pages": Funnel(
            read=900, written=610, dropped={"language": 120, "decontaminated": 20, "too_short": 150}
        ),
        "dialogues": Funnel(read=5000, written=5000),
    }
    task = TaskRecord(
        task=0, tasks=1, fingerprint="f", shards=(), funnel=funnel, bad_inputs=({"file": "a.pdf"},)
    )
    licences = {"scenes": "CC0-1.0", "pages": "CC-BY-4.0"}
    write_manifest(
        directory,
        Manifest(name="demo", fingerprint="f", recipe={}, licences=licences, unread=(), tasks=(task,)),
    )


def write_recipe(run: Path) -> None:
    recipe = {
        "name": "demo",
        "data": {"datasets": ["data"]},
        "model": {
            "architecture": "autoregressive",
            "image": {"side": 64},
            "connector": {"kind": "pixel_shuffle"},
        },
        "backbones": {"vision": {"width": 128, "layers": 3}, "language": {"width": 192, "layers": 4}},
        "stages": [
            {
                "name": s,
                "steps": 150,
                "train": {"connector": 1.0, "language": {"dora": {"rank": 8}, "lr": 0.1}},
                "mixture": {"scenes": 2, "pages": 1},
            }
            for s in STAGES
        ],
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def make_run(run: Path) -> Path:
    """A finished run of four stages."""
    write_recipe(run)
    (run / "run.json").write_text(
        json.dumps(
            {
                "name": "demo",
                "created": "2026-01-02T03:04:05Z",
                "command": "fovea demo",
                "seed": 0,
                "world_size": 2,
                "zero_stage": 3,
            }
        )
    )
    (run / "env.json").write_text(
        json.dumps({"python": "3.11.9", "cores": 2, "memory_gib": 7.7, "torch": "2.13.0"})
    )
    (run / "summary.json").write_text(json.dumps({"wall_s": 512.25, "passed": True, "scores": {}}))
    (run / "commands.txt").write_text(
        "fovea data build demo --out runs/demo/data\n"
        + "".join(f"fovea train demo --stage {s} --run runs/demo\n" for s in STAGES)
    )
    for i, name in enumerate(STAGES):
        write_stage(run, name, i)
        write_evaluation(run, name, i)
    write_dataset(run / "data")
    return run


@pytest.fixture
def page(tmp_path):
    out = tmp_path / "report.html"
    write_report(make_run(tmp_path / "run"), out)
    return out.read_text(encoding="utf-8")


def test_all_stages_appear_with_their_curves_and_scores(page):
    for name in STAGES:
        assert f"Loss of stage {name}, by step" in page
        assert page.count(f">{name}<") >= 3
    for found in (
        "85.0 %",
        "31.0 % with another image",
        "66.0 %",
        "6.30",
        "0.412",
        "1.937",
        "yes/no",
        "up to 64 pixels",
        "8 min 32 s",
        "connector, language (dora)",
    ):
        assert found in page


def test_the_funnel_says_every_reason(page):
    assert "12,000 read → 11,210 written (93.4 %)" in page
    assert "near duplicate 440, too small 300, no text 50" in page
    assert "nothing dropped" in page
    assert "Inputs that could not be read: 1" in page


def test_each_dataset_of_the_recipe_has_its_funnel(tmp_path):
    run = tmp_path / "run"
    write_recipe(run)
    path = run / "recipe.resolved.yaml"
    path.write_text(path.read_text().replace("  - data\n", "  - data\n  - more\n"))
    write_dataset(run / "data")
    write_dataset(run / "more")
    write_report(run, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("12,000 read") == 2


def test_model_answers_are_escaped(page):
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_page_calls_nothing_outside_itself(page):
    tags = " ".join(re.findall(r"<[^>]*>", page))
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s]{,11})""", tags)
    assert len(addresses) == 5 + 12
    assert all(a.startswith(("#", "data:image/")) for a in addresses)
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


def write_incident(run: Path, step: int, **changes) -> None:
    directory = run / "align" / "incidents" / f"step_{step:06d}"
    directory.mkdir(parents=True)
    sample = {
        "id": HOSTILE,
        "source": "scenes",
        "rank": 1,
        "tokens": 24,
        "url": "https://example.org/a?b=1&c=2",
        "text": HOSTILE,
        "thumbnails": [picture(step), "https://example.org/tracker.png", 3],
    }
    about = {
        "step": step,
        "reason": "the gradient norm is inf",
        "action": "skip",
        "loss": 6.1,
        "grad_norm_by_module": {"connector": "nan", "language": 2.0},
        "time": 1e9 + step,
        "samples": [sample, "no sample"],
    }
    (directory / "incident.json").write_text(json.dumps(about | changes))


def rendered(run: Path) -> str:
    write_report(run, run / "report.html")
    return (run / "report.html").read_text(encoding="utf-8")


def test_an_incident_is_shown_with_its_samples_and_all_of_it_is_escaped(tmp_path):
    run = make_run(tmp_path / "run")
    write_incident(run, 7)
    write_incident(run, 9, reason=HOSTILE, samples="none", grad_norm_by_module=3)
    html = rendered(run)
    section = html[html.index('id="incidents"') :]
    section = section[: section.index("</section>")]
    assert "align, step 7: the gradient norm is inf" in section
    assert section.index("step 9") < section.index("step 7")  # the newest first
    assert section.count("<img") == 1
    assert picture(7) in section
    assert "tracker.png" not in section
    assert "connector nan, language 2" in section
    assert "<script" not in html
    assert section.count("&lt;script&gt;") == 4  # a reason; an id, beside its picture and in its text; a text
    assert rendered(make_run(tmp_path / "other")).count('id="incidents"') == 0


def test_of_many_incidents_the_last_ones_are_shown_and_all_are_counted(tmp_path):
    run = make_run(tmp_path / "run")
    for step in range(1, 15):
        write_incident(run, step)
    html = rendered(run)
    assert "The last 12 of 14" in html
    assert "step 2:" not in html
    assert "step 3:" in html


def test_losses_by_source_norms_by_module_and_mfu_are_drawn(tmp_path):
    run = make_run(tmp_path / "run")
    path = run / "align" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for m in lines:
        m |= {"loss/scenes": 1.0 / m["step"], "loss/pages": 2.0, "mfu": 0.4, "host_memory_gib": 1.0}
        m |= {"grad_norm/connector": 1.0} if m["step"] % 10 == 0 else {}
    path.write_text("".join(json.dumps(m) + "\n" for m in lines))
    html = rendered(run)
    for title in ("Loss by source, align", "Gradient norm by module, align", "Model FLOPs utilisation"):
        assert f"<h3>{title}</h3>" in html
    chart = html[html.index("Loss by source, align") :]
    assert chart.index("pages") < chart.index("scenes") < chart.index("</div>")


def test_the_bar_of_the_wall_time_adds_up(tmp_path):
    run = make_run(tmp_path / "run")
    start = {"event": "start", "time": 1.7e9 - 1, "began": 1.7e9 - 60, "step": 0, "before": None}
    (run / "align" / "timeline.jsonl").write_text(json.dumps(start) + "\n")
    html = rendered(run)
    section = html[html.index("Where the time went") :]
    section = section[: section.index("</section>")]
    widths = [float(w) for w in re.findall(r'class="part-\w+" style="width: ([\d.]+)%', section)]
    assert len(widths) >= 3
    assert sum(widths) == pytest.approx(100, abs=0.01)
    assert section.count('class="row"') == 1  # of the stage that has a timeline


def test_right_and_wrong_are_words_not_only_colours(page):
    assert page.count("✓ right") == 9
    assert page.count("✗ wrong") == 3


def test_an_image_that_is_an_address_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    path = run / "instruct" / "eval" / "step_150" / "examples.json"
    hostile = [
        {**example(0), "image": "https://example.org/x.png"},
        {**example(1), "image": 'data:x" onload="y'},
    ]
    path.write_text(json.dumps(hostile))
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "example.org" not in page
    assert "onload" not in page
    assert page.count("no image kept") == 2


# --- partial runs


def test_an_empty_directory_makes_a_page_that_says_so(tmp_path):
    (tmp_path / "run").mkdir()
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for said in (
        "No stage has started",
        "No metrics yet",
        "No evaluation yet",
        "No examples yet",
        "No manifest",
    ):
        assert said in page


def test_a_run_with_a_recipe_and_no_step_yet(tmp_path):
    write_recipe(tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "align → pretrain → documents → instruct" in page
    assert "No metrics yet" in page


def test_one_stage_cut_off_in_the_middle_of_a_line(tmp_path):
    run = tmp_path / "run"
    write_recipe(run)
    write_stage(run, "align", 0, steps=40)
    path = run / "align" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "align", "step": 41, "loss": NaN}\n{"stage": "align", "st')
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '41 <span class="small">of 150</span>' in page
    assert "align/metrics.jsonl: 1 of 42 lines could not be read" in page
    assert "No evaluation yet" in page


def test_files_of_another_kind_are_named_and_do_not_stop_the_page(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "env.json").write_text("{")
    (run / "run.json").write_text("[1]")
    (run / "recipe.resolved.yaml").write_text("a: [")
    (run / "data" / "manifest.json").write_text("{}")
    (run / "align" / "eval" / "step_150" / "results.json").write_text(
        '{"vqa": 3, "captions": {"CIDEr": "x"}}'
    )
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "env.json: not JSON" in page
    assert "recipe.resolved.yaml: not YAML" in page
    for name in STAGES:
        assert f">{name}<" in page


def test_the_dataset_may_stand_elsewhere(tmp_path):
    write_recipe(tmp_path / "run")
    write_dataset(tmp_path / "elsewhere")
    write_report(tmp_path / "run", tmp_path / "report.html", dataset=tmp_path / "elsewhere")
    assert "12,000 read" in (tmp_path / "report.html").read_text()


# --- charts and numbers


@pytest.mark.parametrize(
    "values", [[1.0], [2.0, 2.0], [1, math.nan, 3], [math.nan], [], [1e-6, 1e3], [-1, 0, 5], [math.inf, 1.0]]
)
def test_a_line_chart_of_any_values_is_well_formed(values):
    svg = line_chart([Line("x", list(range(len(values))), values)], label='a "b" <c>')
    ET.fromstring(svg)
    assert "nan" not in svg
    assert "inf " not in svg


def test_a_long_series_keeps_its_spike_in_few_points():
    values = [1.0] * 20_000
    values[7777] = 9.0
    svg = line_chart([Line("x", range(20_000), values)], label="x", from_zero=True)
    assert len(svg) < 30_000
    raw = re.search(r'class="raw" d="M([^"]*)"', svg)
    heights = {float(p.split()[1]) for p in raw.group(1).split("L")}
    assert len(heights) == 2


def test_bars_stand_at_their_share():
    root = ET.fromstring(bar_chart([Pair("a", 0.5, None), Pair("b", 1.0, 0.0)], label="x"))
    heights = [float(r.get("height")) for r in root.iter("rect")]
    assert heights == [pytest.approx(heights[1] / 2, abs=0.1), heights[1], 0.0]


def test_ticks_are_round_and_inside():
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 150, 5) == [0, 25, 50, 75, 100, 125, 150] or ticks(0, 150, 5) == [0, 50, 100, 150]
    assert ticks(3, 3, 5) == [3]
    assert log_ticks(0.5, 20) == [0.5, 1, 2, 5, 10, 20]
    assert [tick_text(v) for v in (12_000, 0.25, 1e-5, 2.5e-4, 0)] == ["12k", "0.25", "1e-5", "2.5e-4", "0"]


def test_the_moving_mean_of_a_straight_line_is_the_line():
    line = [float(i) for i in range(200)]
    assert moving_mean(line) == pytest.approx(line)


def test_numbers_read_well():
    assert [number(v) for v in (12345, 0.012345, 3.14159, 123.456, 2e-5, None, math.nan, "x")] == [
        "12,345", "0.0123", "3.14", "123", "2e-05", "–", "–", "–",
    ]  # fmt: skip
    assert [compact(v) for v in (1_234_567, 45_600, 12)] == ["1.23 M", "45.6 k", "12"]
    assert (percent(0.8512), points(0.8, 0.35), points(0.2, 0.3)) == ("85.1 %", "+45.0", "−10.0")
    assert [duration(s) for s in (0.85, 12.34, 245, 11_220, 187_200)] == [
        "850 ms", "12.3 s", "4 min 05 s", "3 h 07 min", "2 d 04 h",
    ]  # fmt: skip
