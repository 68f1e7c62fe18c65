"""The paragraphs of a document: one after another, and the document without those that are refused."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.build.steps import Dropped, Kept
from data_pipeline.sample import Sample, Segment, content_id

_PARAGRAPH = re.compile(r"\n\s*\n")
_CAPTION_ROLES = ("alt", "recaption")  # words about an image, inside a document: no paragraphs of it


def split_paragraphs(sample: Sample) -> Iterator[str]:
    for segment in sample.segments:
        yield from _of(segment) or ()


def without_paragraphs(
    sample: Sample, refused: Callable[[str], str | None], *, step: str, config: object
) -> Kept | Dropped:
    """The document without the paragraphs for which `refused` gives a reason; the lineage counts them."""
    gone: Counter[str] = Counter()
    segments = []
    for segment in sample.segments:
        paragraphs = _of(segment)
        if paragraphs is None:
            segments.append(segment)
            continue
        kept = []
        for paragraph in paragraphs:
            if reason := refused(paragraph):
                gone[reason] += 1
            else:
                kept.append(paragraph)
        if len(kept) == len(paragraphs):
            segments.append(segment)
        elif kept:
            segments.append(dataclasses.replace(segment, text="\n\n".join(kept)))
    if not gone:
        return Kept(sample)
    if not any(s.type in ("text", "image", "video") for s in segments):
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(gone.items()))
        return Dropped("no text left", f"paragraphs refused: {reasons}")
    actions = [(f"drop {n} paragraph(s)", reason) for reason, n in sorted(gone.items())]
    return Kept(noted(sample, step, config, actions, segments=tuple(segments)))


def noted(
    sample: Sample, step: str, config: object, actions: list[tuple[str, str]], **changes: Any
) -> Sample:
    """The changed sample, with a line of lineage per action: what was done, how often, why."""
    digest = content_id(str(config))[:16]
    lines = (
        {"step": step, "version": "1", "config_hash": digest, "action": action, "reason": reason}
        for action, reason in actions
    )
    return dataclasses.replace(sample, lineage=(*(sample.lineage or ()), *lines), **changes)


def _of(segment: Segment) -> list[str] | None:
    """A piece of text may hold several paragraphs; None: it is none of the document's."""
    if segment.type != "text" or not segment.text or segment.role in _CAPTION_ROLES:
        return None
    return _PARAGRAPH.split(segment.text) if "\n" in segment.text else [segment.text]
