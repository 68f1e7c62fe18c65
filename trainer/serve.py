"""A checkpoint behind an OpenAI-compatible chat endpoint, for this machine alone.

GET /v1/models, POST /v1/chat/completions (trainer/chat.py says what of a request is read). Requests that wait
together are decoded together.
"""

import argparse
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.errors import FoveaError
from trainer.chat import Answer, Chat, Refused, Request, decoding_of
from trainer.evaluation.generate import Prompt
from trainer.evaluation.sampling import Decoding

MAX_REQUEST = 32 * 2**20
BATCH = 16
_IDLE_S = 30.0  # a client that sends nothing for so long is let go
_ANSWER_S = 600.0


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
            request = Request.model_validate_json(body)
            prompt, end_id = self.server.chat.read(request)
        except ValidationError as e:
            first = e.errors()[0]
            self._fail(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}")
            return
        except Refused as e:
            self._fail(400, str(e))
            return
        try:
            answer = self.server.batcher.ask(prompt, request.limit, decoding_of(request), end_id)
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
