"""Record how large every sample is once rendered: the table that plans are made from, made once and kept.

Nothing is decoded: tokens come from the text, tiles and patches from the recorded sizes of the pictures.
"""

import fcntl
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from data_pipeline.errors import TransientError
from data_pipeline.stream.chat import Unusable
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.processes import end_on_request, forkserver
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.sizes import Chunk, Sizes, VariantSizes, write_sizes
from data_pipeline.stream.source import Source

_SAMPLES = 512
"""Samples of a chunk: a worker's unit of work, a second or so."""

_SOME_WORK = 4 * _SAMPLES
"""Below so many samples starting worker processes takes longer than measuring."""


def sizes_of(
    source: Source,
    rendering: Rendering,
    directory: Path,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Sizes:
    """The sizes of `source` under `rendering`: from `directory` where they are, else measured into it.

    The samples are rendered in `workers` processes; `report` is told (samples done, samples in all). Where
    several processes ask at once, as ranks do, one measures and the others wait. One that is killed leaves
    nothing.
    """
    key = f"{source.digest}-{rendering.key}"
    path = directory / f"{source.name}-{source.split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.sizes"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the file, or with the process
            if not path.exists():
                chunks = _measure(source, rendering, workers, report)
                write_sizes(path, chunks, key=key, modes=len(rendering.modes))
    return Sizes.open(path, key)


def _measure(
    source: Source, rendering: Rendering, workers: int, report: Callable[[int, int], None]
) -> Iterator[Chunk]:
    """Chunks of all samples in order; a few at work for each worker, so that memory stays small."""
    total = len(source)
    spans = [range(start, min(start + _SAMPLES, total)) for start in range(0, total, _SAMPLES)]
    if workers < 2 or total < _SOME_WORK:
        for span in spans:
            yield _chunk(source, rendering, span)
            report(span.stop, total)
        return
    with ProcessPoolExecutor(workers, forkserver(), initializer=_hold, initargs=(source, rendering)) as pool:
        waiting: deque[tuple[range, Future[Chunk]]] = deque()
        try:
            for span in spans:
                waiting.append((span, pool.submit(_held_chunk, span)))
                while len(waiting) > (2 * workers if span is not spans[-1] else 0):
                    first, chunk = waiting.popleft()
                    yield chunk.result()
                    report(first.stop, total)
        except BrokenProcessPool:
            raise TransientError(
                f"a process that measured source '{source.name}' was ended from outside (out of memory?).\n"
                "  The same command starts again; fewer workers need less memory."
            ) from None


_held: tuple[Source, Rendering]


def _hold(source: Source, rendering: Rendering) -> None:
    """Once in each worker process: unpickled for every chunk, the two would cost more than the work."""
    global _held
    end_on_request()
    _held = (source, rendering)


def _held_chunk(span: range) -> Chunk:
    return _chunk(*_held, span)


def _chunk(source: Source, rendering: Rendering, span: range) -> Chunk:
    return Chunk.of(_variants(source, rendering, i) for i in span)


def _variants(source: Source, rendering: Rendering, index: int) -> list[VariantSizes]:
    """Each variant's pieces, or why it has none."""
    modes = len(rendering.modes)
    try:
        sample = source.without_pixels(index)
        captions = rendering.captions(sample)
    except (Unusable, BrokenSample) as e:
        return [((), e.reason)] * modes
    sizes: list[VariantSizes] = []
    for variant in range(captions * modes):
        try:
            fitted = rendering.pieces(sample, variant)
        except Unusable as e:
            sizes.append(((), e.reason))
            continue
        sizes.append(([rendering.size(sample, piece) for piece in fitted.pieces], fitted.note))
    return sizes
