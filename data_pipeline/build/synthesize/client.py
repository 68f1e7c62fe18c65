"""Questions to an OpenAI-compatible chat endpoint: bounded in number, time and bytes, each answer paid once.

datatrove's InferenceRunner has an endpoint mode, but is not used: it hands no answer to the next step but
writes the documents itself, in the order of the answers; one request that fails ends the task; waits between
tries know no Retry-After; a body may have any size; and its https client and its cache need more packages.
"""

import asyncio
import base64
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from data_pipeline.build.synthesize.cache import AnswerCache, request_key
from data_pipeline.errors import ConfigError

MAX_BODY = 4 * 2**20
_AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}
_SETTINGS = {401, 403, 404}  # a wrong key, model or address: the same for every request
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
_REDACTED = b"[redacted]"
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Image:
    """Encoded bytes and the hash that stands for them in the cache."""

    media_id: str
    mime: str
    data: bytes

    @property
    def uri(self) -> str:
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Question:
    text: str
    image: Image
    seed: int


@dataclass(frozen=True)
class Answer:
    """`model` and `fingerprint` as the server reported them."""

    text: str
    finish_reason: str
    model: str
    fingerprint: str


@dataclass(frozen=True)
class Failure:
    """No answer. `lasting`: this request will always fail; else another time may do."""

    reason: str
    detail: str
    lasting: bool = False


