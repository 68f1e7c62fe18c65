"""Charts as inline SVG: pure functions from numbers to markup, without a script or a plotting package.

Colours are CSS variables of the page that embeds a chart (`--ink --muted --rule --s0 ..`), so that one chart
serves light, dark and paper. Every chart is small and scales with its column.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 18, 14, 38
COLOURS = 6
"""Distinct series colours; further series begin again."""
MOST_POINTS = 500
LOG_FROM = 12.0


@dataclass(frozen=True, slots=True)
class Line:
    """One series. Values that are not finite make a gap. `colour` counts from 0."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """A group of two bars, each a share of one: the model and its blind twin; None where not measured."""

    label: str
    model: float | None
    blind: float | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A series of few measurements, each with the ends of its interval, None where there is none."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str = "step",
    smooth: bool = True,
    from_zero: bool = False,
    log: bool | None = None,
) -> Markup:
    """Lines over shared axes: the raw values thin, a centred moving mean thick.

    `log` None chooses a logarithmic axis where the smoothed values span a decade.
    """
    curves = [(line, moving_mean(line.y) if smooth else list(line.y)) for line in lines]
    shown = [y for _, curve in curves for y in curve if math.isfinite(y)]
    if not shown:
        return _frame(label, _text(WIDTH / 2, HEIGHT / 2, "no finite values", "middle"))
    raw = [y for line in lines for y in line.y if math.isfinite(y)]
    spans_a_decade = min(shown) > 0 and max(shown) / min(shown) > LOG_FROM
    logarithmic = (spans_a_decade if log is None else log) and min(raw) > 0
    axes = _Axes.around([x for line in lines for x in line.x], raw, logarithmic, from_zero)

    parts = axes.draw(x_label)
    for line, curve in curves:
        stroke = f"var(--s{line.colour % COLOURS})"
        if smooth and len(line.y) > 1:
            parts += _paths(line.x, line.y, axes, stroke, "raw")
        parts += _paths(line.x, curve, axes, stroke, "line")
    return _frame(label, Markup("").join(parts))


def interval_chart(own: Interval, blind: Interval, marked: Sequence[float], *, label: str) -> Markup:
    """Scores of a model and of its blind twin, with their intervals as bars; rings around `marked` steps."""
    series = ((blind, "var(--blind)"), (own, "var(--accent)"))  # its own is drawn on top
    values = [v for s, _ in series for vs in (s.y, s.low, s.high) for v in vs if v is not None]
    if not values:
        return _frame(label, _text(WIDTH / 2, HEIGHT / 2, "no finite values", "middle"))
    axes = _Axes.around([x for s, _ in series for x in s.x], values, log=False, from_zero=False)
    parts = axes.draw("step")
    for s, stroke in series:
        if len(s.y) > 1:
            parts += _paths(s.x, s.y, axes, stroke, "line")
        for x, y, low, high in zip(s.x, s.y, s.low, s.high, strict=True):
            if low is not None and high is not None:
                parts.append(_whisker(axes.px(x), axes.py(low), axes.py(high), stroke))
            parts.append(_dot(axes.px(x), axes.py(y), 3.5, f"fill:{stroke}"))
            if s is own and x in marked:
                parts.append(_dot(axes.px(x), axes.py(y), 7, "fill:none;stroke:var(--bad);stroke-width:2.5"))
    return _frame(label, Markup("").join(parts))


def bar_chart(pairs: Sequence[Pair], *, label: str) -> Markup:
    """Pairs of bars from 0 to 100 %, each with its number."""

    def py(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [_y_tick(py(t / 4), f"{25 * t} %") for t in range(5)]
    room = (WIDTH - LEFT - RIGHT) / max(1, len(pairs))
    bar = min(34.0, room * 0.36)
    for i, pair in enumerate(pairs):
        middle = LEFT + room * (i + 0.5)
        for value, x, style in ((pair.model, middle - bar - 1, "model"), (pair.blind, middle + 1, "blind")):
            if value is None or not math.isfinite(value):
                continue
            top = py(min(1.0, max(0.0, value)))
            parts.append(
                Markup(
                    '<rect class="bar-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/>'
                ).format(style, x, top, bar, HEIGHT - BOTTOM - top)
            )
            parts.append(_text(x + bar / 2, top - 4, f"{100 * value:.0f}", "middle", "value"))
        letters = max(4, int(room / 6.5))
        text = pair.label if len(pair.label) <= letters else pair.label[: letters - 1] + "…"
        parts.append(_text(middle, HEIGHT - BOTTOM + 16, text, "middle"))
    return _frame(label, Markup("").join(parts))


def moving_mean(values: Sequence[float]) -> list[float]:
    """The mean over a centred twentieth of the series; the window narrows at the ends, so nothing lags."""
    half = len(values) // 40
    out = []
    for i, value in enumerate(values):
        reach = min(half, i, len(values) - 1 - i)
        window = [v for v in values[i - reach : i + reach + 1] if math.isfinite(v)]
        out.append(sum(window) / len(window) if window and math.isfinite(value) else math.nan)
    return out


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) between `low` and `high`."""
    if not high > low:
        return [low]
    power = 10 ** math.floor(math.log10((high - low) / about))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs((high - low) / s - about))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; within less than two decades also 2 and 5 times them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    stride = max(1, len(decades) // 6)
    return [m * 10.0**d for d in decades[::stride] for m in steps if low <= m * 10.0**d <= high]


def tick_text(value: float) -> str:
    """A tick's number, short: 12k, 0.25, 1e-5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    if 0 < abs(value) < 1e-2:
        return re.sub(r"(\.0)?e-0?", "e-", f"{value:.1e}")
    return f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class _Axes:
    """The ranges of a chart, and where a value falls in its picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], log: bool, from_zero: bool) -> "_Axes":
        """Ranges that hold the values with a little room, and are never empty."""
        x_low, x_high = min(xs), max(xs)
        if x_low == x_high:
            x_low, x_high = x_low - 1, x_high + 1
        low, high = min(ys), max(ys)
        if log:
            return cls(x_low, x_high, low / 1.1, high * 1.1, True)
        if from_zero:
            low = min(0.0, low)
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        pad = (high - low) * 0.05
        return cls(x_low, x_high, low if from_zero else low - pad, high + pad, False)

    def px(self, x: float) -> float:
        return LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        if self.log:
            share = math.log(y / self.y_low) / math.log(self.y_high / self.y_low)
        else:
            share = (y - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def draw(self, x_label: str) -> list[Markup]:
        y_ticks = log_ticks(self.y_low, self.y_high) if self.log else ticks(self.y_low, self.y_high, 5)
        parts = [_y_tick(self.py(t), tick_text(t)) for t in y_ticks]
        for t in ticks(self.x_low, self.x_high, 5):
            if t == int(t):
                parts.append(_text(self.px(t), HEIGHT - BOTTOM + 15, tick_text(t), "middle"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label, "middle"))
        if self.log:
            parts.append(_text(WIDTH - RIGHT, TOP, "log scale", "end"))
        return parts


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them: the lowest and the highest of each bucket, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept = []
    for i in range(0, len(points), size):
        bucket = points[i : i + size]
        kept += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    return kept


def _paths(
    xs: Sequence[float], ys: Sequence[float], axes: _Axes, stroke: str, style: str
) -> Iterable[Markup]:
    """One path for each stretch of finite values; a lone point becomes a dot."""
    stretch: list[tuple[float, float]] = []
    for x, y in [*zip(xs, ys, strict=True), (0.0, math.nan)]:
        if math.isfinite(y):
            stretch.append((x, y))
            continue
        if len(stretch) == 1:
            yield _dot(axes.px(stretch[0][0]), axes.py(stretch[0][1]), 2.5, f"fill:{stroke}")
        elif stretch:
            d = "L".join(f"{axes.px(x):.1f} {axes.py(y):.1f}" for x, y in _thin(stretch))
            yield Markup('<path class="{}" d="M{}" style="stroke:{}"/>').format(style, d, stroke)
        stretch = []


def _dot(x: float, y: float, radius: float, style: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" style="{}"/>').format(x, y, radius, style)


def _whisker(x: float, low: float, high: float, stroke: str) -> Markup:
    """From `low` to `high`, with a cap at each end."""
    d = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
    return Markup('<path class="whisker" d="{}" style="stroke:{}"/>').format(d, stroke)


def _y_tick(y: float, text: str) -> Markup:
    rule = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
        LEFT, WIDTH - RIGHT, y, y
    )
    return rule + _text(LEFT - 6, y + 4, text, "end")


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        style, x, y, anchor, text
    )


def _frame(label: str, inner: Markup) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, escape(label), inner
    )
