"""Grouping on disk against a dictionary."""

import random
from pathlib import Path

import pytest

from data_pipeline.build.dedup import groups as g


def test_repeated_keys_come_with_all_their_numbers_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(g, "_BUFFERED", 100)
    draw = random.Random(1)
    names = [f"k{draw.randrange(700)}" for _ in range(2000)]
    expected: dict[str, list[int]] = {}
    groups = g.Groups(tmp_path)
    for number, name in enumerate(names):
        groups.add(g.key(name), number)
        expected.setdefault(name, []).append(number)
    found = sorted(group.tolist() for group in groups.repeated())
    assert found == sorted(v for v in expected.values() if len(v) > 1)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_not_counted(tmp_path: Path):
    first = g.Groups(tmp_path)
    first.add(g.key("a"), 1)
    first._flush()
    again = g.Groups(tmp_path)
    again.add(g.key("a"), 1)
    assert list(again.repeated()) == []


def test_keys_keep_the_parts_apart():
    assert g.key("ab", "c") != g.key("a", "bc")
    assert g.key("a", "") != g.key("a")
    assert len(g.key("\ud800")) == 16  # half a surrogate pair, as broken pages hold it
