"""Questions about documents and charts, DocVQA and ChartQA; and POPE's about what is in a photograph."""

from collections import Counter

from trainer.evaluation.files import load, load_lines, records
from trainer.evaluation.question import Files, Question, only


def read_docvqa(files: Files, split: str | None) -> list[Question]:
    """annotations: {data: [{questionId, question, image, answers}]}; images: the folder that `image` is
    relative to."""
    path, folder = only(files, "annotations"), only(files, "images")
    return [
        Question(
            id=str(r.id("questionId")), text=r.text("question"), images=(folder / r.text("image"),),
            truths=tuple(r.answers("answers")), unit=r.text("image"),
        )
        for r in records(path, load(path), ("data",), "question")
    ]  # fmt: skip


def read_chartqa(files: Files, split: str | None) -> list[Question]:
    """human, augmented: [{imgname, query, label}]. A question has no id: file and place are it."""
    folder = only(files, "images")
    return [
        Question(
            id=f"{role}-{n}", text=r.text("query"), images=(folder / r.text("imgname"),),
            truths=(r.text("label"),), unit=r.text("imgname"), about={"kind": role},
        )
        for role in ("human", "augmented")
        if role in files
        for n, r in enumerate(records(only(files, role), load(only(files, role)), noun="question"))
    ]  # fmt: skip


def read_pope(files: Files, split: str | None) -> list[Question]:
    """A line {question_id, image, text, label} in a file each for random, popular and adversarial objects."""
    folder = only(files, "images")
    found, seen = [], Counter[str]()
    for role in files:
        if role == "images":
            continue
        path = only(files, role)
        for r in records(path, load_lines(path), noun="entry"):
            i = f"{role}-{r.id('question_id')}"
            seen[i] += 1
            found.append(
                Question(
                    id=i if seen[i] == 1 else f"{i}-{seen[i]}", text=r.text("text"),
                    images=(folder / r.text("image"),), truths=(r.text("label").strip().lower(),),
                    unit=r.text("image"), about={"kind": role},
                )
            )  # fmt: skip
    return found
