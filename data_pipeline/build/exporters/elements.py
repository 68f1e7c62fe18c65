"""What a sample shows, in order: the view that exporters take of it."""

from dataclasses import dataclass

from data_pipeline.sample import Media, Sample


class Unfit(Exception):
    """The format has no place for this sample. `reason` is a short, closed phrase: exports count by it."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Shown:
    """A picture at one place of a sample."""

    media: Media
    data: bytes


def elements(sample: Sample) -> list[str | Shown]:
    """Texts and pictures as they follow one another; marks (page breaks, ends of documents) are left out.

    Raises Unfit for a sample with a video, or with a picture whose bytes the dataset does not hold.
    """
    found: list[str | Shown] = []
    for segment in sample.segments:
        if segment.type == "video":
            raise Unfit("a video")
        if segment.type == "image":
            found.append(shown(sample, segment.media or 0))
        elif segment.type == "text" and segment.text:
            found.append(segment.text)
    return found


def document(sample: Sample) -> list[str | Shown]:
    """The elements of anything but a dialogue. Raises Unfit."""
    if sample.kind == "instruct":
        raise Unfit("a dialogue")
    return elements(sample)


def check_dialogue(sample: Sample) -> None:
    """Raises Unfit unless the sample is a dialogue of which everything has a place in turns."""
    if sample.kind != "instruct":
        raise Unfit("no dialogue")
    if any(s.type not in ("text", "image") for s in sample.segments):
        raise Unfit("a video")
    if any(s.role is None for s in sample.segments):
        raise Unfit("a part of no speaker")


def shown(sample: Sample, media: int) -> Shown:
    if (data := sample.image_bytes[media]) is None:
        raise Unfit("an image without bytes")
    return Shown(sample.media[media], data)
