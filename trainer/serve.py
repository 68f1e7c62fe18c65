"""A Fovea checkpoint behind an OpenAI-compatible chat endpoint, for this machine alone.

GET /v1/models, POST /v1/chat/completions; text and images as data URIs. Requests that wait together are
decoded together. Greedy unless `temperature` is above 0; then `top_p`, `top_k` and `seed` say how tokens are
drawn. `stop` ends an answer. A message of images alone asks for a caption.
"""

import argparse
import base64
import binascii
import json
import os
import queue
import secrets
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from data_pipeline.errors import FoveaError
from data_pipeline.image_spec import ImageSpec
from data_pipeline.manifest import sha256_file
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import Unusable, prompt
from data_pipeline.stream.decode import DecodeError, decode
from data_pipeline.stream.tokens import Tokenizer
from trainer.engine.checkpoint import COMPLETE
from trainer.evaluation.generate import Prompt, generate
from trainer.evaluation.sampling import Decoding, stops, until_stop
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.trained import open_trained

MAX_REQUEST = 32 * 2**20
MAX_IMAGES = 8
MAX_PROMPT_TOKENS = 8192
MAX_NEW_TOKENS = 1024
BATCH = 16
_IDLE_S = 30.0  # a client that sends nothing for so long is let go
_ANSWER_S = 600.0


class _Text(BaseModel):
    type: Literal["text"]
    text: str


class _Url(BaseModel):
    url: str


class _Image(BaseModel):
    type: Literal["image_url"]
    image_url: _Url


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[_Text | _Image, Field(discriminator="type")]]


