"""One URL, from robots.txt over redirects to its bytes. Each hop is judged as if it were the first."""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

import aiohttp
from yarl import URL

from data_pipeline.build.fetch.address import parse
from data_pipeline.build.fetch.cache import Cache
from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.optout import ROBOTS_BYTES, ROBOTS_REDIRECTS, Rules, opted_out
from data_pipeline.build.fetch.outcome import Failure, Robots
from data_pipeline.build.fetch.transport import Transport, paused, read_body
from data_pipeline.sample import content_id

T = TypeVar("T")
_REDIRECTS = (301, 302, 303, 307, 308)
_FINAL = (401, 403, 404, 410, 451)
_TRANSIENT_4XX = (408, 425)
_OF_THE_HOST = ("fetch: address refused", "fetch: name not found", "fetch: TLS")
_KEPT_HEADERS = ("Content-Type", "Last-Modified", "ETag", "X-Robots-Tag", "TDM-Reservation", "TDM-Policy")
_ROBOTS_FRESH_S = 86_400.0  # RFC 9309, 2.4
_HOSTS_IN_MEMORY = 4096


@dataclasses.dataclass(frozen=True)
class Arrived:
    data: bytes
    final_url: str
    decision: str
    status: int
    headers: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Permission:
    """What a host's robots.txt says: rules, or None for a host without; or why it could not be asked."""

    until: float
    rules: Rules | None = None
    reason: str | None = None
    detail: str = ""


