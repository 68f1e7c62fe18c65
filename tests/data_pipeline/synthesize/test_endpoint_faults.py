"""An endpoint that is busy, wrong or hostile: each misbehaviour has its counted reason, and no key leaks."""

import itertools
import socket
import sqlite3
import threading
import time

import pytest

from data_pipeline.build.synthesize.reader import SyntheticReader
from data_pipeline.build.synthesize.source import SyntheticSource
from data_pipeline.errors import ConfigError
from endpoint import CANARY, items, reader, said


def test_requests_in_flight_are_bounded(dataset, serve):
    directory, _ = dataset

    first, meeting = itertools.count(), threading.Barrier(3)

    def slow(request, times):
        if next(first) < 3:
            meeting.wait(300)  # three of them are under way at one time
        time.sleep(0.02)
        return said("A square.")

    endpoint = serve(slow)
    items(reader(directory, directory / "c.sqlite", endpoint, concurrency=3))
    assert endpoint.most == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(dataset, serve, status):
    directory, _ = dataset
    endpoint = serve(
        lambda _, times: said("A square.") if times > 2 else (status, {"Retry-After": "0"}, b"x")
    )
    assert all(i.sample for i in items(reader(directory, directory / "c.sqlite", endpoint)))
    assert len(endpoint.seen) == 17 * 3


def test_retry_after_is_waited_for(dataset, serve):
    directory, _ = dataset
    times_seen = []

    def reply(_, times):
        times_seen.append(time.monotonic())
        return said("A square.") if times > 1 else (429, {"Retry-After": "0.3"}, b"")

    endpoint = serve(reply)
    items(reader(directory, directory / "c.sqlite", endpoint, from_sources=["chats"], concurrency=1))
    assert times_seen[1] - times_seen[0] >= 0.3


def hang(request, times):
    time.sleep(20)
    return said("late")


MISBEHAVIOUR = {
    "garbage": (lambda *_: (200, {}, b"\xff\x00not json"), "answer is no chat completion"),
    "deep": (lambda *_: (200, {}, b"[" * 200_000), "answer is no chat completion"),
    "schema": (lambda *_: (200, {}, b'{"choices": []}'), "answer is no chat completion"),
    "parts": (lambda *_: said([{"type": "text"}]), "answer is no chat completion"),
    "huge": (lambda *_: said("x" * 5_000_000), "answer too large"),
    "gzip": (lambda *_: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"), "answer too large"),
    "hang": (hang, "no answer in time"),
    "refused": (lambda *_: (400, {}, b"too many pixels"), "request refused"),
    "empty": (lambda *_: said("  "), "empty answer"),
    "null": (lambda *_: said(None), "empty answer"),
    "refusal": (lambda *_: said("I'm sorry, but I can't describe this image."), "refusal"),
    "long": (lambda *_: said("word " * 20_000), "answer too long"),
}


@pytest.mark.parametrize("case", MISBEHAVIOUR)
def test_every_misbehaviour_has_its_counted_reason(dataset, serve, case):
    reply, reason = MISBEHAVIOUR[case]
    directory, _ = dataset
    endpoint = serve(reply)
    keys = {"failures": "drop", "retries": 1, "concurrency": 17}
    deadline = 2 if case == "hang" else 300
    r = reader(directory, directory / "c.sqlite", endpoint, deadline_s=deadline, **keys)
    found = items(r)
    assert [i.fault.reason for i in found] == [reason] * 17
    asked_once = case in ("refused", "empty", "null", "refusal", "long")
    assert len(endpoint.seen) == 17 * (1 if asked_once else 2)


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_wrong_key_model_or_address_ends_the_build_at_once(dataset, serve, status):
    directory, _ = dataset
    endpoint = serve(lambda *_: (status, {"Location": "http://127.0.0.1:9/"}, b"{}"))
    with pytest.raises(ConfigError, match=str(status)):
        items(reader(directory, directory / "c.sqlite", endpoint, failures="drop", concurrency=1))
    assert len(endpoint.seen) == 1


def test_an_address_where_nothing_listens_is_said_to_be_one(dataset):
    directory, _ = dataset
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        source = SyntheticSource(name="syn", path=".", task="caption", endpoint=endpoint)
        with pytest.raises(ConfigError, match=rf"nothing answers at {endpoint}\.\n  Start its server"):
            items(SyntheticReader(source, directory, directory / "c.sqlite"))


def test_half_a_surrogate_pair_reaches_no_shard(dataset, serve):
    directory, _ = dataset
    endpoint = serve(lambda *_: said("A square \ud83d\x00 here."))
    text = items(reader(directory, directory / "c.sqlite", endpoint))[0].sample.segments[-1].text
    assert text == "A square \ufffd here."


def test_a_key_from_the_environment_is_sent_and_stays_nowhere(dataset, serve, monkeypatch, tmp_path):
    directory, _ = dataset
    monkeypatch.setenv("MY_KEY", CANARY)
    cache = tmp_path / "cache" / "c.sqlite"
    # The server repeats the key, in the answer and in its errors, as some do.
    endpoint = serve(lambda *_: said(f"Key {CANARY} in a square."))
    r = reader(directory, cache, endpoint, api_key_env="MY_KEY")
    found = items(r)
    assert set(endpoint.keys) == {f"Bearer {CANARY}"}
    assert CANARY not in repr((r, found))
    with sqlite3.connect(cache) as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone() == (17,)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    wrong = serve(lambda *_: (401, {}, f"bad key {CANARY}".encode()))
    with pytest.raises(ConfigError) as e:
        items(reader(directory, tmp_path / "d.sqlite", wrong, api_key_env="MY_KEY"))
    assert CANARY not in str(e.value)


def test_a_key_written_in_place_of_its_name_is_not_repeated(dataset, serve):
    directory, _ = dataset
    with pytest.raises(ConfigError) as e:
        reader(directory, directory / "c", serve(hang), api_key_env=CANARY)
    assert CANARY not in str(e.value)
