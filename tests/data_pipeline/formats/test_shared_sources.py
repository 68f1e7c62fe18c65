"""One source in several processes and threads, within its bounds of files and memory."""

import multiprocessing
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data_pipeline import manifest as m
from data_pipeline.build.write.shard import ShardWriter
from data_pipeline.sample import Sample
from data_pipeline.stream.shards.lru import Lru
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source
from shards import FORMATS, opened


def _read_these(source: Source, numbers: list[int]) -> list[Sample]:
    return [source[i] for i in numbers]


def _read_all(source: Source) -> list[str]:
    return [source[i].id for i in range(len(source))]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_source_that_was_read_travels_to_another_process(server, built, written, method: str) -> None:
    sources = [opened(built[0], f) for f in FORMATS] + [opened(server.url, f) for f in FORMATS]
    for source in sources:
        source[0]
    assert len(pickle.dumps(sources)) < 20_000  # no file, no map, nothing that was decoded
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(_read_all, sources, chunksize=6) == [[s.id for s in written]] * 6


def test_a_forked_process_opens_files_of_its_own(server, written) -> None:
    """Connections of the parent are of no use there: their loop runs in a thread that is not forked."""
    sources = [opened(server.url, format) for format in FORMATS]
    for source in sources:
        source[0]
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    child = context.Process(target=lambda: [found.put(_read_all(source)) for source in sources])
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert [found.get() for _ in sources] == [[s.id for s in written]] * 3


def test_threads_may_read_while_shards_are_let_go(built, server, written) -> None:
    wanted = [random.Random(n).choices(range(len(written)), k=60) for n in range(4)]
    for root, format in [(built[0], f) for f in FORMATS] + [(server.url, f) for f in FORMATS]:
        source = opened(root, format, max_open=1, cache_bytes=20_000)
        read = partial(_read_these, source)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, wanted)) == [[written[i] for i in numbers] for numbers in wanted]


def test_open_files_and_maps_are_bounded(tmp_path, make) -> None:
    written = [replace(make.caption(n), source="docs") for n in range(40)]
    shards, indices = [], {}
    for n, sample in enumerate(written):
        writer = ShardWriter(tmp_path, f"docs-train-{n:05d}", "docs", "train", FORMATS)
        writer.add(sample)
        shards += writer.finish()
        indices |= writer.files
    record = m.TaskRecord(task=0, tasks=1, fingerprint="f", shards=tuple(shards), funnel={}, files=indices)
    manifest = m.Manifest(name="t", fingerprint="f", recipe={}, licences={}, unread=(), tasks=(record,))

    def held() -> tuple[int, int]:
        fds = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        return sum(str(tmp_path) in f for f in fds), sum(str(tmp_path) in name for name in maps)

    for format in FORMATS:
        source = Source.open(tmp_path, manifest, "docs", format=format, shards=Shards(max_open=4))
        assert [source[i].id for i in range(40)] == [s.id for s in written]
        fds, maps = held()
        assert 0 < fds <= 4
        assert maps <= 4
        del source
        assert held() == (0, 0)


def test_what_is_decoded_is_held_within_its_bound(built) -> None:
    for format in FORMATS:
        shards = Shards(cache_bytes=60_000)
        source = Source.open(f"file://{built[0]}", built[1], "docs", format=format, shards=shards)
        for i in range(len(source)):
            source[i]
            assert shards._cache.weight <= 60_000
        assert shards._cache.weight > 0


def test_what_is_too_large_to_be_held_displaces_nothing() -> None:
    cache, made = Lru(10), []

    def get(name: str, weight: int) -> None:
        cache.get(name, lambda: made.append(name), lambda _: weight)

    for name, weight in (
        ("a", 4),
        ("b", 6),
        ("huge", 11),
        ("a", 4),
        ("c", 5),
        ("a", 4),
        ("b", 6),
        ("huge", 11),
    ):
        get(name, weight)
    assert made == ["a", "b", "huge", "c", "b", "huge"]  # c displaced b, which was used least recently
    assert (cache.weight, len(cache)) == (10, 2)
