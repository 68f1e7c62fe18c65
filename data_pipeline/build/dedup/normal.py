"""Texts as they are compared: letter case, spaces and the forms of Unicode make no difference."""

import unicodedata
from typing import Any


def normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def normal_text(segments: list[dict[str, Any]]) -> str:
    """All text of a sample's segments, as one string."""
    return normal("\n".join(s["text"] for s in segments if s["text"]))
