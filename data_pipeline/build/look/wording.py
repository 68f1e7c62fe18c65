"""Numbers as the page and the card say them, and what must not be shown of a recipe."""

import re
from typing import Any

import yaml

CHARS_PER_TOKEN = 4  # of English text under common tokenizers; an estimate, and called one where it is shown
_SECRET_IN_URL = re.compile(r"(\w+://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(\w+://[^\s?'\"]+)\?[^\s'\"]+")


def count(n: int) -> str:
    return f"{n:,}"


def compact(n: float) -> str:
    """1234567 as `1.2M`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.3g}{letter}"
    return f"{n:.3g}"


def percent(share: float | None) -> str:
    """Never `100%` for what lost something, never `0%` for what kept something."""
    if share is None:
        return ""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{min(max(share, 0.0001), 0.9999):.2%}" if not 0.01 < share < 0.99 else f"{share:.1%}"


def size(nbytes: int) -> str:
    for unit, letter in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {letter}"
    return f"{nbytes} bytes"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def recipe_yaml(recipe: dict[str, Any]) -> str:
    """The recipe as YAML, without what is not set and without credentials in addresses."""
    text = yaml.safe_dump(_set(recipe), sort_keys=False, allow_unicode=True, width=100)
    return _QUERY.sub(r"\1?...", _SECRET_IN_URL.sub(r"\1...@", text))


def _set(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _set(v) for k, v in value.items() if v is not None}
    return [_set(v) for v in value] if isinstance(value, list | tuple) else value
