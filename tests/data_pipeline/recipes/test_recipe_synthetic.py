"""The recipe synthetic on a built dataset, and a small server with the OpenAI API that looks at the image."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_pipeline.build.run import build
from data_pipeline.build.synthesize.prompts import PROMPTS
from data_pipeline.view import samples

CUT_OFF, REFUSED = 1, 2  # pictures that the model fails on


def name_of(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()[:8]


class Model(BaseHTTPRequestHandler):
    """Names the picture it was sent: an answer for another picture would show."""

    fails: dict[str, int]
    asked: list[str]

    def do_GET(self):
        self.answer({"data": [{"id": "small-vlm"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = {p["type"]: p for p in request["messages"][-1]["content"]}
        url, prompt = parts["image_url"]["image_url"]["url"], parts["text"]["text"]
        picture = name_of(base64.b64decode(url.partition(",")[2]))
        self.asked.append(picture)
        reason = "stop"
        if "questions" in prompt:
            pairs = [{"question": f"Which is it, {k}?", "answer": f"number {picture}"} for k in range(3)]
            text = json.dumps(pairs)
        else:
            text = f"A field of coloured squares called {picture} under a soft light."
        if self.fails.get(picture) == REFUSED:
            text = "I'm sorry, I can't see the image."
        elif self.fails.get(picture) == CUT_OFF:
            text, reason = text[:30], "length"
        choice = {"message": {"content": text}, "finish_reason": reason}
        self.answer({"model": "small-vlm", "choices": [choice]})

    def answer(self, page):
        body = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(fails):
        handler = type("Handler", (Model,), {"fails": fails, "asked": []})
        servers.append(server := ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/v1", handler.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_captions_and_questions_about_a_built_dataset_name_their_parents(fovea_build, serve, tmp_path, make):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    rows = [{"image": f"{n}.png", "alt": f"squares, number {n}"} for n in range(24)]
    (pairs / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pictures = [make.picture(n) for n in range(24)]
    for n, data in enumerate(pictures):
        (pairs / f"{n}.png").write_bytes(data)
    build(pairs, tmp_path / "dataset", overrides=["heldout=0.2"])
    parents = {s.image_bytes[0]: s for s in samples(tmp_path / "dataset", split="train")}
    assert 12 < len(parents) < 24
    known = [p for p in pictures if p in parents]
    fails = {name_of(known[0]): CUT_OFF, name_of(known[1]): REFUSED}
    url, asked = serve(fails)

    overrides = [f"sources.{source}.endpoint={url}" for source in ("recaptions", "questions")]
    built = fovea_build("synthetic", tmp_path / "dataset", *overrides)
    # Each picture of the training split once by each source, and never again in the repeat.
    assert sorted(asked) == sorted(2 * [name_of(p) for p in parents])
    for source, kind in (("recaptions", "caption"), ("questions", "instruct")):
        found = built.samples(source)
        assert {s.image_bytes[0] for s in found} == parents.keys() - set(known[:2])
        for sample in found:
            parent = parents[sample.image_bytes[0]]
            assert sample.kind == kind
            assert sample.synthetic["parent_ids"] == [parent.id]
            assert sample.synthetic["generator"] == "small-vlm"
            assert name_of(sample.image_bytes[0]) in sample.text
            if source == "recaptions":
                assert sample.segments[: len(parent.segments)] == parent.segments
                assert sample.segments[-1].role == "recaption"
                assert sample.synthetic["prompt_id"] == PROMPTS["dense"].id
            else:
                assert [s.role for s in sample.segments] == ["user", "user", *5 * ["assistant", "user"]][:7]
        dropped, _ = built.dropped(source)
        assert dropped == {"refusal": 1, "answer cut off": 1}
