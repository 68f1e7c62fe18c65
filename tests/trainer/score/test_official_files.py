"""`fovea score` on random files as the benchmarks distribute them, against a naive reading of each rule."""

import json
import random
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from score_files import ANSWERS, CAPTION_REFERENCES, CAPTIONS, QUESTIONS
from trainer.evaluation.score import score

REFERENCE = Path(__file__).parents[4] / "shared" / "evalref"


def same(result: dict, expected: dict) -> None:
    assert {k: result[k] for k in expected} == {
        k: v if isinstance(v, dict) else pytest.approx(v, abs=1e-12) for k, v in expected.items()
    }


# --- VQA ------------------------------------------------------------------------------------------

WORDS = [
    "red",
    "The",
    "a",
    "none",
    "two",
    "ten",
    "1,000",
    "3.5",
    "u.s.",
    "well-known",
    "what?",
    "x ;y",
    "it\n",
]
MARKS = ';/[]"{}()=+\\_-><@`,?!'


def normal(text: str) -> str:
    """Steps 3 and 4 of the official rules, as they are told (without words of the contraction table)."""
    whole = text
    for mark in MARKS:
        if mark + " " in whole or " " + mark in whole or re.search(r"\d,\d", whole):
            text = text.replace(mark, "")
        else:
            text = text.replace(mark, " ")
    text = re.sub(r"\.(?!\d)", "", text)
    digits = {"none": "0", "zero": "0", "two": "2", "ten": "10"}
    return " ".join(digits.get(w, w) for w in text.lower().split() if w not in ("a", "an", "the"))


def official(answer: str, truths: list[str]) -> float:
    answer, *truths = (t.replace("\n", " ").replace("\t", " ").strip() for t in (answer, *truths))
    if len(set(truths)) > 1:
        answer, *truths = map(normal, (answer, *truths))
    others = [truths[:i] + truths[i + 1 :] for i in range(len(truths))]
    return sum(min(1, rest.count(answer) / 3) for rest in others) / len(truths)


@pytest.mark.parametrize("ids", [int, str])
def test_vqa_is_the_rule_read_naively_by_type_whatever_form_the_ids_have(write, ids):
    draw = random.Random(5)
    phrases = [" ".join(draw.choices(WORDS, k=draw.randint(1, 2))) for _ in range(12)]
    annotations, predictions, found = [], [], {}
    for i in range(300):
        near = draw.sample(phrases, 3)
        truths = [draw.choice(near) for _ in range(10)] if i % 4 else [near[0]] * 10
        kind = draw.choice(["yes/no", "number", "other"])
        annotations.append(
            {"question_id": i, "image_id": i // 3, "question_type": "what", "answer_type": kind,
             "multiple_choice_answer": truths[0],
             "answers": [{"answer": t, "answer_confidence": "yes", "answer_id": n + 1}
                         for n, t in enumerate(truths)]}
        )  # fmt: skip
        said = draw.choice([*near, near[0].lower(), ""])
        predictions.append({"question_id": ids(i), "answer": said})
        found.setdefault(kind, []).append(official(said, truths))
    every = [v for values in found.values() for v in values]
    assert 0.2 < np.mean(every) < 0.8
    page = {"info": {}, "data_type": "mscoco", "license": {}, "annotations": annotations}
    same(
        score("vqa", *write(predictions, page)),
        {
            "n": 300,
            "overall": round(100 * sum(every) / 300, 2),
            "per_answer_type": {k: round(100 * sum(v) / len(v), 2) for k, v in sorted(found.items())},
        },
    )


def test_vqa_annotations_without_types_are_scored_without_groups(write):
    bare = [{k: v for k, v in q.items() if k not in ("answer_type", "question_type")} for q in QUESTIONS]
    result = score("vqa", *write(ANSWERS, {"annotations": bare}))
    same(result, {"overall": 80.0, "per_answer_type": {}, "per_question_type": {}})
    some = [bare[0] | {"answer_type": "other"}, bare[1]]
    with pytest.raises(DataError, match="annotation 1: no 'answer_type'"):
        score("vqa", *write(ANSWERS, {"annotations": some}))


# --- ANLS -----------------------------------------------------------------------------------------


