"""The plan: fill, balance over ranks, speed, and a start in the middle of 100 million samples.

    python tests/benchmarks/bench_plan.py [--dataset DIR] [--scratch DIR] [--out FILE]

The mixture has the shape of Idefics2's second stage (2405.02246, section 4.2): web documents with 0 to 30
pictures, captions, PDF pages, text; pictures of up to 980 pixels in patches of 14, 64 tokens each; rows of
2,048 tokens. With a built dataset, the same figures of its sources, drawn evenly, from real widths, heights
and lengths of text (four characters a token).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline.stream.balance import assign
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.mixture import Mixture
from data_pipeline.stream.planner import Cursor, Planner
from data_pipeline.stream.sizes import Chunk, Sizes, write_sizes
from data_pipeline.view import light_rows

LENGTH, EDGE, PATCH, IMAGE_TOKENS = 2048, 980, 14, 64
H200_TOKENS_PER_S = 989e12 * 0.5 / (6 * 8.4e9)  # of the 8B recipe at 50 % MFU
WEIGHTS = {"documents": 0.45, "captions": 0.35, "pdf": 0.1, "text": 0.1}
MILLIONS = {"documents": 30, "captions": 60, "pdf": 5, "text": 5}
Document = list[tuple[int, int]]  # (tokens, patches) of its segments; a picture has patches


def picture(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, EDGE / max(width, height))
    return IMAGE_TOKENS + 2, max(1, int(width * scale) // PATCH) * max(1, int(height * scale) // PATCH)


def documents(rng: np.random.Generator) -> Iterator[tuple[str, Document]]:
    """One of each source, again and again."""

    def text(mean: float, spread: float) -> tuple[int, int]:
        return int(np.clip(rng.lognormal(np.log(mean), spread), 2, 3000)), 0

    def photo() -> tuple[int, int]:
        width = int(np.clip(rng.lognormal(6.5, 0.5), 150, 3000))
        return picture(width, int(np.clip(width / rng.lognormal(0.15, 0.35), 150, 3000)))

    while True:
        pictures = min(30, int(rng.geometric(0.35)) - 1) if rng.random() < 0.9 else int(rng.integers(5, 31))
        web = [photo() for _ in range(pictures)] + [
            text(67, 0.9) for _ in range(pictures + 1 + rng.poisson(4))
        ]
        yield "documents", [web[i] for i in rng.permutation(len(web))]
        yield "captions", [photo(), text(16, 0.6)]
        yield "pdf", [picture(EDGE, int(rng.choice([692, 757, 1268]))), text(400, 0.6)]
        yield "text", [text(55, 0.8) for _ in range(int(rng.geometric(0.12)))]


def pieces(document: Document, budget: Budget) -> list[tuple[int, int, int]]:
    """The document cut between segments, and inside texts that are longer than a row."""
    found, tokens, images, patches = [], 1, 0, 0
    for size, more in document:
        while tokens + size > budget.tokens or (budget.patches and patches + more > budget.patches):
            taken = budget.tokens - tokens if not more and size > budget.tokens - 1 else 0
            found.append((tokens + taken, images, patches))
            size, tokens, images, patches = size - taken, 1, 0, 0
        tokens, images, patches = tokens + size, images + (more > 0), patches + more
    found.append((min(tokens + 1, budget.tokens), images, patches))
    return [p for p in found if p[0] > 2]


def chunk(members: list[Document], budget: Budget) -> Chunk:
    return Chunk.of([[(pieces(d, budget), None)] for d in members])


def simulated(count: int) -> dict[str, list[Document]]:
    made: dict[str, list[Document]] = {name: [] for name in WEIGHTS}
    for name, document in documents(np.random.default_rng(0)):
        made[name].append(document)
        if len(made["text"]) == count:
            return made
    raise AssertionError("documents have no end")


def real(dataset: Path) -> dict[str, list[Document]]:
    made: dict[str, list[Document]] = {}
    for _, row in light_rows(dataset):
        document = []
        for segment in row["segments"]:
            if segment["type"] == "image":
                media = row["media"][segment["media"]]
                document.append(picture(media["width"], media["height"]))
            elif segment["text"]:
                document.append((max(1, len(segment["text"]) // 4), 0))
        made.setdefault(row["source"], []).append(document)
    return made


def planner_of(
    folder: Path, found: dict[str, list[Document]], weights: dict[str, float], budget: Budget
) -> Planner:
    for name, members in found.items():
        write_sizes(folder / name, [chunk(members, budget)], key="bench")
    return opened(folder, weights, budget)


def opened(folder: Path, weights: dict[str, float], budget: Budget) -> Planner:
    sizes = {name: Sizes.open(folder / name, "bench") for name in weights}
    mixture = Mixture(weights, 0, lengths={name: len(s) for name, s in sizes.items()})
    return Planner(sizes, mixture, budget, 0)


def figures(planner: Planner, budget: Budget) -> dict[str, object]:
    """Fill, and max / mean over ranks of both costs, the mean of several steps."""
    plan = planner.plan(planner.start(), 10_240)
    tokens, patches = plan.rows.tokens, plan.rows.patches
    loose = [(p.tokens, p.patches) for row in plan.rows for p in row]
    order = np.random.default_rng(0).permutation(len(loose))
    lengths, costs = np.array(loose)[order].T
    groups = lengths[: len(lengths) // 32 * 32].reshape(-1, 32)
    plain = first_fit(lengths, costs, budget)
    balance = {}
    for ranks in (8, 64, 1024):
        for each in (1, 2, 4, 8):
            rows = ranks * each
            balance[f"{ranks} ranks x {each} rows"] = {
                "patches": ratio(tokens, patches, rows, ranks, balanced)[1],
                "tokens": ratio(tokens, patches, rows, ranks, balanced)[0],
                "patches_in_turn": ratio(tokens, patches, rows, ranks, in_turn)[1],
                "patches_first_fit": ratio(*plain, rows, ranks, in_turn)[1],
                "tokens_first_fit": ratio(*plain, rows, ranks, in_turn)[0],
            }
    return {
        "draws_in_a_window": planner.window,
        "tokens_per_piece": round(float(lengths.mean()), 1),
        "patches_per_row": round(float(patches.mean())),
        "heaviest_row_to_mean": round(float(patches.max() / patches.mean()), 3),
        "fill": round(plan.fill, 4),
        "fill_first_fit": round(float(plain[0].mean()) / budget.tokens, 4),
        "fill_padded_to_longest_of_32": round(float(groups.sum() / (groups.max(1) * 32).sum()), 4),
        "max_to_mean": balance,
    }


def first_fit(tokens: np.ndarray, patches: np.ndarray, budget: Budget) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and patches of rows filled first fit in the order of the draws, over 64 open rows."""
    limit = budget.patches or 1 << 40
    full, free, seen = [], np.full(64, budget.tokens), np.zeros(64, np.int64)
    for t, p in zip(tokens.tolist(), patches.tolist(), strict=True):
        fits = (free >= t) & (seen + p <= limit)
        row = int(fits.argmax())
        if not fits[row]:
            row = int(free.argmin())
            full.append((budget.tokens - int(free[row]), int(seen[row])))
            free[row], seen[row] = budget.tokens, 0
        free[row] -= t
        seen[row] += p
    a, b = np.array(full).T
    return a, b


