"""Small prediction and reference files of every metric, in the benchmarks' own formats."""

import json

import pytest

CAPTIONS = [{"image_id": 1, "caption": "A red cube."}, {"image_id": 2, "caption": "a blue ball"}]

CAPTION_REFERENCES = [*CAPTIONS, {"image_id": 2, "caption": "one ball"}]

ANSWERS = [{"question_id": 1, "answer": "red"}, {"question_id": 2, "answer": "2"}]

QUESTIONS = [
    {"question_id": 1, "answers": [{"answer": "red"}] * 10, "answer_type": "other", "question_type": "color"},
    {"question_id": 2, "answers": ["two"] * 2 + ["3"] * 8, "answer_type": "number", "question_type": "count"},
]

CHARTS = [{"imgname": "a.png", "query": "how many?", "label": "100"}] * 2

CHARTS.append({"imgname": "b.png", "query": "how many?", "label": "Red"})

CHOICE, SHORT = "multiple-choice", "short-answer"

POPE = [
    {"question_id": i, "image": f"{i // 2}.jpg", "text": f"Is there a {thing}?", "label": label}
    for i, (thing, label) in enumerate([("dog", "yes"), ("cat", "no"), ("bird", "yes"), ("cow", "no")])
]

# metric -> (predictions, references, what is printed beside the metric, n and intervals)
CASES = {
    "vqa": (
        ANSWERS,
        {"annotations": QUESTIONS},
        {
            "overall": 80.0,
            "per_answer_type": {"number": 60.0, "other": 100.0},
            "per_question_type": {"color": 100.0, "count": 60.0},
        },
    ),
    "vqa-lmms": (
        ANSWERS,
        {"annotations": QUESTIONS},
        {
            "overall": 80.0,
            "per_answer_type": {"number": 60.0, "other": 100.0},
            "per_question_type": {"color": 100.0, "count": 60.0},
        },
    ),
    "exact": (ANSWERS, {"annotations": QUESTIONS}, {"exact": 0.5, "folded": 0.5}),
    "contains": (ANSWERS, {"annotations": QUESTIONS}, {"contains": 0.5}),
    "anls": (
        [{"questionId": 1, "answer": "CocaCola"}, {"questionId": 2, "answer": "x"}],
        {"data": [{"questionId": 1, "answers": ["Coca Cola"]}, {"questionId": 2, "answers": ["y", "X"]}]},
        dict.fromkeys(("ANLS", "ANLS_st_vqa", "ANLS_paper"), 17 / 18),
    ),
    "relaxed": (
        [
            {"imgname": c["imgname"], "query": c["query"], "answer": a}
            for c, a in zip(CHARTS, ["104", "120", "red"], strict=True)
        ],
        CHARTS,
        {"relaxed": 2 / 3},
    ),
    "mmmu": (
        {"val_Art_1": "It is (B).", "val_Art_2": "no idea", "val_Math_1": "x = 4", "val_Math_2": "E"},
        {
            "val_Art_1": {"question_type": CHOICE, "ground_truth": "B"},
            "val_Art_2": {"question_type": CHOICE, "ground_truth": "A"},
            "val_Math_1": {"question_type": SHORT, "ground_truth": ["4", "four"]},
            "val_Math_2": {"question_type": CHOICE, "ground_truth": "E"},
        },
        {"accuracy": 0.75, "per_subject": {"Art": 0.5, "Math": 1.0}},
    ),
    "classification": (
        {"scores": [[0.1, 0.9], [0.2, 0.1], [0.5, 0.5]]},
        {"labels": [1, 1, 0]},
        {"top1": 2 / 3, "top5": 1.0},
    ),
    "retrieval": (
        {"text_by_image_scores": [[0.9, 0.1], [0.8, 0.3], [0.2, 0.4]]},
        {"text_to_image": [0, 1, 1]},
        {
            "image_retrieval_recall@1": 2 / 3,
            "image_retrieval_recall@5": 1.0,
            "image_retrieval_recall@10": 1.0,
            **{f"text_retrieval_recall@{k}": 1.0 for k in (1, 5, 10)},
            "texts": 3,
        },
    ),
    "perplexity": (
        [{"id": "b", "nats": 6.0}, {"id": "a", "nats": 0}],
        {"data": [{"id": "a", "source": "web", "tokens": 3}, {"id": "b", "source": "web", "tokens": 3}]},
        {
            "perplexity": pytest.approx(2.718281828459045),
            "per_source": {"web": pytest.approx(2.718281828459045)},
        },
    ),
}


def lines(records) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def without_intervals(result):
    return {k: v for k, v in result.items() if k not in ("metric", "n", "interval_95", "units")}
