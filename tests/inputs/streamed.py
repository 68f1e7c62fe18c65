"""What a stream gives, as values that can be compared."""

from collections import Counter

from data_pipeline.batch import Batch
from data_pipeline.stream.loader import Stream

LENGTH = 96


def rows(batches: list[Batch]) -> Counter:
    """Each row of the batches as a value: all that the model gets of it."""
    found: Counter = Counter()
    for b in batches:
        for r, ids in enumerate(b.sample_ids):
            tiles = sorted(set(b.image_ids[r].tolist()) - {0})
            pixels = tuple(b.patches[b.patch_index[:, 0] == n - 1].numpy().tobytes() for n in tiles)
            tensors = (b.input_ids, b.labels, b.positions, b.document_ids)
            found[(ids, pixels, *(tuple(t[r].tolist()) for t in tensors))] += 1
    return found


def taken(s: Stream, steps: int) -> list[Counter]:
    return [rows(s.next()) for _ in range(steps)]
