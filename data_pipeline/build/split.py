"""Train or held out: a property of the picture, so that no picture is in both, whatever source shows it.
Where there is none it is a property of the text.

A rendered page decides for its sample: it shows all the rest. A picture of the page that falls on the other
side is taken out of the sequence, so that it, too, is on one side only.
"""

from data_pipeline.build.images.cutting import without_images
from data_pipeline.build.steps import Cut, Dropped, Kept, Step
from data_pipeline.sample import Sample, content_id


def is_heldout(key: str, heldout: float) -> bool:
    """Stateless: the same picture gets the same answer in every source, task, run and recipe."""
    return int(content_id("split", key)[:13], 16) / 16**13 < heldout


def split_of(sample: Sample, heldout: float) -> str | None:
    """`train` or `heldout`; None where the images fall on both sides. Rendered pages decide alone."""
    pages = [m.media_id for m in sample.media if m.kind == "page"]
    keys = pages or [m.media_id for m in sample.media] or [" ".join(sample.text.split())]
    held = {is_heldout(k, heldout) for k in keys}
    if len(held) > 1:
        return None
    return "heldout" if held.pop() else "train"


class Split(Step):
    """Refuses a sample of both sides: to train on it would show a held-out picture.

    From a rendered page, the pictures of the other side are cut and the page stays.
    """

    name = "split"

    def __init__(self, heldout: float):
        super().__init__()
        self.heldout = heldout

    def judge(self, sample: Sample) -> Kept | Dropped:
        if split_of(sample, self.heldout) is None:
            return Dropped("images of both splits", "some images are held out, others not")
        return without_images(sample, self._of_the_other_side(sample), self.name)

    def _of_the_other_side(self, sample: Sample) -> list[Cut]:
        side = split_of(sample, self.heldout) == "heldout"
        return [
            Cut(i, "image of the other split", "its page decides, and falls on the other side")
            for i, m in enumerate(sample.media)
            if is_heldout(m.media_id, self.heldout) != side
        ]
