"""Sound prose, samples of it, and what the filters make of one sample."""

from data_pipeline.build.filter.config import FilterConfig
from data_pipeline.build.filter.steps import document_steps, text_steps
from data_pipeline.build.steps import Dropped
from data_pipeline.sample import Media, Sample, Segment

PROSE = (
    "The harbour was quiet when we came down to it in the morning, and for a while nobody said anything. "
    "Then a boat with a red sail turned around the pier, and the children who had been sitting on the wall "
    "ran to the steps, because they knew that it was the one which brought the letters from the islands."
)

SOUND = FilterConfig(preset="obelics", min_images=0)


def sample(*texts: str, kind: str = "text", images: int = 0, source: str = "s") -> Sample:
    return Sample(
        id="x",
        kind=kind,
        source=source,
        segments=(
            *(Segment(type="image", media=i) for i in range(images)),
            *(Segment(type="text", text=t) for t in texts),
        ),
        media=tuple(Media(media_id=f"m{i}", url=f"http://h/{i}.png") for i in range(images)),
        image_bytes=(b"",) * images,
    )


def run(found: Sample, config: FilterConfig, root=None) -> Sample | Dropped:
    for step in (*text_steps({"s": config}, root), *document_steps({"s": config})):
        match step.judge(found):
            case Dropped() as dropped:
                return dropped
            case kept:
                found = kept.sample
    return found
