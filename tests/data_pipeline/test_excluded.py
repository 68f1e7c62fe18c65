"""Reasons in sorted arrays say what dictionaries of strings say, in a fraction of their memory."""

import hashlib
import pickle
import random
import tracemalloc

import pytest

from data_pipeline.excluded import ImageReasons, Reasons


def key(n: int) -> str:
    return hashlib.blake2b(str(n).encode(), digest_size=16).hexdigest()


@pytest.mark.parametrize("seed", range(4))
def test_reasons_equal_a_dictionary_of_the_first_ones(seed):
    rng = random.Random(seed)
    names = [rng.choice((key(n), str(n), "é" * (n % 5 + 1), "\udcff" + str(n))) for n in range(200)]
    found = [(rng.choice(names), rng.choice(("copy", "opted out", "benchmark image"))) for _ in range(300)]
    naive: dict[str, str] = {}
    for name, reason in found:
        naive.setdefault(name, reason)
    reasons = pickle.loads(pickle.dumps(Reasons(found)))
    assert dict(reasons) == naive
    assert len(reasons) == len(naive)
    asked = [*names, "", "x" * 300, key(0)[:-1], key(0) + "0"]
    assert [n in reasons for n in asked] == [n in naive for n in asked]
    assert reasons.among(asked).tolist() == [n in naive for n in asked]
    assert [reasons.get(n) for n in asked] == [naive.get(n) for n in asked]


@pytest.mark.parametrize("seed", range(4))
def test_images_of_a_sample_are_found_by_its_id_alone(seed):
    rng = random.Random(seed)
    ids = ["a", "ab", "b", key(1), key(1)[:-1], "é"]
    found = [(rng.choice(ids), f"m{rng.randrange(9)}", rng.choice(("copy", "large"))) for _ in range(40)]
    naive: dict[str, dict[str, str]] = {}
    for name, media_id, reason in found:
        naive.setdefault(name, {}).setdefault(media_id, reason)
    reasons = ImageReasons(found)
    assert {name: dict(of) for name, of in reasons.items()} == naive
    assert [reasons.get(n) for n in [*ids, "", "z" * 99]] == [naive.get(n) for n in [*ids, "", "z" * 99]]


def test_nothing_excluded_is_false_and_holds_no_key():
    assert not Reasons()
    assert not ImageReasons()
    assert "a" not in Reasons()
    assert Reasons().among(["a", "b"]).tolist() == [False, False]
    assert ImageReasons().get("a") is None


def test_an_entry_takes_the_bytes_of_its_id_and_little_more():
    tracemalloc.start()
    reasons = Reasons((key(n), "near copy of a document") for n in range(100_000))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(reasons) == 100_000
    assert held < 100_000 * 48  # a dictionary of strings: about 200
    assert peak < 100_000 * 200