Deal = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def balanced(tokens: np.ndarray, patches: np.ndarray, ranks: int) -> np.ndarray:
    return assign(tokens, patches, ranks, 1).reshape(ranks, -1)


def in_turn(tokens: np.ndarray, patches: np.ndarray, ranks: int) -> np.ndarray:
    return np.arange(len(tokens)).reshape(-1, ranks).T


def ratio(tokens: np.ndarray, patches: np.ndarray, rows: int, ranks: int, deal: Deal) -> tuple[float, float]:
    found = []
    for start in range(0, min(len(tokens) - rows, 9 * rows) + 1, rows):
        t, p = tokens[start : start + rows], patches[start : start + rows]
        dealt = deal(t, p, ranks)
        found.append([c[dealt].sum(1).max() * ranks / c.sum() for c in (t, p)])
    if not found:
        return float("nan"), float("nan")
    a, b = np.mean(found, 0).round(4).tolist()
    return a, b


def speed(planner: Planner, rounds: int = 3, windows: int = 12) -> dict[str, float]:
    best, rows, tokens = float("inf"), 0, 0
    for n in range(rounds):
        cursor, rows, tokens = Cursor(n * windows, 0), 0, 0
        start = time.process_time()
        while cursor.window < (n + 1) * windows:
            plan = planner.plan(cursor, 64)
            cursor, rows, tokens = plan.after, rows + 64, tokens + int(plan.rows.tokens.sum())
        best = min(best, time.process_time() - start)
    rows_of_1024 = np.random.default_rng(0).integers(0, 30_000, 8192)
    start = time.process_time()
    assign(rows_of_1024, rows_of_1024, 1024, 1)
    return {
        "seconds_to_assign_8192_rows": round(time.process_time() - start, 4),
        "samples_per_s": round(windows * planner.window / best),
        "rows_per_s": round(rows / best),
        "tokens_per_s": round(tokens / best),
        "of_one_h200": round(tokens / best / H200_TOKENS_PER_S, 1),
    }


