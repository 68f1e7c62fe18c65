"""The page about a run shows what its directory holds, escaped, and calls nothing outside itself."""

import json
import re

import pytest

from trainer.observe.report import write_report
from written_run import (
    HOSTILE,
    STAGES,
    example,
    make_run,
    picture,
    rendered,
    write_dataset,
    write_incident,
    write_recipe,
)


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


def test_what_befell_ranks_and_checkpoints_is_told_and_escaped(tmp_path):
    run = make_run(tmp_path / "run")
    told = [
        {
            "event": "straggler",
            "rank": 1,
            "host": "n2",
            "own_s": 1.9,
            "others_s": 0.6,
            "cause": "data",
            "step": 20,
        },
        {
            "event": "hang",
            "rank": 3,
            "host": "n4",
            "phase": "forward",
            "module": "language.layers.1",
            "step": 21,
        },
        {"event": "death", "rank": 0, "host": HOSTILE, "phase": "update", "signal": "SIGKILL", "step": 22},
        {"event": "checkpoint rejected", "reason": "rank_00001 was altered", "steps_lost": 4},
        {"event": "bad step", "step": 23},
        {},
    ]
    lines = [json.dumps({**line, "time": float(n)}) for n, line in enumerate(told)]
    (run / "align" / "events.jsonl").write_text("\n".join([*lines, "torn {"]))
    html = rendered(run)
    section = html[html.index('id="events"') :]
    section = section[: section.index("</section>")]
    assert "step 20: rank 1 on n2 was slow: 1.9 s a step of its own, the others 0.6 s; in data" in section
    assert "step 21: rank 3 on n4 stood still in forward language.layers.1" in section
    assert "was ended by SIGKILL in update" in section
    assert "checkpoint rejected: rank_00001 was altered (4 steps were trained again)" in section
    assert section.index("step 22") < section.index("step 21") < section.index("step 20")  # the newest first
    assert "step 23" not in section
    assert "<script" not in html
    assert 'id="events"' not in rendered(make_run(tmp_path / "other"))


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
        m |= {"grad_norm/connector": 1.0, "update_norm/connector": 0.1} if m["step"] % 10 == 0 else {}
    path.write_text("".join(json.dumps(m) + "\n" for m in lines))
    html = rendered(run)
    for title in ("Loss by source", "Gradient norm by module", "Update norm by module"):
        assert f"<h3>{title}, align</h3>" in html
    assert "<h3>Model FLOPs utilisation</h3>" in html
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
