"""Train or held out: a property of the picture, so that no picture is in both, whatever source shows it."""

from collections.abc import Iterable, Iterator

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.read.reading import Fault
from data_pipeline.sample import Sample, content_id


def is_heldout(key: str, heldout: float) -> bool:
    """Stateless: the same picture gets the same answer in every source, task, run and recipe."""
    return int(content_id("split", key)[:13], 16) / 16**13 < heldout


def split_of(sample: Sample, heldout: float) -> str | None:
    """`train` or `heldout`; None where the sample's images fall on both sides."""
    keys = [m.media_id for m in sample.media] or [sample.id]
    held = {is_heldout(k, heldout) for k in keys}
    if len(held) > 1:
        return None
    return "heldout" if held.pop() else "train"


class Split(PipelineStep):
    """Marks each sample with its split."""

    type = "split"
    name = "train / held out"

    def __init__(self, heldout: float):
        super().__init__()
        self.heldout = heldout

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for doc in data:
            mark = doc.metadata
            if mark.get("sample") is not None and mark["fault"] is None:
                mark["split"] = split_of(mark["sample"], self.heldout)
                if mark["split"] is None:
                    mark["fault"] = Fault(
                        reason="images of both splits",
                        detail="some images are held out, others not",
                        bad=False,
                        file=mark["file"],
                        where=mark["where"],
                    )
            yield doc
