"""Documents a second of every text filter, on pieces of real books.

    python tests/benchmarks/bench_filters.py FOLDER_OF_HTML [--out FILE.json]

CPU time of one core, the best of several rounds, each step alone with a cold cache of words. `cost` is the
step's time over that of splitting the same texts into words once.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser

from data_pipeline.build.filter import measure
from data_pipeline.build.filter.config import FilterConfig, Repetition, TextLimits
from data_pipeline.build.filter.language import language
from data_pipeline.build.filter.steps import text_steps
from data_pipeline.build.steps import Kept
from data_pipeline.sample import Sample, Segment

PARAGRAPHS = 8  # of one document: about 1,700 characters


def documents(folder: Path) -> list[Sample]:
    found = []
    for path in sorted(folder.rglob("*.htm*")):
        texts = [p.text().strip() for p in LexborHTMLParser(path.read_bytes()).css("p")]
        texts = [t for t in texts if t]
        for n in range(0, len(texts), PARAGRAPHS):
            segments = tuple(Segment(type="text", text=t) for t in texts[n : n + PARAGRAPHS])
            found.append(Sample(id=f"{path.name}-{n}", kind="text", source="s", segments=segments))
    return found


def every_filter(words: Path) -> FilterConfig:
    return FilterConfig(
        preset="obelics",
        image_url_without=("logo",),
        personal_data=("email", "ip", "phone"),
        repetition=Repetition(),
        flagged_words=str(words),
        spam_words=str(words),
        common_words=str(words),
        paragraph=TextLimits(min_chars=1, min_common_words=0),
        document=TextLimits(min_chars=1, min_sentences=1, max_words=10**6, min_common_words=0),
    )


def seconds(work: Callable[[Sample], object], samples: list[Sample], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        measure._short_words.cache_clear()
        measure._long_words.cache_clear()
        start = time.process_time()
        for sample in samples:
            work(sample)
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    samples = documents(args.folder)
    language(samples[0].text)  # the model is loaded once per process
    split = seconds(lambda s: measure.words(s.text), samples, args.rounds) / len(samples)
    steps, left = {}, samples
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words.txt"
        words.write_text("one\ntwo\n")
        for step in text_steps({"s": every_filter(words)}):
            each = seconds(step.judge, left, args.rounds) / len(left)
            results = [step.judge(s) for s in left]
            kept = [r.sample for r in results if isinstance(r, Kept)]
            steps[step.name] = {
                "documents_per_second": round(1 / each),
                "cost": round(each / split, 2),
                "in": len(left),
                "out": len(kept),
            }
            left = kept
    result = {"documents": len(samples), "words_documents_per_second": round(1 / split), "steps": steps}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