class _Request(BaseModel):
    """What is read of a request. Clients send much more; what would change the answer is refused."""

    model: str | None = None
    messages: list[_Message] = Field(min_length=1, max_length=64)
    max_tokens: int = Field(128, ge=1, le=MAX_NEW_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    n: Literal[1] | None = None
    stream: Literal[False] | None = None


class Refused(Exception):
    """The request cannot be answered; the client is told why."""


@dataclass(frozen=True)
class Chat:
    """A model and what it needs to read a request. `name` holds recipe, stage, step and weights."""

    model: AutoregressiveVLM
    tokenizer: Tokenizer
    image: ImageSpec
    image_tokens: int
    name: str

    @classmethod
    def open(cls, checkpoint: Path) -> "Chat":
        """Raises as `open_trained` does."""
        t = open_trained(checkpoint)
        digest = sha256_file(t.checkpoint.path / COMPLETE)[:12]
        name = f"{t.recipe.name}/{t.stage.name}/step_{t.checkpoint.step}@{digest}"
        return cls(t.model, t.tokenizer, t.recipe.model.image, t.recipe.model.image_tokens, name)

    def read(self, request: _Request) -> tuple[Prompt, int]:
        """The prompt, and the token that ends its answer. Raises Refused."""
        if request.model not in (None, self.name):
            raise Refused(f"model: this server serves '{self.name}'")
        sample = _sample(request.messages)
        try:
            rendered = prompt(sample, self.tokenizer, self.image_tokens, turn=_answers(request.messages))
            pictures = [tile for m in rendered.images for tile in decode(sample.image_bytes[m], self.image)]
        except (Unusable, DecodeError, ValueError) as e:
            raise Refused(str(e)) from None
        if len(rendered) > MAX_PROMPT_TOKENS:
            raise Refused(f"the prompt has {len(rendered)} tokens, allowed are {MAX_PROMPT_TOKENS}")
        made = Prompt(
            input_ids=rendered.input_ids.tolist(),
            image_ids=rendered.image_ids.tolist(),
            pictures=pictures,
            written=rendered.loss.tolist(),
        )
        return made, self.tokenizer.eos_id if sample.kind == "caption" else self.tokenizer.end_id

    def answer(
        self, prompts: list[Prompt], limits: list[int], how: list[Decoding], end_id: int
    ) -> list["Answer"]:
        rows = generate(
            self.model,
            prompts,
            max_new_tokens=max(limits),
            eos_id=end_id,
            pad_id=self.tokenizer.pad_id,
            how=how,
            text=self.tokenizer.decode,
        )
        answers = []
        for row, limit, decoding in zip(rows, limits, how, strict=True):
            text = self.tokenizer.decode(row[:limit])
            stopped = stops(text, decoding.stop)
            cut = len(row) >= limit and not stopped
            answers.append(Answer(until_stop(text, decoding.stop).strip(), len(row[:limit]), cut))
        return answers


@dataclass(frozen=True)
class Answer:
    """`tokens`: how many were made. `cut`: the answer has reached its limit before its end."""

    text: str
    tokens: int
    cut: bool


def _decoding(request: _Request) -> Decoding:
    """Without a seed, one that nobody knows: whoever samples twice wants two answers."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Decoding(
        temperature=request.temperature or 0.0,
        top_k=request.top_k,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        stop=tuple(stop),
    )


def _answers(messages: list[_Message]) -> int:
    return sum(m.role == "assistant" for m in messages)


def _sample(messages: list[_Message]) -> Sample:
    """The messages as a sample that waits for its next answer."""
    if messages[-1].role != "user":
        raise Refused("messages: the last one must be the user's")
    segments: list[Segment] = []
    data: list[bytes] = []
    for turn, message in enumerate(messages):
        parts = (
            [_Text(type="text", text=message.content)]
            if isinstance(message.content, str)
            else message.content
        )
        for part in parts:
            if isinstance(part, _Text):
                segments.append(Segment(type="text", text=part.text, role=message.role, turn=turn))
            else:
                segments.append(Segment(type="image", media=len(data), role=message.role, turn=turn))
                data.append(_pixels(part.image_url.url))
    if len(data) > MAX_IMAGES:
        raise Refused(f"{len(data)} images, allowed are {MAX_IMAGES}")
    captioning = len(messages) == 1 and bool(data) and not any(s.text and s.text.strip() for s in segments)
    # The answer itself is unwritten; its segment only says where it begins.
    segments.append(Segment(type="text", text="?", role="assistant", turn=len(messages)))
    return Sample(
        id="request",
        kind="caption" if captioning else "instruct",
        source="request",
        segments=tuple(segments),
        media=tuple(Media(media_id=str(n)) for n in range(len(data))),
        image_bytes=tuple(data),
    )


def _pixels(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise Refused("image_url: expected data:image/...;base64,...; nothing is fetched")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("image_url: no base64") from None


@dataclass(frozen=True)
class _Job:
    prompt: Prompt
    limit: int
    how: Decoding
    end_id: int
    done: "Future[Answer]"


class Batcher:
    """One thread that owns the model, and decodes what waits together."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, prompt: Prompt, limit: int, how: Decoding, end_id: int) -> Answer:
        job = _Job(prompt, limit, how, end_id, Future())
        self._jobs.put(job)
        return job.done.result(_ANSWER_S)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            waiting = [self._jobs.get()]
            while len(waiting) < BATCH and not self._jobs.empty():
                waiting.append(self._jobs.get())
            ended = None in waiting
            jobs = [j for j in waiting if j is not None]
            for end_id in sorted({j.end_id for j in jobs}):
                self._decode([j for j in jobs if j.end_id == end_id])

    def _decode(self, jobs: list[_Job]) -> None:
        try:
            answers = self.chat.answer(
                [j.prompt for j in jobs], [j.limit for j in jobs], [j.how for j in jobs], jobs[0].end_id
            )
        except Exception as e:  # noqa: BLE001 - whatever the model raises, each asker must hear of it
            for job in jobs:
                job.done.set_exception(e)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.done.set_result(answer)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, chat: Chat, batcher: Batcher) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.chat, self.batcher = chat, batcher


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _IDLE_S
    protocol_version = "HTTP/1.1"
    server_version = "fovea"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._is_for_us():
            return
        if self.path != "/v1/models":
            self._fail(404, "there is /v1/models and /v1/chat/completions")
            return
        self._reply(200, {"object": "list", "data": [{"id": self.server.chat.name, "object": "model"}]})

    def do_POST(self) -> None:
        if not self._is_for_us():
            return
        body = self._body()
        if body is None:
            return
        if self.path != "/v1/chat/completions":
            self._fail(404, "there is /v1/models and /v1/chat/completions")
            return
        try:
            request = _Request.model_validate_json(body)
            prompt, end_id = self.server.chat.read(request)
        except ValidationError as e:
            first = e.errors()[0]
            self._fail(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}")
            return
        except Refused as e:
            self._fail(400, str(e))
            return
        try:
            answer = self.server.batcher.ask(prompt, request.max_tokens, _decoding(request), end_id)
        except Exception as e:  # noqa: BLE001 - the client gets a status, the server lives on
            self._fail(500, f"the model failed: {type(e).__name__}")
            return
        self._reply(200, self._completion(prompt, answer))

    def _completion(self, prompt: Prompt, answer: Answer) -> dict[str, Any]:
        return {
            "id": "chatcmpl",
            "object": "chat.completion",
            "model": self.server.chat.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": "length" if answer.cut else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": len(prompt.input_ids),
                "completion_tokens": answer.tokens,
                "total_tokens": len(prompt.input_ids) + answer.tokens,
            },
        }

    def _is_for_us(self) -> bool:
        """A page in a browser may reach this port under a name of its own; it may not use it."""
        if self.headers.get("Host", "").rpartition(":")[0] in ("127.0.0.1", "localhost"):
            return True
        self._fail(403, "this server answers to 127.0.0.1 and localhost")
        return False

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._fail(411, "Content-Length is needed")
        elif int(length) > MAX_REQUEST:
            self._fail(413, f"{length} bytes, allowed are {MAX_REQUEST}")
        else:
            return self.rfile.read(int(length))
        return None

    def _fail(self, status: int, message: str) -> None:
        self.close_connection = True  # the body may be unread
        self._reply(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _reply(self, status: int, page: dict[str, Any]) -> None:
        data = json.dumps(page).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked belongs to the asker."""


@contextmanager
def serving(chat: Chat, port: int = 0) -> Iterator[str]:
    """Serve `chat` on 127.0.0.1; yields the base URL. Port 0: any free one. Raises FoveaError if taken."""
    batcher = Batcher(chat)
    try:
        server = _Server(port, chat, batcher)
    except OSError as e:
        batcher.close()
        raise FoveaError(f"port {port} of this machine: {e.strerror}. Choose another --port.") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        batcher.close()


def main(argv: list[str] | None = None) -> int:
    """`python -m trainer.serve CHECKPOINT`: says its base URL on a line, ends with standard input."""
    parser = argparse.ArgumentParser(prog="python -m trainer.serve", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        with serving(Chat.open(args.checkpoint), args.port) as url:
            sys.stdout.write(url + "\n")
            sys.stdout.flush()
            sys.stdin.read()
    except FoveaError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
