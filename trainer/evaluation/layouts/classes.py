"""Folders of pictures, one a class, as ImageNet's validation set is sorted."""

from data_pipeline.errors import DataError
from trainer.evaluation.question import Files, Question, only

SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp"})


def read_imagenet(files: Files, split: str | None) -> list[Question]:
    """classes: a line "n01440764 tench, Tinca tinca" each; images: a folder a class. The first name counts.

    Every question has all classes as options, and the number of its own as truth.
    """
    path, folder = only(files, "classes"), only(files, "images")
    names: dict[str, str] = {}
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        identity, _, label = line.strip().partition(" ")
        if not label.strip():
            raise DataError(f"{path}: line {n}: expected a folder's name and a label, found {line[:60]!r}")
        names[identity] = label.split(",")[0].strip()
    found = []
    options = tuple(names.values())
    for number, identity in enumerate(names):
        if not (folder / identity).is_dir():
            raise DataError(f"{folder / identity}: no such folder, {path} names it as a class")
        for picture in sorted((folder / identity).iterdir()):
            if picture.suffix.lower() in SUFFIXES:
                i = f"{identity}/{picture.name}"
                found.append(
                    Question(id=i, images=(picture,), truths=(str(number),), options=options, unit=i)
                )
    return found
