"""Questions with the answers of several people: VQA v2 and OK-VQA, TextVQA, VizWiz; and VQA-RAD."""

from data_pipeline.errors import DataError
from trainer.evaluation.files import load, once, records
from trainer.evaluation.question import Files, Question, only


def read_vqa(files: Files, split: str | None) -> list[Question]:
    """questions: {data_subtype, questions: [{question_id, image_id, question}]}; annotations: VQA's; images:
    a folder with COCO_{data_subtype}_{image_id, twelve digits}.jpg."""
    path, answers, folder = only(files, "questions"), only(files, "annotations"), only(files, "images")
    page = load(path)
    annotations = once(
        (r.where, "question_id", r.id("question_id"), r)
        for r in records(answers, load(answers), ("annotations",), "annotation")
    )
    found = []
    for q in records(path, page, ("questions",), "question"):
        number, image = q.id("question_id"), q.id("image_id")
        if number not in annotations:
            raise DataError(f"{q.where}: question_id {number} has no annotation in {answers}")
        a = annotations[number]
        name = f"COCO_{page.get('data_subtype')}_{int(image):012d}.jpg"
        about = {k: a.text(k) for k in ("answer_type", "question_type") if a.has(k)}
        found.append(
            Question(
                id=str(number), text=q.text("question"), images=(folder / name,),
                truths=tuple(a.answers("answers", least=2)), unit=str(image), about=about,
            )
        )  # fmt: skip
    if len(found) != len(annotations):
        raise DataError(f"{path}: {len(found)} questions, {answers} has annotations of {len(annotations)}")
    return found


def read_textvqa(files: Files, split: str | None) -> list[Question]:
    """annotations: {data: [{question_id, image_id, question, answers: [...]}]}; images: {image_id}.jpg."""
    path, folder = only(files, "annotations"), only(files, "images")
    return [
        Question(
            id=str(r.id("question_id")), text=r.text("question"),
            images=(folder / f"{r.text('image_id')}.jpg",),
            truths=tuple(r.answers("answers", least=2)), unit=r.text("image_id"),
        )
        for r in records(path, load(path), ("data",), "question")
    ]  # fmt: skip


def read_vizwiz(files: Files, split: str | None) -> list[Question]:
    """annotations: [{image, question, answers: [{answer}], answer_type}]; a picture has one question."""
    path, folder = only(files, "annotations"), only(files, "images")
    return [
        Question(
            id=r.text("image"), text=r.text("question"), images=(folder / r.text("image"),),
            truths=tuple(r.answers("answers", least=2)), unit=r.text("image"),
            about={"answer_type": r.text("answer_type")},
        )
        for r in records(path, load(path), noun="question")
    ]  # fmt: skip


def read_vqa_rad(files: Files, split: str | None) -> list[Question]:
    """annotations: [{qid, image_name, question, answer, answer_type, phrase_type}], all splits in one file;
    those of the test split have a phrase_type that begins with "test". No split: all."""
    path, folder = only(files, "annotations"), only(files, "images")
    found = []
    for r in records(path, load(path), noun="question"):
        if split is not None and r.text("phrase_type").startswith("test") != (split == "test"):
            continue
        found.append(
            Question(
                id=str(r.id("qid")), text=r.text("question").strip(), images=(folder / r.text("image_name"),),
                truths=(str(r.id("answer")).strip(),), unit=r.text("image_name"),  # an answer may be a number
                about={"kind": r.text("answer_type").strip().lower()},
            )
        )  # fmt: skip
    return found
