"""Synthetic samples end to end, against a real HTTP server that answers, and misbehaves, as told."""

import base64
import json
import socket
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_pipeline.build.synthesize.reader import SyntheticReader
from data_pipeline.build.synthesize.source import SyntheticSource
from data_pipeline.errors import ConfigError, TransientError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.view import Exclusion, View, exclude, samples

CANARY = "sk-canary-8c1f03"


class Endpoint:
    """Answers by a script: `reply(request, number of times this request came) -> (status, headers, body)`."""

    def __init__(self, reply):
        self.seen, self.keys, self.running, self.most = [], [], 0, 0
        self._lock, self._times = threading.Lock(), {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(200, {}, json.dumps({"data": [{"id": "tiny-vlm"}]}).encode())

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer._lock:
                    outer.seen.append(json.loads(body))
                    outer.keys.append(self.headers.get("Authorization"))
                    outer._times[body] = times = outer._times.get(body, 0) + 1
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                try:
                    self._send(*reply(outer.seen[-1], times))
                except OSError:
                    pass
                finally:
                    with outer._lock:
                        outer.running -= 1

            def _send(self, status, headers, body):
                self.send_response(status)
                for k, v in headers.items():
                    self.send_header(k, v)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def said(text, finish="stop"):
    page = {
        "model": "tiny-vlm-2026",
        "system_fingerprint": "fp1",
        "choices": [{"message": {"content": text}, "finish_reason": finish}],
    }
    return 200, {}, json.dumps(page).encode()


@pytest.fixture
def serve():
    started = []

    def start(reply):
        started.append(Endpoint(reply))
        return started[-1]

    yield start
    for e in started:
        e.close()


def reader(directory: Path, cache: Path, endpoint, **keys) -> SyntheticReader:
    page = {
        "name": "syn", "path": str(directory), "task": "caption", "endpoint": endpoint.url, "retries": 2,
        "deadline_s": 20, "from_sources": ["caps"], **keys,
    }  # fmt: skip
    return SyntheticReader(SyntheticSource.model_validate(page), directory, cache)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("data_pipeline.build.synthesize.client._FIRST_WAIT_S", 0.001)


def items(r: SyntheticReader):
    return [i for unit in r.units() for i in r.read(unit)]


def test_a_caption_stands_beside_the_originals_and_names_its_origin(dataset, serve):
    directory, _ = dataset
    endpoint = serve(lambda request, _: said("A small square in one colour."))
    found = items(reader(directory, directory / "c.sqlite", endpoint, prompt="dense", max_tokens=50))
    assert len(found) == 17
    sample = next(i.sample for i in found if i.sample.synthetic["parent_ids"] == ["cap3"])
    parent = next(s for s in _samples(directory) if s.id == "cap3")
    assert sample.segments[:3] == parent.segments
    new = sample.segments[3]
    assert (new.type, new.role, new.text) == ("text", "recaption", "A small square in one colour.")
    assert sample.image_bytes == parent.image_bytes
    assert sample.media == parent.media
    made = sample.synthetic
    assert made["generator"] == "tiny-vlm"
    assert made["generator_version"] == "tiny-vlm-2026@fp1"
    assert made["prompt_id"].startswith("dense@")
    assert json.loads(made["params_json"])["max_tokens"] == 50
    assert sample.scores["words"] == 6
    assert len({i.sample.id for i in found}) == 17
    assert Sample.from_row(sample.to_row()) == sample


def _samples(directory):
    return list(samples(directory))


def test_the_request_carries_the_very_bytes_of_the_image_and_the_seed(dataset, serve):
    directory, _ = dataset
    endpoint = serve(lambda request, _: said("One square."))
    items(reader(directory, directory / "c.sqlite", endpoint, seed=7, model="m"))
    sent = {
        base64.b64decode(r["messages"][0]["content"][0]["image_url"]["url"].split(",")[1])
        for r in endpoint.seen
    }
    assert sent == {b for s in _samples(directory) if s.source == "caps" for b in s.image_bytes}
    assert {(r["seed"], r["model"], r["temperature"]) for r in endpoint.seen} == {(7, "m", 0.0)}


def test_a_repeat_asks_nothing_again_and_gives_the_same_samples(dataset, serve):
    directory, _ = dataset
    count = iter(range(1000))
    endpoint = serve(lambda request, _: said(f"Answer number {next(count)}."))
    first = items(reader(directory, directory / "c.sqlite", endpoint))
    asked = len(endpoint.seen)
    again = items(reader(directory, directory / "c.sqlite", endpoint))
    assert len(endpoint.seen) == asked == 17
    assert first == again
    other = items(reader(directory, directory / "c.sqlite", endpoint, seed=1))
    assert len(endpoint.seen) == 34
    assert not {i.sample.id for i in first} & {i.sample.id for i in other}


def test_what_was_answered_before_a_stop_is_not_asked_again(dataset, serve):
    directory, _ = dataset
    broken = True

    def reply(request, times):
        bad = broken and len(endpoint.seen) > 9
        return (503, {}, b"") if bad else said("A square.")

    endpoint = serve(reply)
    r = reader(directory, directory / "c.sqlite", endpoint, retries=0, concurrency=1)
    with pytest.raises(TransientError, match="endpoint busy or broken"):
        items(r)
    broken = False
    before = len(endpoint.seen)
    assert len(items(r)) == 17
    assert len(endpoint.seen) - before == 17 - 9


def test_requests_in_flight_are_bounded(dataset, serve):
    directory, _ = dataset

    def slow(request, times):
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
    time.sleep(1.0)
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
    deadline = 0.3 if case == "hang" else 20
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


def test_questions_become_turns_whose_answers_alone_carry_loss(dataset, serve):
    directory, _ = dataset
    answer = json.dumps(
        [{"question": "What colour?", "answer": "red"}, {"question": "How many?", "answer": 2}]
    )
    endpoint = serve(lambda *_: said(f"```json\n{answer}\n```"))
    sample = items(reader(directory, directory / "c.sqlite", endpoint, task="qa"))[0].sample
    assert sample.kind == "instruct"
    assert [(s.type, s.role, s.turn, s.loss, s.text) for s in sample.segments] == [
        ("image", "user", 0, 0.0, None),
        ("text", "user", 0, 0.0, "What colour?"),
        ("text", "assistant", 0, 1.0, "red"),
        ("text", "user", 1, 0.0, "How many?"),
        ("text", "assistant", 1, 1.0, "2"),
    ]
    prose = serve(lambda *_: said("There is a red car."))
    found = items(reader(directory, directory / "d.sqlite", prose, task="qa"))
    assert {i.fault.reason for i in found} == {"no question-answer pairs"}


def test_of_several_answers_the_most_typical_is_kept_with_its_agreement(dataset, serve):
    directory, _ = dataset
    texts = {0: "a red square", 1: "two blue dogs on grass", 2: "a red square here"}
    endpoint = serve(lambda request, _: said(texts[request["seed"]]))
    keys = {"samples": 3, "temperature": 0.7}
    sample = items(reader(directory, directory / "c.sqlite", endpoint, **keys))[0].sample
    assert sample.segments[-1].text == "a red square"
    assert sample.synthetic["seed"] == 0
    assert sample.scores["agreement"] == pytest.approx((0 + 6 / 7) / 2)
    keep = {"min_agreement": 0.9}
    found = items(reader(directory, directory / "c.sqlite", endpoint, **keys, keep=keep))
    assert {i.fault.reason for i in found} == {"answers disagree"}


def test_every_image_of_a_document_is_asked_about_with_its_own_alt_text(tmp_path, make, serve):
    document = Sample(
        id="d",
        kind="interleaved",
        source="docs",
        segments=(
            Segment(type="image", media=0),
            Segment(type="text", text="t"),
            Segment(type="image", media=1),
        ),
        media=(Media(media_id="a", alt="a first square"), Media(media_id="b")),
        image_bytes=(make.png(), make.png(color="blue")),
    )
    make.dataset(tmp_path / "data", [document])
    endpoint = serve(lambda *_: said("A square."))
    r = reader(tmp_path / "data", tmp_path / "c", endpoint, from_sources=[], prompt="Beside it: {caption}!")
    found = [i.sample for i in items(r)]
    assert [[s.text for s in x.segments] for x in found] == [
        [None, "a first square", "A square."],
        [None, "A square."],
    ]
    assert [x.media[0].media_id for x in found] == ["a", "b"]
    assert sorted(q["messages"][0]["content"][1]["text"] for q in endpoint.seen) == [
        "Beside it: !", "Beside it: a first square!",
    ]  # fmt: skip


def test_excluded_samples_and_samples_without_images_are_not_asked_about(dataset, serve):
    directory, _ = dataset
    exclude(directory, "withdraw", [Exclusion("cap0", None, "withdrawn")], {})
    endpoint = serve(lambda *_: said("A square."))
    found = items(reader(directory, directory / "c.sqlite", endpoint, from_sources=["caps", "docs"]))
    parents = [i.sample.synthetic["parent_ids"][0] for i in found if i.sample]
    assert "cap0" not in parents
    assert len([p for p in parents if p.startswith("cap")]) == 16
    texts = sum(not s.media for s in _samples(directory) if s.source == "docs")
    assert [i.fault.reason for i in found if i.fault] == ["no image to describe"] * texts
    assert texts > 0


def test_exclusions_are_read_once_for_all_chunks_and_anew_when_they_change(dataset, serve, monkeypatch):
    directory, _ = dataset
    exclude(directory, "withdraw", [Exclusion("cap0", None, "withdrawn")], {})
    opened = []
    whole = View.open
    monkeypatch.setattr(View, "open", lambda *a, **keys: opened.append(a) or whole(*a, **keys))
    r = reader(directory, directory / "c.sqlite", serve(lambda *_: said("A square.")), chunk=2)
    assert len(r.units()) > 5
    items(r)
    assert len(opened) == 1
    exclude(directory, "withdraw", [Exclusion("cap1", None, "withdrawn")], {})
    parents = [i.sample.synthetic["parent_ids"][0] for i in items(r) if i.sample]
    assert "cap0" in parents
    assert "cap1" not in parents


def test_chunks_cover_every_row_once(dataset, serve):
    directory, _ = dataset
    endpoint = serve(lambda *_: said("A square."))
    found = items(reader(directory, directory / "c.sqlite", endpoint, chunk=2))
    assert sorted(i.sample.synthetic["parent_ids"][0] for i in found) == sorted(f"cap{n}" for n in range(17))


@pytest.mark.parametrize(
    "keys",
    [
        {"endpoint": None},
        {"checkpoint": "x"},
        {"endpoint": "ftp://h/v1"},
        {"endpoint": "http://user:pw@h/v1"},
        {"endpoint": "http://h/v1?key=1"},
        {"samples": 2},
        {"prompt": "dens"},
        {"unknown": 1},
    ],
)
def test_a_faulty_page_is_refused(keys):
    page = {"name": "s", "path": "d", "task": "caption", "endpoint": "http://h/v1", **keys}
    with pytest.raises(ValueError):
        SyntheticSource.model_validate(page)
