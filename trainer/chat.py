"""Chat requests in OpenAI's form, answered by a Fovea checkpoint: text and images as data URIs.

Greedy unless `temperature` is above 0; then `top_p`, `top_k` and `seed` say how tokens are drawn. `stop` ends
an answer. A message of images alone asks for a caption.
"""

import base64
import binascii
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from data_pipeline.image_spec import ImageSpec
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import Unusable, prompt
from data_pipeline.stream.decode import DecodeError, decode
from data_pipeline.stream.tokens import Tokenizer
from trainer.distributed import alone
from trainer.evaluation.generate import Prompt, generate
from trainer.evaluation.sampling import Decoding, stops, until_stop
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.reading import reading
from trainer.subject import open_subject

ALIAS = "fovea"
"""What a client may call whatever is served."""
MAX_IMAGES = 8
MAX_PROMPT_TOKENS = 8192
MAX_NEW_TOKENS = 4096
"""Of one answer. A client may ask for more; the answer's finish_reason says that it was cut."""


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


class Request(BaseModel):
    """What is read of a request. Clients send much more; what is known to change the answer is refused."""

    model: str | None = None
    messages: list[_Message] = Field(min_length=1, max_length=64)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="its later name")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    n: Literal[1] | None = None
    stream: Literal[False] | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    repetition_penalty: float | None = Field(None, ge=1, le=1)

    @property
    def limit(self) -> int:
        """Tokens of the answer, at most."""
        return min(self.max_completion_tokens or self.max_tokens or 128, MAX_NEW_TOKENS)


class Refused(Exception):
    """The request cannot be answered; the client is told why."""


@dataclass(frozen=True)
class Chat:
    """A model and what it needs to read a request. `name` says which weights."""

    model: AutoregressiveVLM
    tokenizer: Tokenizer
    image: ImageSpec
    image_tokens: int
    name: str

    @classmethod
    def open(cls, checkpoint: Path) -> "Chat":
        """Of a run, exported, or in Idefics2's layout. Raises as `open_subject` does."""
        with reading(checkpoint):
            opened = open_subject(alone(), checkpoint, batch=1)
        s = opened.subject
        return cls(s.model, s.tokenizer, s.image, s.image_tokens, f"{opened.name}@{opened.digest[:12]}")

    def read(self, request: Request) -> tuple[Prompt, int]:
        """The prompt, and the token that ends its answer. Raises Refused."""
        if request.model not in (None, ALIAS, self.name):
            raise Refused(f"model: this server serves '{self.name}', or '{ALIAS}' for short")
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


def decoding_of(request: Request) -> Decoding:
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
