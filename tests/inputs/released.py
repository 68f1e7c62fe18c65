"""Small files in the layouts in which the benchmarks are released, made from nothing."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "purple", "orange")


def picture(n: int, suffix: str = "PNG") -> bytes:
    """Another one for each n."""
    image = Image.new("RGB", (40, 30), (29 * n % 256, 80, 251 - 31 * n % 251))
    ImageDraw.Draw(image).rectangle((n % 20, 4, 12 + n % 20, 20), fill=COLOURS[n % len(COLOURS)])
    held = io.BytesIO()
    image.save(held, suffix)
    return held.getvalue()


def _image(path: Path, n: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(n, "JPEG"))


def _json(path: Path, page: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(page), encoding="utf-8")


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _bytes(n: int) -> dict[str, Any]:
    return {"bytes": picture(n), "path": None}


def karpathy(root: Path, n: int, *, coco: bool) -> None:
    images = []
    for i in range(2 * n):
        split = "test" if i < n else "restval" if i % 2 else "train"
        name = f"COCO_val2014_{i:012d}.jpg" if coco else f"{i}.jpg"
        place = root / "coco/val2014" if coco else root / "flickr30k/flickr30k-images"
        _image(place / name, i)
        sentences = [{"raw": f"a {COLOURS[(i + k) % 8]} box number {i}"} for k in range(6)]
        ids = {"filepath": "val2014", "cocoid": i} if coco else {}
        images.append({"filename": name, "imgid": i, "split": split, "sentences": sentences, **ids})
    _json(
        root / ("coco/dataset_coco.json" if coco else "flickr30k/dataset_flickr30k.json"), {"images": images}
    )


def vqa(root: Path, name: str, prefix: str, n: int) -> None:
    for split, start in (("val2014", 0), ("train2014", 100)):
        questions, annotations = [], []
        for i in range(n):
            image, number = start + i // 2, 10 * (start + i)
            _image(root / f"coco/{split}/COCO_{split}_{image:012d}.jpg", image)
            words = f"what colour is box {i}" + "?" * (i % 3)
            questions.append({"image_id": image, "question": words, "question_id": number})
            annotations.append(
                {
                    "question_id": number, "image_id": image, "question_type": "what", "answer_type": "other",
                    "multiple_choice_answer": COLOURS[i % 8],
                    "answers": [
                        {"answer": COLOURS[(i + (k > 6)) % 8], "answer_id": k + 1} for k in range(10)
                    ],
                }
            )  # fmt: skip
        folder = root / name
        _json(folder / f"{prefix}OpenEnded_mscoco_{split}_questions.json",
              {"data_subtype": split, "questions": questions})  # fmt: skip
        _json(folder / f"{prefix}mscoco_{split}_annotations.json", {"annotations": annotations})


def textvqa(root: Path, n: int) -> None:
    for split in ("val", "train"):
        data = []
        for i in range(n):
            image = f"{split}{i // 2:04d}"
            _image(root / f"textvqa/train_images/{image}.jpg", i // 2 + 20 * (split == "train"))
            data.append({"question_id": i, "image_id": image, "question": f"what says {i}?",
                         "answers": ["stop"] * 8 + ["go"] * 2})  # fmt: skip
        _json(root / f"textvqa/TextVQA_0.5.1_{split}.json", {"data": data})


def vizwiz(root: Path, n: int) -> None:
    for split in ("val", "train"):
        data = []
        for i in range(n):
            name = f"VizWiz_{split}_{i:08d}.jpg"
            _image(root / f"vizwiz/{split}/{name}", i + 20 * (split == "train"))
            answers = [{"answer": "a can", "answer_confidence": "yes"}] * 10
            data.append({"image": name, "question": "What is it?", "answers": answers,
                         "answer_type": "other", "answerable": 1})  # fmt: skip
        _json(root / f"vizwiz/{split}.json", data)


def docvqa(root: Path, n: int) -> None:
    for split in ("val", "train"):
        data = []
        for i in range(n):
            name = f"documents/{split}{i // 2}.png"
            _image(root / "docvqa" / name, i // 2 + 20 * (split == "train"))
            data.append({"questionId": i, "question": f"Which year, {i}?", "image": name,
                         "answers": ["1998", "in 1998"], "question_types": ["form"]})  # fmt: skip
        _json(root / f"docvqa/{split}_v1.0_withQT.json", {"data": data})


def chartqa(root: Path, n: int) -> None:
    for split in ("test", "train"):
        for kind in ("human", "augmented"):
            rows = []
            for i in range(n // 2):
                _image(root / f"chartqa/{split}/png/{kind}{i}.png", i)
                rows.append({"imgname": f"{kind}{i}.png", "query": "How high?", "label": str(10 + i)})
            _json(root / f"chartqa/{split}/{split}_{kind}.json", rows)


def mmmu(root: Path, n: int) -> None:
    for split, name in (("validation", "validation"), ("dev", "dev")):
        for subject in ("Art", "Art_Theory"):
            rows = []
            for i in range(n // 2):
                open_question = i == 1
                rows.append(
                    {
                        "id": f"{name}_{subject}_{i + 1}",
                        "question": ("Which is <image 2>, and which <image 1>?", "Which <image 1>?")[i > 0],
                        "options": "[]" if open_question else "['a red box', \"the box's lid\", '3']",
                        "answer": "['24/7', '3.43']" if open_question else "B",
                        "question_type": "open" if open_question else "multiple-choice",
                        "image_1": _bytes(2 * i), "image_2": _bytes(2 * i + 1) if i == 0 else None,
                    }
                )  # fmt: skip
            _parquet(root / f"mmmu/{subject}/{split}-00000-of-00001.parquet", rows)


def mathvista(root: Path, n: int) -> None:
    rows = [
        {
            "pid": str(i), "question": f"What is {i}?", "image": f"{i}.jpg", "decoded_image": _bytes(i),
            "choices": ["80", str(i), "90"], "answer": str(i), "question_type": "multi_choice",
        }
        for i in range(n)
    ]  # fmt: skip
    rows.append({**rows[0], "pid": "free", "choices": None, "question_type": "free_form"})
    _parquet(root / "mathvista/data/testmini-00000-of-00001-725687bf7a18d64b.parquet", rows)


def mmbench(root: Path, n: int) -> None:
    """Two turns of each question; the second turn names the first's row for its picture."""
    lines = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"]
    for i in range(n // 2):
        image = base64.b64encode(picture(i)).decode()
        hint = "Look close." if i == 0 else "nan"
        lines.append(f"{i}\tWhich one, {i}?\t{hint}\tbox\tcup\t\t\tA\tcolour\t{image}")
        lines.append(f"{i + 1_000_000}\tWhich one, {i}?\t{hint}\tcup\tbox\t\t\tB\tcolour\t{i}")
    path = root / "mmbench/mmbench_dev_20230712.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pope(root: Path, n: int) -> None:
    for kind in ("random", "popular", "adversarial"):
        lines = []
        for i in range(n // 3):
            name = f"COCO_val2014_{i // 2:012d}.jpg"
            _image(root / "coco/val2014" / name, i // 2)
            words = f"Is there a {COLOURS[i % 8]} box in the image?"
            lines.append({"question_id": i + 1, "image": name, "text": words, "label": ("yes", "no")[i % 2]})
        path = root / f"pope/coco_pope_{kind}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def pathvqa(root: Path, n: int) -> None:
    for split in ("test", "train"):
        for file in range(2):
            rows = [
                {"image": _bytes(i), "question": "What is seen?", "answer": ("yes", "a cell")[i % 2]}
                for i in range(n // 2)
            ]
            _parquet(root / f"pathvqa/data/{split}-{file:05d}-of-00002.parquet", rows)


def vqa_rad(root: Path, n: int) -> None:
    rows = []
    for i in range(2 * n):
        name = f"synpic{i // 2}.jpg"
        _image(root / "vqa_rad/VQA_RAD Image Folder" / name, i // 2)
        phrase = ("test_freeform", "test_para")[i % 2] if i < n else "freeform"
        rows.append({"qid": i, "image_name": name, "question": " Is it? ", "answer": i if i == 3 else "Yes",
                     "answer_type": ("CLOSED ", "OPEN")[i % 2], "phrase_type": phrase})  # fmt: skip
    _json(root / "vqa_rad/VQA_RAD Dataset Public.json", rows)


def ai2d(root: Path, n: int) -> None:
    rows = [
        {
            "question": f"Which {i}?",
            "options": ["sun", "moon", "sea"],
            "answer": str(i % 3),
            "image": _bytes(i),
        }
        for i in range(n)
    ]
    _parquet(root / "ai2d/data/test-00000-of-00001.parquet", rows)


def imagenet(root: Path, n: int) -> None:
    classes = [f"n0000000{c} {COLOURS[c]} box, {COLOURS[c]} cube" for c in range(3)]
    path = root / "imagenet/LOC_synset_mapping.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(classes) + "\n", encoding="utf-8")
    for i in range(n):
        _image(root / f"imagenet/val/n0000000{i % 3}/ILSVRC2012_val_{i:08d}.JPEG", i)


def release(name: str, root: Path, n: int) -> None:
    """`n` samples of the task's evaluated part, and some to draw examples from, at their places."""
    match name:
        case "coco_captions" | "coco_retrieval":
            karpathy(root, n, coco=True)
        case "flickr30k_captions":
            karpathy(root, n, coco=False)
        case "vqav2":
            vqa(root, "vqav2", "v2_", n)
        case "okvqa":
            vqa(root, "okvqa", "", n)
        case "mathvista_mc":
            mathvista(root, n)
        case _:
            globals()[name](root, n)