def naive_anls(answer: str, truths: list[str]) -> float:
    @lru_cache(None)
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != t[j - 1])
        )

    best = 0.0
    for truth in truths:
        a, t = (" ".join(x.strip().lower().split()) for x in (answer, truth))
        distance.cache_clear()
        length = max(len(answer.upper()), len(truth.upper()))
        similarity = 1 - distance(len(a), len(t)) / length if length else 1.0
        best = max(best, similarity if similarity >= 0.5 else 0.0)
    return best


def test_anls_of_a_submission_with_evidence_is_the_rule_read_naively(write):
    draw = random.Random(7)
    gold, said, scores = [], [], []
    for i in range(150):
        truths = ["".join(draw.choices("abÉß 1", k=draw.randint(1, 9))) for _ in range(draw.randint(1, 3))]
        answer = list(draw.choice(truths))
        for _ in range(draw.randint(0, 4)):
            answer[draw.randrange(len(answer))] = draw.choice(["", "b", " ", "Z", "é"])
        answer = "".join(answer)
        gold.append(
            {"questionId": i, "question": "q", "docId": 3, "ucsf_document_page_no": "1", "answers": truths}
        )
        said.append({"questionId": i, "answer": answer, "evidence": [[0.1, 0.2]], "answer_page": 0})
        scores.append(naive_anls(answer, truths))
    assert 0.2 < np.mean(scores) < 0.95
    draw.shuffle(said)
    page = {"dataset_name": "docvqa", "dataset_split": "val", "data": gold}
    same(score("anls", *write(said, page)), {"n": 150, "ANLS": float(np.mean(scores))})


# --- MMMU -----------------------------------------------------------------------------------------


def naive_letter(response: str, letters: str) -> str | None:
    for c in ",.!?;:'":
        response = response.strip(c)
    response = " " + response + " "
    for form in ("({})", " {} "):
        candidates = [c for c in letters if form.format(c) in response]
        if candidates:
            return candidates[int(np.argmax([response.rfind(form.format(c)) for c in candidates]))]
    return None


def naive_ends(response: str) -> list[str]:
    lines, found = response.strip().strip(".").lower().split("\n"), []
    leads = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "]
    for n, line in enumerate(lines):
        leads += ["="] * (n == len(lines) - 1)
        shortest = None
        for lead in leads:
            end = line.split(lead)[-1].strip()
            if lead in line and (not shortest or len(end) < len(shortest)):
                shortest = end
        found += [shortest] * bool(shortest and shortest not in [":", ",", ".", "!", "?", ";", "'"])
    return found or ["\n".join(lines)]


def naive_normal(text: str) -> list:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        return [" " + text.lower(), text.lower() + " "] if len(text) == 1 else [text.lower()]


def naive_open(response: str, truths: list[str]) -> bool:
    said = naive_ends(response)
    for key in list(said):
        said += re.findall(r"-?\b\d{1,3}(?:,\d{3})+\b", key)
        said += re.findall(r"-?\d+(?:\.\d+)?[eE][+-]?\d+", key)
        said += re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])", key)
    right = [n for t in truths for n in naive_normal(t)]
    candidates = [n for s in said for n in naive_normal(s)]
    texts = [r for r in right if isinstance(r, str)]
    return any(r in c for c in candidates if isinstance(c, str) for r in texts) or any(
        c in right for c in candidates if not isinstance(c, str)
    )


def test_mmmu_is_the_program_read_naively_with_lists_of_answers_and_open_questions(write):
    draw = random.Random(11)
    choices = [
        "{}",
        "({})",
        "The answer is ({}).",
        "{}.",
        "'{}'",
        "A or {}",
        "(B) beats {}",
        "({}) not (A)",
        "none",
        "{}: so",
    ]
    opens = [
        "{}",
        "so it is {}",
        "x = {}\nthe result is {}",
        "about {} m.",
        "Answer {}",
        "y={}",
        "I think",
        "is 3\n= {}",
    ]
    values = ["30", "1,200", "2.346", "-3", "1e3", "transistor", "x", "Green light", "0.5"]
    truths, said, by_subject = {}, {}, {}
    for i in range(400):
        subject = draw.choice(["Art", "Art_Theory", "Math"])
        name = f"validation_{subject}_{i}"
        if i % 2:
            truth = draw.choice("ABCD")
            said[name] = draw.choice(choices).format(draw.choice([truth, *"ABCDE"]))
            truths[name] = {"question_type": "multiple-choice", "ground_truth": truth}
            right = naive_letter(said[name], "ABCD") == truth
        else:
            truth = draw.sample(values, draw.randint(1, 2))
            said[name] = draw.choice(opens).replace("{}", draw.choice([truth[0], draw.choice(values)]))
            truths[name] = {"question_type": "short-answer", "ground_truth": truth if i % 4 else truth[0]}
            right = naive_open(said[name], truth if i % 4 else truth[:1])
        by_subject.setdefault(subject, []).append(right)
    every = [r for rs in by_subject.values() for r in rs]
    assert 0.2 < np.mean(every) < 0.6
    same(
        score("mmmu", *write(said, truths)),
        {"accuracy": np.mean(every), "per_subject": {s: np.mean(rs) for s, rs in sorted(by_subject.items())}},
    )