class Visitor:
    def __init__(self, config: FetchConfig, transport: Transport, cache: Cache):
        self.config = config
        self.transport = transport
        self.cache = cache
        self._robots: OrderedDict[str, asyncio.Task[Permission]] = OrderedDict()

    async def visit(self, text: str) -> Arrived:
        """Raises Failure; `timeout_s` after it began at the latest, queues not counted."""

        async def attempt(limit: asyncio.Timeout) -> Arrived:
            target = text
            for _ in range(self.config.max_redirects + 1):
                found = await self._hop(parse(target, self.config.allow_ports), limit)
                if isinstance(found, Arrived):
                    return found
                target = found
            raise Failure("fetch: redirects", f"more than max_redirects, {self.config.max_redirects}")

        return await self._persevere(text, attempt)

    async def _hop(self, url: URL, limit: asyncio.Timeout) -> Arrived | str:
        """What the URL gives, or the URL that it sends us to."""
        decision, interval = await self._permit(url, limit)
        try:
            async with self.transport.open(url, interval, limit) as response:
                if self.config.honour_robots:
                    _judge_headers(response)
                if target := _redirect(response):
                    return target
                self._judge_status(response)
                data = await read_body(response, self.config.max_bytes)
                headers = {k: response.headers[k][:500] for k in _KEPT_HEADERS if k in response.headers}
                if not data:
                    raise Failure("fetch: empty", f"{url}: a body of 0 bytes")
                return Arrived(data, str(url), decision, response.status, headers)
        except Failure as e:
            e.decision = e.decision or decision
            raise

    async def _permit(self, url: URL, limit: asyncio.Timeout) -> tuple[str, float]:
        """(decision, seconds between requests to the host). Raises Failure where we are not wanted."""
        interval = 1 / self.config.per_host_rate
        if not self.config.honour_robots:
            return "not asked", interval
        with paused(limit):
            found = await asyncio.shield(self._robots_of(url))
        if found.reason is not None:
            raise Failure(found.reason, found.detail)
        if found.rules is None:
            return "allowed: no robots.txt", interval
        if not found.rules.allow(str(url)):
            raise Failure("fetch: robots.txt", f"{url.origin()} disallows {url.raw_path[:120]}")
        return "allowed: robots.txt", max(interval, min(found.rules.crawl_delay, self.config.crawl_delay_s))

    def _robots_of(self, url: URL) -> asyncio.Task[Permission]:
        """One question for all who wait for it; the answers of the latest hosts stay in memory."""
        origin = str(url.origin())
        known = self._robots.get(origin)
        if known is None or (known.done() and known.result().until < time.time()):
            self._robots[origin] = asyncio.create_task(self._ask_robots(origin))
        self._robots.move_to_end(origin)
        if len(self._robots) > _HOSTS_IN_MEMORY and next(iter(self._robots.values())).done():
            self._robots.popitem(last=False)
        return self._robots[origin]

    async def _ask_robots(self, origin: str) -> Permission:
        key = content_id(origin, self.config.user_agent)
        found = await asyncio.to_thread(self.cache.robots, key)
        if found is None:
            found = await self._read_or_reason(origin)
            await asyncio.to_thread(self.cache.remember_robots, key, found)
        rules = None if found.body is None else await asyncio.to_thread(Rules.parse, found.body)
        return Permission(until=found.until, rules=rules, reason=found.reason, detail=found.detail)

    async def _read_or_reason(self, origin: str) -> Robots:
        try:
            body = await self._persevere(origin, functools.partial(self._read_robots, origin))
        except Failure as e:
            until = time.time() + max(self.config.remember_failures_s, e.wait or 0.0)
            if e.reason in _OF_THE_HOST:
                return Robots(origin=origin, until=until, reason=e.reason, detail=e.detail)
            reason = "fetch: robots unavailable"
            return Robots(origin=origin, until=until, reason=reason, detail=f"{origin}: {e}")
        text = None if body is None else body.decode("utf-8-sig", "replace")
        return Robots(origin=origin, until=time.time() + _ROBOTS_FRESH_S, body=text)

    async def _read_robots(self, origin: str, limit: asyncio.Timeout) -> bytes | None:
        """The file, or None: there is none, all is allowed (RFC 9309, 2.3.1.3). Raises Failure."""
        target = f"{origin}/robots.txt"
        for hop in range(ROBOTS_REDIRECTS + 1):
            try:
                url = parse(target, self.config.allow_ports)
                async with self.transport.open(url, 1 / self.config.per_host_rate, limit) as response:
                    if next_target := _redirect(response):
                        target = next_target
                        continue
                    if 400 <= response.status < 500 and response.status != 429:
                        return None
                    self._judge_status(response)
                    return await read_body(response, ROBOTS_BYTES, cut=True)
            except Failure as e:
                if hop and e.reason in _OF_THE_HOST:  # not of the host that was asked first
                    raise Failure("fetch: robots unavailable", f"sent to {target[:200]}: {e}") from None
                raise
        # The RFC lets a crawler take this for "no robots.txt"; it is more careful not to.
        raise Failure("fetch: redirects", f"more than {ROBOTS_REDIRECTS}")

    def _judge_status(self, response: aiohttp.ClientResponse) -> None:
        """Raises Failure unless the response is the thing itself."""
        status = response.status
        detail = f"{response.url} answers {status}"
        if status == 200:
            return
        if status in _FINAL:
            raise Failure(f"fetch: {status}", detail)
        if status == 429 or status >= 500:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            if wait is not None and wait <= self.config.retry_after_s:
                self.transport.pace.hold(response.url.raw_host or "", wait)
            reason = "fetch: 429" if status == 429 else "fetch: 5xx"
            raise Failure(reason, detail, transient=True, wait=wait)
        if 400 <= status < 500:
            raise Failure("fetch: 4xx", detail, transient=status in _TRANSIENT_4XX)
        raise Failure("fetch: bad response", detail)

    async def _persevere(self, text: str, attempt: Callable[[asyncio.Timeout], Awaitable[T]]) -> T:
        """What `attempt` gives, tried again while its failures may pass and the deadline is not over."""
        failure: Failure | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_s) as limit:
                for n in itertools.count():
                    try:
                        return await attempt(limit)
                    except Failure as e:
                        failure = e
                    # A host that named a time is on hold: the next attempt queues for it.
                    pause = self._backoff(text, n) if failure.wait is None else 0.0
                    if not self._again(failure, n) or _now() + pause >= (limit.when() or 0.0):
                        raise failure
                    await asyncio.sleep(pause)
        detail = f"not done after {self.config.timeout_s:g} s" + (
            f"; before that {failure}" if failure else ""
        )
        raise Failure("fetch: deadline", detail, transient=True)

    def _again(self, failure: Failure, attempts: int) -> bool:
        too_long = failure.wait is not None and failure.wait > self.config.retry_after_s
        return failure.transient and attempts < self.config.retries and not too_long

    def _backoff(self, text: str, attempts: int) -> float:
        jitter = random.Random(f"{self.config.seed} {attempts} {text}").uniform(0.5, 1.0)
        return self.config.backoff_s * 2.0**attempts * jitter


def _now() -> float:
    return asyncio.get_running_loop().time()


def _judge_headers(response: aiohttp.ClientResponse) -> None:
    found = opted_out(
        response.headers.getall("X-Robots-Tag", []), response.headers.getall("TDM-Reservation", [])
    )
    if found is not None:
        header, value = found
        raise Failure(f"fetch: {header}", f"{response.url} says {header}: {value}")


def _redirect(response: aiohttp.ClientResponse) -> str | None:
    """Where the response sends us, as an absolute URL."""
    if response.status not in _REDIRECTS or "Location" not in response.headers:
        return None
    try:
        return str(response.url.join(URL(response.headers["Location"])))
    except ValueError as e:
        raise Failure("fetch: url refused", f"{response.url} redirects to no URL: {e}") from None


def _retry_after(value: str) -> float | None:
    """Seconds, from seconds or a date (RFC 9110, 10.2.3)."""
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
