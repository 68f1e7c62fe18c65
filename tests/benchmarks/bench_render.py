"""Samples rendered a second, beside transformers' chat template and tokenizer on the same dialogues.

    python tests/benchmarks/bench_render.py [--samples 400] [--out FILE.json]

`over_transformers`: our CPU seconds over theirs, which give ids alone (ours: targets, tiles and cuts too).
`encoding`: the share of ours that is the tokenizer library's. `samples`: dialogues a second and core.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "toys"))

import mistral_like
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.chat import render
from data_pipeline.stream.fit import fit
from data_pipeline.stream.layout import LAYOUTS
from data_pipeline.stream.tokens import Tokenizer, train_tokenizer

WORDS = "what colour has the large square left of a small ring and how many circles are above it".split()  # noqa: SIM905
IMAGE_TOKENS = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng = random.Random(0)
    samples = [dialogue(rng, n) for n in range(args.samples)]
    found = {name: measure(name, samples, args.rounds) for name in LAYOUTS}
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if args.out:
        args.out.write_text(text + "\n")
    return 0


def measure(layout: str, samples: list[Sample], rounds: int) -> dict[str, float]:
    corpus = [s.text for s in samples[:100]]
    with tempfile.TemporaryDirectory() as work:
        if layout == "tiny":
            ours = train_tokenizer(corpus, 512)
        else:
            source = mistral_like.write(Path(work) / "in", *mistral_like.learn(corpus, 512), "legacy")
            ours = Tokenizer.load(source, layout)
        ours.save(Path(work) / "out")
        theirs = AutoTokenizer.from_pretrained(Path(work) / "out")
    messages = [asked(s) for s in samples]
    texts = [s.text for x in samples for s in x.segments if s.text]
    rendered = best(lambda: [render(s, ours, IMAGE_TOKENS, "answers") for s in samples], rounds)
    peer = best(lambda: [theirs.apply_chat_template(m, tokenize=True) for m in messages], rounds)
    encoded = best(lambda: [ours.encode(t) for t in texts], rounds)
    whole = [render(s, ours, IMAGE_TOKENS, "answers") for s in samples]
    budget = Budget(tokens=2048, images=8, patches=4096)
    fitted = best(lambda: [fit(r, budget, (256,), ours.bos_id) for r in whole], rounds)
    return {
        "samples": round(len(samples) / rendered),
        "tokens": round(sum(map(len, whole)) / rendered),
        "over_transformers": round(rendered / peer, 3),
        "encoding": round(encoded / rendered, 3),
        "fit_over_render": round(fitted / rendered, 3),
    }


def dialogue(rng: random.Random, n: int) -> Sample:
    """One picture, five questions and their answers."""
    segments = [Segment(type="image", media=0, role="user", turn=0)]
    for turn in range(5):
        for role, words in (("user", 12), ("assistant", 25)):
            text = " ".join(rng.choices(WORDS, k=words))
            segments.append(Segment(type="text", text=text, role=role, turn=turn))
    media = (Media(media_id=str(n)),)
    return Sample(
        id=str(n), kind="instruct", source="x", segments=tuple(segments), media=media, image_bytes=(b"",)
    )


def asked(sample: Sample) -> list[dict]:
    """The sample in the form that transformers takes."""
    first, *rest = [s for s in sample.segments if s.type == "text"]
    opening = [{"type": "image"}, {"type": "text", "text": first.text}]
    return [{"role": "user", "content": opening}, *({"role": s.role, "content": s.text} for s in rest)]


def best(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the quickest round."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
