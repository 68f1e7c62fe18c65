"""Train or held out: a property of the picture, so that no picture is in both, whatever source shows it."""

from data_pipeline.build.steps import Dropped, Kept, Step
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


class Split(Step):
    """Refuses a sample of both sides: to train on it would show a held-out picture."""

    name = "split"

    def __init__(self, heldout: float):
        super().__init__()
        self.heldout = heldout

    def judge(self, sample: Sample) -> Kept | Dropped:
        if split_of(sample, self.heldout) is None:
            return Dropped("images of both splits", "some images are held out, others not")
        return Kept(sample)
