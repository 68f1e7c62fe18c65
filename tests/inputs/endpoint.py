"""An OpenAI-compatible endpoint on this machine that answers, waits or misbehaves as it is told."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data_pipeline.build.synthesize.reader import SyntheticReader
from data_pipeline.build.synthesize.source import SyntheticSource
from data_pipeline.view import samples

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
                answer = reply(json.loads(body), times)
                with outer._lock:
                    outer.running -= 1  # before the answer leaves: who gets it may ask again at once
                with contextlib.suppress(OSError):
                    self._send(*answer)

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


def reader(directory: Path, cache: Path, endpoint, **keys) -> SyntheticReader:
    page = {
        "name": "syn", "path": str(directory), "task": "caption", "endpoint": endpoint.url, "retries": 2,
        "deadline_s": 300, "from_sources": ["caps"], **keys,
    }  # fmt: skip
    return SyntheticReader(SyntheticSource.model_validate(page), directory, cache)


def items(r: SyntheticReader):
    return [i for unit in r.units() for i in r.read(unit)]


def written_samples(directory):
    return list(samples(directory))
