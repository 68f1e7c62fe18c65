"""Taking images out of a sample: the one place where segments and media are renumbered."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from data_pipeline.build.steps import Cut, Dropped, Kept
from data_pipeline.sample import Sample

DOCUMENTS = ("interleaved", "pdf", "text")  # kinds that can lose a part and stay what they are


def without_images(sample: Sample, cuts: Sequence[Cut], step: str) -> Kept | Dropped:
    """The sample without these images. One that is no document, or that has nothing left, is dropped."""
    if not cuts:
        return Kept(sample)
    if sample.kind not in DOCUMENTS:
        return Dropped(cuts[0].reason, cuts[0].detail, cuts[0].bad, cuts[0].media)
    gone = {c.media for c in cuts}
    kept = [i for i in range(len(sample.media)) if i not in gone]
    number = {old: new for new, old in enumerate(kept)}
    segments = (s for s in sample.segments if s.media is None or s.media in number)
    counts = Counter(c.reason for c in cuts)
    lineage = tuple(
        {"step": step, "version": "1", "config_hash": "", "action": f"drop {n} image(s)", "reason": reason}
        for reason, n in sorted(counts.items())
    )
    left = dataclasses.replace(
        sample,
        kind="text" if sample.kind == "interleaved" and not kept else sample.kind,
        segments=tuple(
            s if s.media is None else dataclasses.replace(s, media=number[s.media]) for s in segments
        ),
        media=tuple(sample.media[i] for i in kept),
        image_bytes=tuple(sample.image_bytes[i] for i in kept),
        lineage=(*(sample.lineage or ()), *lineage),
    )
    if not any(s.type in ("text", "image", "video") for s in left.segments):
        return Dropped("no image left", cuts[0].detail)
    return Kept(left, tuple(cuts))
