"""Questions of a dataset that `fovea data build` made: its held-out split."""

import json

from data_pipeline.errors import DataError
from data_pipeline.stream.datasets import Datasets
from trainer.evaluation.question import Files, Question, only


def read_dataset(files: Files, split: str | None) -> list[Question]:
    """manifest: the dataset's; `split`: SOURCE/heldout or SOURCE/train. The first question of each sample
    that has pictures."""
    source, _, part = (split or "").partition("/")
    if part not in ("heldout", "train"):
        raise DataError(f"split: {split!r}; expected SOURCE/heldout or SOURCE/train")
    samples = Datasets.read([only(files, "manifest").parent]).source(source, part)
    found = []
    for n in range(len(samples)):
        sample = samples[n]
        asked, answers = (
            [s.text for s in sample.segments if s.role == role and s.type == "text" and s.text]
            for role in ("user", "assistant")
        )
        images = tuple(data for data in sample.image_bytes if data)
        if not asked or not answers or not images:
            continue
        about = json.loads(sample.general_metadata or "{}")
        found.append(
            Question(
                id=sample.id, text=asked[0], images=images, truths=(answers[0],),
                unit="+".join(m.media_id for m in sample.media),
                about={k: str(about[k]) for k in ("question_type",) if k in about},
            )
        )  # fmt: skip
    return found
