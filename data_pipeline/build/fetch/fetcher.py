"""Images by address: in the order asked, many at a time, each once, remembered on disk.

An event loop in a thread of its own does the work, so that deadlines hold while the caller does other
things. Only records wait in memory; the bytes are read from the cache when their turn comes.
"""

import asyncio
import json
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

from data_pipeline.build.fetch.address import Network
from data_pipeline.build.fetch.cache import Cache
from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.outcome import Failure, Fetched, Record
from data_pipeline.build.fetch.pace import Pace
from data_pipeline.build.fetch.transport import Transport, look_up
from data_pipeline.build.fetch.visit import Visitor
from data_pipeline.errors import DataError
from data_pipeline.sample import content_id

_CLAIM_POLL_S = 0.05
_POLICY = {"user_agent", "honour_robots", "allow_ports", "max_bytes", "max_redirects"}


class Fetcher:
    """`with Fetcher(config, root) as f: f.fetch(urls)`. `root`: what a relative `config.cache` counts from.

    `allow` lets networks through that are refused otherwise, `names` replaces the system's resolver and
    `tls` the system's certificates; none of them can be set in a recipe.
    """

    def __init__(
        self,
        config: FetchConfig,
        root: str | Path = ".",
        *,
        allow: Sequence[Network] = (),
        names: Callable[[str], list[str]] = look_up,
        tls: ssl.SSLContext | None = None,
    ):
        self.config = config
        self.folder = Path(root) / config.cache
        self._allow, self._names, self._tls = tuple(allow), names, tls
        # Another policy is another question: its answers are kept apart, equal bytes are not stored twice.
        self._policy = json.dumps(config.model_dump(mode="json", include=_POLICY), sort_keys=True)
        self._policy += " ".join(sorted(map(str, self._allow)))
        self._flying: dict[str, Future[Record]] = {}
        self._room = threading.BoundedSemaphore(256 + 4 * config.connections)

    def __enter__(self) -> "Fetcher":
        self._cache = Cache(self.folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._cache.close()

    def fetch(self, urls: Iterable[str]) -> Iterator[Fetched]:
        """One `Fetched` for each URL, in their order. Takes URLs ahead, a bounded number of them."""
        ahead = 4 * self.config.connections
        waiting: deque[tuple[str, Future[Record]]] = deque()
        for url in urls:
            waiting.append((url, self.submit(url)))
            if len(waiting) > ahead:
                yield self.result(*waiting.popleft())
        while waiting:
            yield self.result(*waiting.popleft())

    def submit(self, url: str) -> "Future[Record]":
        """Begin to fetch. Blocks while too many are under way; a URL under way is not begun again."""
        if (flying := self._flying.get(url)) is not None and not flying.done():
            return flying
        self._room.acquire()
        future = asyncio.run_coroutine_threadsafe(self._record(url), self._loop)
        self._flying[url] = future
        future.add_done_callback(lambda done: self._landed(url, done))
        return future

    def result(self, url: str, future: "Future[Record]") -> Fetched:
        """What `submit` began, when it is there. Bytes that the disk altered are fetched again."""
        record = future.result()
        for _ in range(2):
            if record.media_id is None:
                return Fetched.of(record, None)
            if (data := self._cache.read(record.media_id)) is not None:
                return Fetched.of(record, data)
            self._cache.forget(self._key(url))
            record = self.submit(url).result()
        raise DataError(
            f"{self.folder} does not give back what was written to it a moment ago.\n"
            f"  Check the disk, or set `fetch.cache` to another folder."
        )

    def _landed(self, url: str, future: "Future[Record]") -> None:
        if self._flying.get(url) is future:
            del self._flying[url]
        self._room.release()

    def _key(self, url: str) -> str:
        return content_id(url, self._policy)

    async def _open(self) -> None:
        pace = Pace(self.folder)
        self._transport = Transport(self.config, pace, allow=self._allow, names=self._names, tls=self._tls)
        self._visitor = Visitor(self.config, self._transport, self._cache)

    async def _close(self) -> None:
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._transport.close()
        await self._loop.shutdown_default_executor()

    async def _record(self, url: str) -> Record:
        """The record of a URL: remembered, or fetched now, by this process or by another one."""
        key = self._key(url)
        if (known := await asyncio.to_thread(self._cache.record, key)) is not None:
            return known
        while not self._cache.claim(key):
            await asyncio.sleep(_CLAIM_POLL_S)
        try:
            # Whoever held the claim before may have fetched it.
            if (known := await asyncio.to_thread(self._cache.record, key)) is not None:
                return known
            record = await self._visit(url)
            await asyncio.to_thread(self._cache.remember, key, record)
            return record
        finally:
            self._cache.release(key)

    async def _visit(self, url: str) -> Record:
        try:
            found = await self._visitor.visit(url)
        except Failure as e:
            now = time.time()
            # A robots.txt that could not be asked may answer later.
            passing = e.transient or e.reason == "fetch: robots unavailable"
            until = now + max(self.config.remember_failures_s, e.wait or 0.0) if passing else None
            return Record(
                url=url, reason=e.reason, detail=e.detail, decision=e.decision, time=now, until=until
            )
        media_id = await asyncio.to_thread(self._cache.store, found.data)
        return Record(
            url=url,
            decision=found.decision,
            status=found.status,
            final_url=found.final_url,
            media_id=media_id,
            nbytes=len(found.data),
            headers=found.headers,
            time=time.time(),
        )


def fetch_all(urls: Iterable[str], config: FetchConfig, root: str | Path = ".") -> dict[str, int]:
    """Fill the cache before a build; returns how many were fetched ("fetched") or not, by reason."""
    with Fetcher(config, root) as fetcher:
        counts = Counter(f.reason or "fetched" for f in fetcher.fetch(urls))
    return dict(sorted(counts.items()))
