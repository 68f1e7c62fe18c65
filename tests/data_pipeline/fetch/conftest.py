"""A web site on this machine that misbehaves on request, and fetchers that may visit it."""

import contextlib
import gzip
import ipaddress
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote_plus, urlsplit

import pytest

from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.fetcher import Fetcher

LOCAL = [ipaddress.ip_network("127.0.0.1/32")]
BOMB = gzip.compress(bytes(20_000_000), 1)
FOREVER = 500.0  # seconds: longer than any deadline of these tests


@dataclass
class Hit:
    path: str
    host: str
    begin: float
    headers: dict
    end: float = 0.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.hit = Hit(self.path, self.headers["Host"], time.time(), dict(self.headers))
        self.server.site.hits.append(self.hit)
        # A client that gives up leaves a broken pipe here: that is the point of most of these paths.
        with contextlib.suppress(OSError):
            self.server.site.answer(self)
        self.hit.end = self.hit.end or time.time()

    def send(self, status, body=b"", **headers):
        # Noted before the answer leaves: the client may come back before this thread runs again.
        self.hit.end = time.time()
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


class Site:
    """`/name?argument` misbehaves as the method `name` says. `robots` is the answer to /robots.txt."""

    def __init__(self, picture, tls=None):
        self.picture = picture
        self.hits = []
        self.robots = (404, b"")
        self.seen = {}
        self.stop = threading.Event()
        self.meeting = threading.Barrier(1)
        self.gate = threading.Event()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.site = self
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.scheme = "https" if tls else "http"
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path="/ok", host="127.0.0.1"):
        return f"{self.scheme}://{host}:{self.port}{path}"

    def asked(self, path=None):
        """The requests, those for robots.txt left out unless named."""
        return [h for h in self.hits if (h.path == path if path else h.path != "/robots.txt")]

    def close(self):
        self.stop.set()
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, h):
        path = urlsplit(h.path)
        if path.path == "/robots.txt":
            status, body, *headers = self.robots
            return h.send(status, body, **(headers[0] if headers else {}))
        name = path.path.strip("/").split("/")[0].split(".")[0]
        return getattr(self, f"do_{name}")(h, unquote_plus(path.query))

    def do_ok(self, h, argument):
        h.send(200, self.picture, Content_Type="image/png")

    def do_slow(self, h, seconds):
        time.sleep(float(seconds))
        h.send(200, self.picture)

    def do_meet(self, h, argument):
        """Once as many are here as `meeting` asks for; those that are too many would be seen beside them."""
        self.meeting.wait(FOREVER)
        time.sleep(0.05)
        h.send(200, self.picture)

    def do_few(self, h, argument):
        """Fifteen of them are answered at once, the others when `gate` opens."""
        if len(self.asked()) > 15:
            self.gate.wait(FOREVER)
        h.send(200, self.picture)

    def do_redirect(self, h, target):
        h.send(302, Location=target)

    def do_loop(self, h, argument):
        h.send(302, Location=f"/loop?{int(argument or 0) + 1}")

    def do_drip(self, h, argument):
        h.send_response(200)
        h.send_header("Content-Length", "100000")
        h.end_headers()
        while not self.stop.wait(0.05):
            h.wfile.write(b"x")

    def do_hang(self, h, argument):
        self.stop.wait(FOREVER)

    def do_stall(self, h, argument):
        h.send_response(200)
        h.send_header("Content-Length", "100000")
        h.end_headers()
        h.wfile.write(b"x")
        self.stop.wait(FOREVER)

    def do_infinite(self, h, argument):
        h.send_response(200)
        h.end_headers()
        self.seen["sent"] = 0
        while not self.stop.is_set():
            h.wfile.write(bytes(65536))
            self.seen["sent"] += 65536

    def do_headers(self, h, argument):
        h.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not self.stop.is_set():
            h.wfile.write(b"X-More: " + b"x" * 4000 + b"\r\n")

    def do_garbage(self, h, argument):
        h.wfile.write(b"\x00\x01 this is no HTTP \xff\r\n\r\n")
        h.close_connection = True

    def do_length(self, h, argument):
        h.send(200, self.picture, Content_Length=argument)
        h.close_connection = True

    def do_bomb(self, h, argument):
        h.send(200, BOMB, Content_Encoding="gzip")

    def do_gzip(self, h, argument):
        body = gzip.compress(self.picture)
        h.send(200, body[: int(argument or len(body))], Content_Encoding="gzip")

    def do_encoded(self, h, argument):
        h.send(200, self.picture, Content_Encoding=argument)

    def do_status(self, h, argument):
        h.send(int(argument))

    def do_first(self, h, argument):
        """A status, once for each address; then the picture. `?500` or `?429:1`."""
        self.seen[h.path] = self.seen.get(h.path, 0) + 1
        status, _, wait = argument.partition(":")
        if self.seen[h.path] > 1:
            return self.do_ok(h, "")
        return h.send(int(status), Retry_After=wait or None)

    def do_header(self, h, argument):
        name, _, value = argument.partition("=")
        h.send_response(200)
        for v in value.split("|"):
            h.send_header(name, v)
        h.send_header("Content-Length", "1000000")
        h.end_headers()
        self.stop.wait(FOREVER)  # who waits for the body waits too long

    def do_html(self, h, argument):
        h.send(200, b"<!doctype html><p>Not here.", Content_Type="image/jpeg")

    def do_empty(self, h, argument):
        h.send(200)

    def do_reset(self, h, argument):
        h.send_response(200)
        h.send_header("Content-Length", "100000")
        h.end_headers()
        h.wfile.write(b"x" * 100)
        h.wfile.flush()
        h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (h.rfile, h.wfile, h.connection):
            end.close()

    def do_cookie(self, h, argument):
        h.send(302, Location="/ok", Set_Cookie="a=b; Path=/")


@pytest.fixture
def site(make):
    made = Site(make.png())
    yield made
    made.close()


@pytest.fixture
def other_site(make):
    made = Site(make.png(color="blue"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """(certificate, key) for a.test and 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    pem, key = folder / "site.pem", folder / "site.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=a.test"
    names = ["-addext", "subjectAltName=DNS:a.test,IP:127.0.0.1"]
    subprocess.run(
        [*command.split(), *names, "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True
    )
    return pem, key


@pytest.fixture
def tls_site(make, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    made = Site(make.png(), context)
    yield made
    made.close()


@pytest.fixture
def fetcher(tmp_path, site):
    """`fetcher(**settings)`: quick settings that reach `site` and the ports named besides. What answers has
    time enough to do so on a busy machine."""
    with contextlib.ExitStack() as stack:

        def make_fetcher(*, ports=(), allow=LOCAL, cache="cache", names=None, tls=None, **settings):
            quick = {"per_host_rate": 1e6, "timeout_s": 200, "idle_s": 100, "backoff_s": 0.01, "retries": 1}
            config = FetchConfig(
                **{**quick, "allow_ports": (80, 443, site.port, *ports), "cache": cache, **settings}
            )
            network = {"names": names} if names else {}
            return stack.enter_context(Fetcher(config, tmp_path, allow=allow, tls=tls, **network))

        yield make_fetcher
