"""Charts of any values are well formed and true."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from trainer.observe.charts import Line, Pair, bar_chart, line_chart, log_ticks, moving_mean, tick_text, ticks
from trainer.observe.wording import compact, duration, number, percent, points


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
