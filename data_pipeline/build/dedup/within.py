"""A picture that a document shows again: the first place stays. OBELICS compares addresses, MMC4 looks."""

from data_pipeline.build.images.cutting import DOCUMENTS, without_images
from data_pipeline.build.steps import Cut, Dropped, Kept, Step
from data_pipeline.sample import Sample


class RepeatedImages(Step):
    """A step of the build, on whole documents. `distance`: bits of 64 in which pHashes may differ (MMC4: 5);
    None compares the bytes only."""

    name = "repeated images"

    def __init__(self, distance: int | None = None):
        super().__init__()
        self.distance = distance

    def judge(self, sample: Sample) -> Kept | Dropped:
        if sample.kind not in DOCUMENTS:
            return Kept(sample)
        seen: list[int] = []
        cuts = []
        for i in range(len(sample.media)):
            first = next((j for j in seen if self._same(sample, i, j)), None)
            if first is None:
                seen.append(i)
            else:
                cuts.append(
                    Cut(i, "image repeated in its document", f"image {i + 1} shows image {first + 1}")
                )
        return without_images(sample, cuts, self.name)

    def _same(self, sample: Sample, i: int, j: int) -> bool:
        a, b = sample.media[i], sample.media[j]
        if a.media_id == b.media_id:
            return True
        if self.distance is None or a.phash is None or b.phash is None:
            return False
        return (a.phash ^ b.phash).bit_count() <= self.distance
