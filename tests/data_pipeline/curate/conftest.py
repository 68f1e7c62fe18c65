"""A site on this machine that serves, withholds and answers as it is told."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Site:
    """Serves `pages`: path to (status, type, body); counts what is asked."""

    def __init__(self, answer):
        self.hits = Counter()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.hits[self.path] += 1
                self._send(*answer(self.path, None))

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._send(*answer(self.path, json.loads(body)))

            def _send(self, status, kind, body):
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # whoever asked was killed
                    pass

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.port}"


@pytest.fixture
def serve():
    started = []

    def start(answer) -> Site:
        started.append(Site(answer))
        return started[-1]

    yield start
    for site in started:
        site.server.shutdown()
        site.server.server_close()