@dataclass(frozen=True)
class Client:
    """`model` None: the only one that the endpoint serves. The key stays in the environment."""

    endpoint: str
    model: str | None
    temperature: float
    max_tokens: int
    concurrency: int
    deadline_s: float
    retries: int
    api_key_env: str | None
    cache: AnswerCache

    def ask(self, questions: Sequence[Question]) -> list[Answer | Failure]:
        """One result per question, in order. Raises ConfigError where key, model or address are refused."""
        return asyncio.run(self._ask_all(questions))

    def model_name(self) -> str:
        """`model`, or the only model that the endpoint lists. Raises ConfigError where it lists others."""
        return self.model or asyncio.run(self._only_model())

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer | Failure]:
        places = asyncio.Semaphore(self.concurrency)

        async def one(http: httpx2.AsyncClient, question: Question) -> Answer | Failure:
            async with places:
                return await self._ask(http, question)

        async with self._http() as http:
            tasks = [asyncio.ensure_future(one(http, q)) for q in questions]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    async def _ask(self, http: httpx2.AsyncClient, question: Question) -> Answer | Failure:
        content: list[dict[str, Any]] = [{"type": "text", "text": question.text}] if question.text else []
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": question.seed,
        }
        key = request_key(payload, (question.image.media_id,))
        if (known := self.cache.get(key)) is not None:
            return Answer(**known)
        content.insert(0, {"type": "image_url", "image_url": {"url": question.image.uri}})
        body = json.dumps(payload).encode()
        found: Answer | Failure = Failure("no answer", "never asked")
        for attempt in range(self.retries + 1):
            found, wait = await self._try(http, body)
            if isinstance(found, Answer):
                self.cache.put(key, asdict(found))
                return Answer(**(self.cache.get(key) or asdict(found)))
            if found.lasting or attempt == self.retries:
                break
            # Jitter, so that requests refused together do not come back together.
            backoff = _FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0)
            await asyncio.sleep(min(_LONGEST_WAIT_S, max(wait, backoff)))
        return found

    async def _try(self, http: httpx2.AsyncClient, body: bytes) -> tuple[Answer | Failure, float]:
        """The outcome of one attempt, and the seconds that the server asks to wait before the next."""
        try:
            async with (
                asyncio.timeout(self.deadline_s),
                http.stream("POST", "chat/completions", content=body, headers=_JSON) as response,
            ):
                status, raw = response.status_code, await _body(response)
                wait = _seconds(response.headers.get("retry-after"))
        except TimeoutError:
            return Failure("no answer in time", f"none within {self.deadline_s:g} s"), 0.0
        except (httpx2.HTTPError, httpx2.InvalidURL) as e:
            return Failure("no connection", type(e).__name__), 0.0
        if status in _SETTINGS or 300 <= status < 400:
            raise ConfigError(self._refused(status))
        if status in _AGAIN:
            return Failure("endpoint busy or broken", f"HTTP status {status}"), wait
        if status != 200:
            return Failure("request refused", f"HTTP status {status}", lasting=True), 0.0
        if raw is None:
            return Failure("answer too large", f"more than {MAX_BODY:,} bytes, or compressed"), 0.0
        return _parse(self._without_key(raw)), 0.0

    async def _only_model(self) -> str:
        status: int | str
        try:
            async with (
                asyncio.timeout(self.deadline_s),
                self._http() as http,
                http.stream("GET", "models") as response,
            ):
                status, raw = response.status_code, await _body(response)
            listed = json.loads(raw or b"")["data"] if status == 200 else []
            names = [str(m["id"]) for m in listed]
        except httpx2.ConnectError:
            raise ConfigError(
                f"nothing answers at {self.endpoint}.\n  Start its server, or set  endpoint: ADDRESS"
            ) from None
        except (httpx2.HTTPError, TimeoutError, ValueError, KeyError, TypeError, RecursionError) as e:
            names, status = [], type(e).__name__
        if len(names) != 1:
            shown = ", ".join(printable(n) for n in names[:8]) or f"no list of models ({status})"
            raise ConfigError(f"{self.endpoint} serves {shown}.\n  Name one of them:  model: NAME")
        return printable(names[0])

    def _http(self) -> httpx2.AsyncClient:
        local = urlsplit(self.endpoint).hostname in ("127.0.0.1", "localhost", "::1")
        headers = {"Accept-Encoding": "identity"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        return httpx2.AsyncClient(
            base_url=self.endpoint.rstrip("/") + "/",
            headers=headers,
            timeout=None,  # asyncio's deadline holds for the whole exchange, not for each read
            limits=httpx2.Limits(max_connections=self.concurrency),
            follow_redirects=False,  # the key is for this host alone
            trust_env=not local,
        )

    def _key(self) -> str | None:
        return os.environ.get(self.api_key_env) if self.api_key_env else None

    def _without_key(self, raw: bytes) -> bytes:
        """Some servers repeat the key that they were sent: it must reach neither cache nor data."""
        key = self._key()
        return raw.replace(key.encode(), _REDACTED) if key else raw

    def _refused(self, status: int) -> str:
        what = {
            401: "the API key is missing or wrong (api_key_env)",
            403: "the API key is not allowed to ask this (api_key_env)",
            404: f"no model '{self.model}', or no chat API at this address",
        }.get(status, "it sends the request elsewhere, and a key is not carried to another address")
        return f"{self.endpoint} answers with HTTP status {status}: {what}."


async def _body(response: httpx2.Response) -> bytes | None:
    """The raw body; None where it is too large or compressed (a small one may unpack to any size)."""
    if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        return None
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_raw(65536):
        size += len(part)
        if size > MAX_BODY:
            return None
        parts.append(part)
    return b"".join(parts)


def _parse(raw: bytes) -> Answer | Failure:
    try:
        page = json.loads(raw)
        choice = page["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as e:
        return Failure("answer is no chat completion", type(e).__name__)
    text = "" if text is None else text
    if not isinstance(text, str):
        return Failure("answer is no chat completion", f"content is {type(text).__name__}")
    return Answer(
        text=_encodable(text),
        finish_reason=printable(choice.get("finish_reason")),
        model=printable(page.get("model")),
        fingerprint=printable(page.get("system_fingerprint")),
    )


def _encodable(text: str) -> str:
    """JSON may hold half a surrogate pair and NUL; UTF-8 and Arrow's readers do not take them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")


def printable(value: object) -> str:
    """A name that a server reports, for the data and for messages: short, and without control characters."""
    text = "" if value is None else _encodable(str(value))[:200]
    return "".join(c for c in text if c.isprintable())


def _seconds(value: str | None) -> float:
    """Retry-After as seconds; a date, or nonsense, counts as none."""
    try:
        found = float(value or 0)
    except ValueError:
        return 0.0
    return found if 0 <= found < float("inf") else 0.0
