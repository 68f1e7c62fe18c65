"""Numbers as people read them: as many digits as carry meaning, a dash where there is none."""

import math
from typing import Any

MISSING = "–"


def finite(value: Any) -> float | None:
    """The value as a finite float, else None: whatever stands in place of a number is no reason to stop."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 3) -> str:
    """Significant digits, thousands apart: 12,345, 0.0123, 2e-05."""
    v = finite(value)
    if v is None:
        return MISSING
    if v == int(v) and abs(v) < 1e15:
        return f"{int(v):,}"
    if abs(v) >= 10 ** (digits - 1):
        return f"{v:,.0f}" if abs(v) >= 10**digits else f"{v:.{digits}g}"
    return f"{v:.{digits}g}"


def compact(value: Any) -> str:
    """1.23 M, 45.6 k."""
    v = finite(value)
    if v is None:
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(v) >= size:
            return f"{v / size:.3g} {letter}"
    return f"{v:.3g}"


def percent(share: Any) -> str:
    v = finite(share)
    return MISSING if v is None else f"{100 * v:.1f} %"


def points(share: Any, blind: Any) -> str:
    """The difference of two shares, in percentage points with its sign."""
    a, b = finite(share), finite(blind)
    return MISSING if a is None or b is None else f"{100 * (a - b):+.1f}".replace("-", "−")


def duration(seconds: Any) -> str:
    """850 ms, 12.3 s, 4 min 05 s, 3 h 07 min, 2 d 04 h."""
    v = finite(seconds)
    if v is None:
        return MISSING
    if v < 1:
        return f"{1000 * v:.0f} ms"
    if v < 60:
        return f"{v:.1f} s"
    whole = round(v)
    for unit, inner, names in ((86400, 3600, ("d", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s"))):
        if whole >= unit:
            return f"{whole // unit} {names[0]} {whole % unit // inner:02d} {names[1]}"
    return f"{whole} s"