def first_batch(folder: Path, budget: Budget, window: int, global_rows: int = 2048) -> dict[str, float]:
    """In a process of its own: seconds from opening the sizes to the first plan, and what it all took."""
    start = time.perf_counter()
    planner = opened(folder, WEIGHTS, budget)
    plan = planner.plan(Cursor(window, 7), global_rows)
    seconds = time.perf_counter() - start
    rows = len(plan.rows)
    peak = peak_mb()
    for _ in range(20):
        plan = planner.plan(plan.after, global_rows)
    return {"seconds": seconds, "rows": rows, "peak_mb": peak, "peak_mb_after_20_more": peak_mb()}


def peak_mb() -> float:
    """Of this program alone; `ru_maxrss` would count what the parent held when it started us."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def resume(folder: Path, found: dict[str, list[Document]], budget: Budget) -> dict[str, object]:
    for name, millions in MILLIONS.items():
        base = chunk(found[name], budget)
        part = repeated(base, 100_000 // len(found[name]))
        write_sizes(folder / name, (part for _ in range(millions * 10)), key="bench")
    planner = opened(folder, WEIGHTS, budget)
    ahead = planner.plan(Cursor(0, 0), 8 * 2048).after.window
    window = 1_000_000 * ahead // 8
    made: dict[str, list[dict[str, float]]] = {"step 0": [], "step 1,000,000": []}
    for _ in range(3):
        for name, at in (("step 0", 0), ("step 1,000,000", window)):
            command = [sys.executable, __file__, "--first-batch", str(folder), str(at)]
            made[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    best = {name: min(runs, key=lambda r: r["seconds"]) for name, runs in made.items()}
    return {
        "samples": sum(MILLIONS.values()) * 1_000_000,
        "bytes": sum(f.stat().st_size for f in folder.iterdir()),
        "window": window,
        **best,
        "seconds_beyond_step_0": best["step 1,000,000"]["seconds"] - best["step 0"]["seconds"],
    }


def repeated(base: Chunk, times: int) -> Chunk:
    return Chunk(
        np.tile(base.variants, times),
        np.tile(base.pieces_of, times),
        np.tile(base.reasons, times),
        base.phrases,
        np.tile(base.pieces, times),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--first-batch", nargs=2, metavar=("DIR", "WINDOW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    bounded = Budget(tokens=LENGTH, patches=30_000)
    if args.first_batch:
        print(json.dumps(first_batch(Path(args.first_batch[0]), bounded, int(args.first_batch[1]))))
        return
    result: dict[str, object] = {}
    found = simulated(10_000)
    sources = {"simulated": (found, WEIGHTS)}
    if args.dataset:
        members = real(args.dataset)
        sources["real"] = (members, dict.fromkeys(members, 1.0))
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for name, (members, weights) in sources.items():
            for most in (None, 30_000, 20_000):
                budget = Budget(tokens=LENGTH, patches=most)
                folder = Path(scratch, f"{name}-{most}")
                planner = planner_of(folder, members, weights, budget)
                result[f"{name}, at most {most} patches a row"] = {
                    **figures(planner, budget),
                    **speed(planner),
                }
        if args.scratch:
            result["resume"] = resume(Path(scratch, "resume"), found, bounded)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
