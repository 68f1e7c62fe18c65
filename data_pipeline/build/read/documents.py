"""Blocks of a document, in order, as one interleaved sample. Shared by the readers of documents."""

from collections import Counter

from data_pipeline.build.cut import HEADING, Block
from data_pipeline.build.read.reading import Fault, Item
from data_pipeline.sample import Media, Sample, Segment, content_id


def document_item(
    blocks: list[Block], *, source: str, file: str, where: str, licence: str | None, min_chars: int, step: str
) -> Item:
    """The sample of a run of blocks. A picture that comes twice is stored once."""
    segments: list[Segment] = []
    number: dict[str, int] = {}
    media: list[Media] = []
    data: list[bytes | None] = []
    cuts = tuple(b.cut for b in blocks if b.cut is not None)
    for block in blocks:
        if block.text:
            segments.append(Segment(type="text", text=block.text, role=HEADING if block.heading else None))
        if block.picture is not None:
            key = block.picture.media.media_id
            if key not in number:
                number[key] = len(media)
                media.append(block.picture.media)
                data.append(block.picture.data)
            segments.append(Segment(type="image", media=number[key]))
    content = [s.text or media[s.media or 0].media_id for s in segments]
    sample = Sample(
        id=content_id(source, file, where, *content),
        kind="interleaved" if media else "text",
        source=source,
        url=file,
        license=licence,
        segments=tuple(segments),
        media=tuple(media),
        image_bytes=tuple(data),
        lineage=lineage_of(cuts, step),
    )
    fault = too_little_text(sample, min_chars, file, where)
    return Item(file=file, where=where, sample=sample, fault=fault, cuts=cuts)


def too_little_text(sample: Sample, min_chars: int, file: str, where: str) -> Fault | None:
    if sample.media or len(sample.text) >= min_chars:
        return None
    detail = f"{len(sample.text)} characters and no image, min_chars is {min_chars}"
    return Fault(reason="too little text", detail=detail, bad=False, file=file, where=where)


def lineage_of(cuts: tuple[Fault, ...], step: str) -> tuple[dict[str, str], ...] | None:
    """One entry per reason, with its count: what was taken out of the sample."""
    counts = Counter(c.reason for c in cuts)
    entries = [
        {"step": step, "version": "1", "config_hash": "", "action": f"drop {n} image(s)", "reason": reason}
        for reason, n in sorted(counts.items())
    ]
    return tuple(entries) or None
