"""A build that asks a language model: killed, repeated, and its generator withdrawn."""

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.build.withdraw import withdraw
from data_pipeline.manifest import read_manifest
from data_pipeline.sample import content_id
from data_pipeline.view import samples
from planted import (
    Corpus,
    jpeg,
    scene,
)
from waiting import wait_for

REPOSITORY = Path(__file__).parents[3]


def test_a_build_that_is_killed_asks_no_question_twice_and_its_generator_can_be_withdrawn(tmp_path, serve):
    parents = tmp_path / "in"
    c = Corpus(parents)
    for n in range(24):
        c.caption(f"{n}.jpg", jpeg(scene(700 + n)), f"the first caption of picture number {n}")
    c.write()
    source = {"name": "caps", "kind": "captions", "path": "captions.jsonl"}
    build(BuildRecipe(name="parents", heldout=0, sources=[source]), tmp_path / "parents", root=parents)
    asked, answered, lock = Counter(), Counter(), threading.Lock()
    tickets, waiting, gate = itertools.count(), set(), threading.Event()

    def answer(path, request):
        if request is None:
            return 200, "application/json", json.dumps({"data": [{"id": "tiny"}]}).encode()
        key = content_id(json.dumps(request))
        with lock:
            asked[key] += 1
            times, number = asked[key], len(asked)
        if times == 1 and number % 4 == 1:
            return (429, 500, 503)[number % 3], "text/plain", b"busy"
        if times == 1 and number % 8 == 2:
            return 200, "application/json", b"{garbage"
        with lock:
            ticket = next(tickets)
            if ticket >= 10:
                waiting.add(ticket)
        if ticket >= 10:
            gate.wait(600)
        with lock:
            waiting.discard(ticket)
            answered[key] += 1
            text = f"A coloured pattern of soft squares, seen as number {len(answered)}."
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return 200, "application/json", json.dumps({"model": "tiny-1", "choices": [choice]}).encode()

    site = serve(answer)
    (tmp_path / "syn.yaml").write_text(
        f"""
name: syn
heldout: 0
tasks: 1
sources:
  - {{name: caps, kind: captions, path: in/captions.jsonl}}
  - {{name: syn, kind: synthetic, path: parents, task: caption, endpoint: '{site.url}/v1',
     concurrency: 2, chunk: 4}}
"""
    )
    command = [
        sys.executable,
        "-m",
        "data_pipeline.cli",
        "data",
        "build",
        tmp_path / "syn.yaml",
        "--out",
        tmp_path / "out",
    ]
    killed = subprocess.Popen(
        [*map(str, command)],
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    cache = tmp_path / "out/cache/syn.sqlite"

    def count():
        with contextlib.closing(sqlite3.connect(cache, timeout=60)) as db:
            return db.execute("SELECT count(*) FROM answers").fetchone()[0]

    wait_for(lambda: len(waiting) == 2 and count() >= 10)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "out/manifest.json").exists()
    gate.set()
    wait_for(lambda: not waiting)
    before, cached = Counter(answered), count()
    assert 8 <= sum(before.values()) < 24
    done = subprocess.run(
        [*map(str, command)], cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(answered) == 24
    # Only what was on its way from the server when the kill came is asked for again.
    twice = [key for key in before if answered[key] > 1]
    assert len(twice) == len(before) - cached <= 2, "an answer that was cached was asked for again"
    assert max(answered.values()) <= 2
    made = list(samples(tmp_path / "out", source="syn"))
    assert len(made) == len({s.synthetic["parent_ids"][0] for s in made}) == 24
    assert {s.synthetic["generator"] for s in made} == {"tiny"}
    verify(tmp_path / "out")
    found = withdraw(tmp_path / "out", generators=["tiny"])
    assert found.samples == 24
    assert {s.source for s in samples(tmp_path / "out")} == {"caps"}
    assert balanced(funnel(read_manifest(tmp_path / "out"))) == []
