"""One request, one response, no redirects: the only place that opens a socket.

Every address of a name is judged when it is resolved, and the very address that a socket is about to
connect to is judged again: what a name says a second time changes nothing.
"""

import asyncio
import contextlib
import socket
import ssl
import tempfile
import weakref
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from data_pipeline.build.fetch.address import Network, judge
from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.outcome import Failure
from data_pipeline.build.fetch.pace import Pace

_CHUNK = 64 * 1024
_IN_MEMORY = 2**20  # a larger body waits on disk until it is complete


def look_up(host: str) -> list[str]:
    """The addresses of a name, as the system resolves it. Raises OSError."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class Transport:
    """Made and used within one running event loop."""

    def __init__(
        self,
        config: FetchConfig,
        pace: Pace,
        *,
        allow: Sequence[Network],
        names: Callable[[str], list[str]],
        tls: ssl.SSLContext | None,
    ):
        self.config = config
        self.pace = pace
        self._free = asyncio.Semaphore(config.connections)
        self._hosts: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

        def judged_socket(address: Any) -> socket.socket:
            family, kind, proto, _, target = address
            judge(target[0], target[0], allow)
            return socket.socket(family, kind, proto)

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_JudgedNames(names, allow),
                socket_factory=judged_socket,
                happy_eyeballs_delay=None,
                ssl=tls if tls is not None else True,
                limit=0,  # connections are counted by `open`, by host and in all
                force_close=True,  # thousands of hosts would leave thousands of idle sockets
                ttl_dns_cache=300,
            ),
            headers={
                "User-Agent": config.user_agent,
                "Accept": "image/*, */*;q=0.1",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # no proxy and no .netrc of the user who happens to build
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=config.idle_s, sock_read=config.idle_s, ceil_threshold=1e9
            ),
        )

    async def close(self) -> None:
        await self._session.close()

    @contextlib.asynccontextmanager
    async def open(
        self, url: URL, interval: float, limit: asyncio.Timeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response with its body unread, when it is this request's turn. Raises Failure."""
        host = url.raw_host or ""
        queue = self._hosts.setdefault(host, asyncio.Semaphore(self.config.per_host_connections))
        async with contextlib.AsyncExitStack() as held:
            with paused(limit):
                await held.enter_async_context(queue)
                await self._turn(host, interval, held)
            with _named_errors(host):
                async with self._session.get(url, allow_redirects=False) as response:
                    yield response

    async def _turn(self, host: str, interval: float, held: contextlib.AsyncExitStack) -> None:
        """Wait for the host's time with no connection held, then take both together."""
        while True:
            await self._free.acquire()
            if not (wait := self.pace.take(host, interval)):
                held.callback(self._free.release)
                return
            self._free.release()
            await asyncio.sleep(wait)


@contextlib.contextmanager
def paused(limit: asyncio.Timeout) -> Iterator[None]:
    """Stop the clock of a deadline: standing in a queue is nobody's slowness."""
    loop = asyncio.get_running_loop()
    left = (limit.when() or 0.0) - loop.time()
    limit.reschedule(None)
    try:
        yield
    finally:
        if not limit.expired():
            limit.reschedule(loop.time() + left)


async def read_body(response: aiohttp.ClientResponse, max_bytes: int, *, cut: bool = False) -> bytes:
    """The body, decoded. Nothing that the response says about its length is believed.

    Beyond `max_bytes`, sent or decoded: Failure; with `cut`, the first `max_bytes` of it.
    """
    unpack = _unpacker(response.headers.get("Content-Encoding", ""))
    sent = 0
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as body:
        while chunk := await response.content.read(_CHUNK):
            sent += len(chunk)
            for piece in unpack(chunk) if unpack else (chunk,):
                body.write(piece)
                if max(sent, body.tell()) > max_bytes:
                    if not cut:
                        raise Failure("fetch: too large", f"more than max_bytes, {max_bytes:,}")
                    body.seek(0)
                    return body.read(max_bytes)
        if unpack and not unpack.complete:
            raise Failure("fetch: cut short", "the compressed body has no end", transient=True)
        body.seek(0)
        return body.read()


class _Unpack:
    """Decodes gzip or zlib piece by piece, each of at most a chunk: a bomb goes off in small portions."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        while chunk and not self._stream.eof:
            try:
                piece = self._stream.decompress(chunk, _CHUNK)
            except zlib.error as e:
                raise Failure("fetch: bad response", f"the compressed body is broken: {e}") from None
            chunk = self._stream.unconsumed_tail
            yield piece

    @property
    def complete(self) -> bool:
        return self._stream.eof


def _unpacker(encoding: str) -> _Unpack | None:
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":  # not asked for, and sent by some all the same
            return _Unpack()
        case other:
            raise Failure("fetch: content encoding", f"{other[:60]!r} was not asked for")


class _JudgedNames(AbstractResolver):
    """Resolves a name only if all its addresses may be asked."""

    def __init__(self, names: Callable[[str], list[str]], allow: Sequence[Network]):
        self._names = names
        self._allow = allow
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, self._names, host)
        except (OSError, UnicodeError) as e:
            for_now = isinstance(e, socket.gaierror) and e.errno == socket.EAI_AGAIN
            raise Failure("fetch: name not found", f"{host}: {_plain(e)}", transient=for_now) from None
        addresses = list(dict.fromkeys(found))
        for address in addresses:
            judge(host, address, self._allow)
        return [
            ResolveResult(
                hostname=host,
                host=a,
                port=port,
                family=socket.AF_INET6 if ":" in a else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for a in addresses
        ]

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _named_errors(host: str) -> Iterator[None]:
    """What can go wrong on the wire, by the names of `REASONS`."""
    try:
        yield
    except aiohttp.ClientSSLError as e:
        raise Failure("fetch: TLS", f"{host}: {_plain(e)}") from None
    except TimeoutError as e:
        raise Failure("fetch: timeout", f"{host}: {_plain(e)}", transient=True) from None
    except aiohttp.ClientPayloadError as e:
        raise Failure("fetch: cut short", f"{host}: {_plain(e)}", transient=True) from None
    except (aiohttp.ClientConnectionError, ConnectionError) as e:
        raise Failure("fetch: connection", f"{host}: {_plain(e)}", transient=True) from None
    except aiohttp.InvalidURL as e:
        raise Failure("fetch: url refused", f"{host}: {_plain(e)}") from None
    except (aiohttp.ClientError, ValueError) as e:
        raise Failure("fetch: bad response", f"{host}: {_plain(e)}") from None


def _plain(error: Exception) -> str:
    """A message for one line of a report: servers write part of it."""
    text = str(error) or type(error).__name__
    return " ".join(text.encode("ascii", "backslashreplace").decode().split())[:200]
