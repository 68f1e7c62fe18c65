"""Time to score captions and answers on one core; the ratio to pycocoevalcap's Python where it is installed.

python tests/benchmarks/bench_scoring.py [--images N] [--questions N]

Captions are made up of words as rare as Zipf says, seven to fourteen a caption, five references an image. The
bars: 5,000 images in 15 s, 200,000 answers in 20 s, intervals included.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trainer.evaluation.captioning import bleu, cider, rouge_l
from trainer.evaluation.ptb import tokenize
from trainer.evaluation.score import score

ROUNDS = 2


def words(rng: random.Random, n: int) -> Callable[[int], list[str]]:
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(n)]
    cumulative = list(itertools.accumulate(1 / (i + 1) for i in range(n)))
    return lambda k: rng.choices(vocabulary, cum_weights=cumulative, k=k)


def captions(images: int) -> tuple[list[dict], dict]:
    rng = random.Random(0)
    draw = words(rng, 9000)

    def one() -> str:
        ends = (".", ".", "", " on St. John's street.", ", isn't it?")
        return "A " + " ".join(draw(rng.randint(6, 13))) + rng.choice(ends)

    predictions = [{"image_id": i, "caption": one()} for i in range(images)]
    return predictions, {
        "annotations": [{"image_id": i, "caption": one()} for i in range(images) for _ in range(5)]
    }


def answers(questions: int) -> tuple[list[dict], dict]:
    """A third yes or no, the others short phrases; annotators agree more often than not."""
    rng = random.Random(0)
    draw = words(rng, 20_000)

    def phrase() -> str:
        return rng.choice(("yes", "no")) if rng.random() < 1 / 3 else " ".join(draw(rng.randint(1, 3)))

    predictions, annotations = [], []
    for i in range(questions):
        right = phrase()
        truths = [right if rng.random() < 0.7 else phrase() for _ in range(10)]
        said = right if rng.random() < 0.6 else phrase()
        predictions.append({"question_id": i, "answer": said})
        kinds = {"answer_type": rng.choice(("yes/no", "other")), "question_type": f"what {i % 65}"}
        annotations.append({"question_id": i, "image_id": i // 5, "answers": truths, **kinds})
    return predictions, {"annotations": annotations}


def best(run: Callable[[], object]) -> float:
    """CPU seconds, of the best round."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            run()
        times.append(time.process_time() - start)
    return min(times)


def files_scored(metric: str, predictions: list[dict], references: dict) -> float:
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "predictions.json"), Path(folder, "references.json")
        for path, page in zip(paths, (predictions, references), strict=True):
            path.write_text(json.dumps(page))
        return best(lambda: score(metric, *paths))


def ratio(predictions: list[dict], references: dict) -> dict[str, float]:
    """Seconds of pycocoevalcap's BLEU, ROUGE-L and CIDEr on tokens, and of ours."""
    theirs = {
        name: getattr(importlib.import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}"), name)()
        for name in ("Bleu", "Rouge", "Cider")
    }
    said = {p["image_id"]: [" ".join(tokenize(p["caption"]))] for p in predictions}
    truths: dict[int, list[str]] = {}
    for a in references["annotations"]:
        truths.setdefault(a["image_id"], []).append(" ".join(tokenize(a["caption"])))
    hyps, refs = (
        [said[i][0].split(" ") for i in truths],
        [[r.split(" ") for r in rs] for rs in truths.values()],
    )
    reference = best(lambda: [scorer.compute_score(truths, said) for scorer in theirs.values()])
    return {
        "ours": best(lambda: (bleu(hyps, refs), rouge_l(hyps, refs), cider(hyps, refs))),
        "theirs": reference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--questions", type=int, default=200_000)
    args = parser.parse_args()
    predictions, references = captions(args.images)
    print(f"captions, {args.images} images x 5: {files_scored('captions', predictions, references):.1f} s")
    try:
        both = ratio(predictions, references)
        print(
            f"  BLEU, ROUGE-L and CIDEr of tokens: {both['ours']:.1f} s, "
            f"pycocoevalcap {both['theirs']:.1f} s, ratio {both['ours'] / both['theirs']:.2f}"
        )
    except ImportError:
        print("  pycocoevalcap is not installed: no ratio")
    questions = answers(args.questions)
    for metric in ("vqa", "vqa-lmms"):
        print(f"{metric}, {args.questions} answers: {files_scored(metric, *questions):.1f} s")


if __name__ == "__main__":
    main()