def test_a_question_that_is_answered_twice_is_no_answer_file(write):
    twice = '{"validation_Art_1": "A", "validation_Art_1": "B"}'
    truths = {"validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"}}
    with pytest.raises(DataError, match="'validation_Art_1' occurs a second time"):
        score("mmmu", *write(twice, truths))


# --- classification and retrieval -----------------------------------------------------------------


def test_ties_stand_in_the_order_of_their_index(write):
    draw = np.random.default_rng(3)
    scores = draw.integers(0, 4, (200, 12))  # most rows have ties
    labels = draw.integers(0, 12, 200)
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = {f"top{k}": float((order[:, :k] == labels[:, None]).any(1).mean()) for k in (1, 5)}
    result = score("classification", *write({"scores": scores.tolist()}, {"labels": labels.tolist()}))
    same(result, {"n": 200, **hits})


def test_recall_with_five_captions_an_image_and_ties_is_counted_from_sorted_lists(write):
    draw = np.random.default_rng(4)
    owners = draw.permutation(np.repeat(np.arange(30), 5))
    scores = draw.integers(0, 9, (150, 30)) + 4 * (owners[:, None] == np.arange(30))
    expected = {}
    for k in (1, 5, 10):
        images = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        expected[f"image_retrieval_recall@{k}"] = float((images == owners[:, None]).any(1).mean())
        texts = np.argsort(-scores.T, axis=1, kind="stable")[:, :k]
        expected[f"text_retrieval_recall@{k}"] = float(
            (owners[texts] == np.arange(30)[:, None]).any(1).mean()
        )
    assert 0 < min(expected.values()) < 1
    page = {"text_by_image_scores": scores.tolist()}
    same(score("retrieval", *write(page, {"text_to_image": owners.tolist()})), {"n": 30, **expected})


# --- captions, and what all files share -----------------------------------------------------------


def test_more_keys_other_ids_a_byte_order_mark_and_unicode_change_no_caption_score(write):
    plain = score("captions", *write(CAPTIONS, {"annotations": CAPTION_REFERENCES}))
    results = [{"image_id": str(c["image_id"]), "id": 7, "caption": c["caption"]} for c in CAPTIONS]
    annotations = [{"id": n, "segmentation": [], **c} for n, c in enumerate(CAPTION_REFERENCES)]
    page = {
        "info": {},
        "images": [{"id": 1, "file_name": "x.jpg"}],
        "licenses": [],
        "annotations": annotations,
    }
    assert score("captions", *write("\ufeff" + json.dumps(results), page)) == plain
    odd = [{"image_id": 1, "caption": ""}, {"image_id": 2, "caption": "一个 красный café 🟥\u2028"}]
    values = score("captions", *write(odd, {"annotations": CAPTION_REFERENCES}))
    assert values["CIDEr"] == 0
    assert values["ROUGE_L"] == 0


@pytest.mark.parametrize("corpus", ["coco_fakecap126", "nlgeval_readme", "clipscore_good", "clipscore_bad"])
@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/evalref is not on this machine")
def test_raw_captions_equal_the_reference_to_the_last_digit(write, corpus):
    texts = json.loads((REFERENCE / "captioning" / corpus / "input.json").read_text())
    expected = json.loads((REFERENCE / "captioning" / corpus / "expected.json").read_text())["scores"]
    said = [{"image_id": i, "caption": t["hyp"]} for i, t in texts.items()]
    truths = [{"image_id": i, "caption": c} for i, t in texts.items() for c in t["refs"]]
    found = score("captions", *write(said, {"annotations": truths}))
    names = ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"]
    assert {n: found[n] for n in names} == {n: pytest.approx(expected[n], rel=1e-14) for n in names}
