"""Captions: COCO's annotations, and the split of Karpathy and Fei-Fei 2015 that COCO and Flickr30k share."""

from trainer.evaluation.files import load, records
from trainer.evaluation.question import Files, Question, only


def read_coco(files: Files, split: str | None) -> list[Question]:
    """annotations: {images: [{id, file_name}], annotations: [{image_id, caption}]}; images: a folder."""
    path, folder = only(files, "annotations"), only(files, "images")
    page = load(path)
    captions: dict[str, list[str]] = {}
    for r in records(path, page, ("annotations",), "annotation"):
        captions.setdefault(str(r.id("image_id")), []).append(r.text("caption"))
    return [
        Question(id=i, images=(folder / r.text("file_name"),), truths=tuple(captions[i]), unit=i)
        for r in records(path, page, ("images",), "image")
        if (i := str(r.id("id"))) in captions
    ]


def read_karpathy(files: Files, split: str | None) -> list[Question]:
    """annotations: {images: [{filename, filepath?, split, sentences: [{raw}], cocoid?, imgid}]}.

    `train` reads `restval` too, as papers do.
    """
    path, folder = only(files, "annotations"), only(files, "images")
    wanted = ("train", "restval") if split == "train" else (split,)
    found = []
    for r in records(path, load(path), ("images",), "image"):
        if r.text("split") not in wanted:
            continue
        name = r.text("filename")
        sentences = [s["raw"] for s in r.value("sentences")]
        i = str(r.id("cocoid") if r.has("cocoid") else r.id("imgid"))
        place = folder / r.text("filepath") / name if r.has("filepath") else folder / name
        found.append(Question(id=i, images=(place,), truths=tuple(sentences), unit=i))
    return found
