"""The questions of a task, from the files of its release."""

from collections import Counter
from pathlib import Path

from data_pipeline.errors import DataError
from trainer.evaluation.layouts.classes import read_imagenet
from trainer.evaluation.layouts.coco import read_coco, read_karpathy
from trainer.evaluation.layouts.dataset import read_dataset
from trainer.evaluation.layouts.documents import read_chartqa, read_docvqa, read_pope
from trainer.evaluation.layouts.rows import read_ai2d, read_mathvista, read_mmbench, read_mmmu, read_rows
from trainer.evaluation.layouts.vqa import read_textvqa, read_vizwiz, read_vqa, read_vqa_rad
from trainer.evaluation.question import Question, Reader
from trainer.evaluation.task import Layout, Part, Task, check_files, check_pictures, located

_READERS: dict[Layout, Reader] = {
    "ai2d": read_ai2d,
    "chartqa": read_chartqa,
    "coco": read_coco,
    "dataset": read_dataset,
    "docvqa": read_docvqa,
    "imagenet": read_imagenet,
    "karpathy": read_karpathy,
    "mathvista": read_mathvista,
    "mmbench": read_mmbench,
    "mmmu": read_mmmu,
    "pope": read_pope,
    "rows": read_rows,
    "textvqa": read_textvqa,
    "vizwiz": read_vizwiz,
    "vqa": read_vqa,
    "vqa_rad": read_vqa_rad,
}


def read_task(task: Task, root: Path) -> tuple[list[Question], list[Question]]:
    """The questions, and those that examples are drawn from (none where no example is shown).

    Raises PreflightError for missing files and pictures, DataError for what is wrong in them.
    """
    check_files([task], root)
    questions = _read(task, task.evaluated, root)
    examples = _read(task, task.train, root) if task.train and task.shots else []
    check_pictures(task, [i for q in questions for i in q.images if isinstance(i, Path)])
    return questions, examples


def _read(task: Task, part: Part, root: Path) -> list[Question]:
    found = _READERS[task.layout](located(part, root), part.split)
    places = ", ".join(str(root / f.path) for f in part.files.values())
    if not found:
        raise DataError(f"{task.name}: no question stands in {places} (split {part.split})")
    twice, count = Counter(q.id for q in found).most_common(1)[0]
    if count > 1:
        raise DataError(f"{task.name}: id {twice!r} occurs a second time in {places}")
    return found
