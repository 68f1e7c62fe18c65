"""A synthetic source on the page of a recipe: who writes, about which images, and which answers are kept."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_pipeline.build.read.source import FileSource
from data_pipeline.build.synthesize.prompts import PROMPTS, Prompt, named
from data_pipeline.errors import nearest

Task = Literal["caption", "dense", "qa"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeepLimits(_Strict):
    """Which answers are dropped, by the scores of `checks`. None: the score is kept and drops nothing."""

    refusals: bool = Field(False, description="keep answers that refuse or see no image")
    truncated: bool = Field(True, description="keep answers that were cut at max_tokens")
    max_chars: int = Field(20_000, ge=1, description="a longer answer is dropped")
    min_words: int = Field(1, ge=0)
    max_repetition: float | None = Field(None, ge=0, le=1, description="share of repeated word trigrams")
    max_copy: float | None = Field(None, ge=0, le=1, description="share of the answer copied from the input")
    max_contradictions: int | None = Field(
        None, ge=0, description="nouns whose colour or number differs from the original caption's"
    )
    max_unsupported: float | None = Field(
        None, ge=0, le=1, description="share of named objects that the original caption does not name"
    )
    min_language: float | None = Field(
        None, ge=0, le=1, description="probability that the answer is in the expected language"
    )
    min_agreement: float | None = Field(
        None, ge=0, le=1, description="mean likeness to the other answers about the image"
    )


# Where and how answers are asked for; they do not change what a synthetic source is.
CALLS = ("endpoint", "checkpoint", "api_key_env", "concurrency", "deadline_s", "retries", "failures")


class SyntheticSource(FileSource):
    """Text about the images of a dataset that is built already (`path`), written by a model."""

    kind: Literal["synthetic"] = "synthetic"
    from_sources: tuple[str, ...] = Field((), description="its sources to read; none named: all")
    split: Literal["train", "heldout"] | None = Field("train", description="null: both")
    task: Task
    prompt: str | None = Field(
        None, description="a shipped prompt by name, or its text; {caption} stands for the original caption"
    )
    model: str | None = Field(None, description="as the endpoint names it; null: the only one it serves")
    endpoint: str | None = Field(
        None, description="base URL of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1"
    )
    checkpoint: str | None = Field(
        None, description="a Fovea checkpoint, served on this machine for the build"
    )
    api_key_env: str | None = Field(None, description="NAME of the environment variable that holds the key")
    seed: int = Field(0, ge=0, lt=2**31)
    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int = Field(256, ge=1, le=32_768)
    samples: int = Field(1, ge=1, le=16, description="answers asked for per image; the most typical is kept")
    language: str | None = Field(None, description="expected of the answers (en, de); null: the parent's")
    concurrency: int = Field(8, ge=1, le=256, description="requests in flight, per task of the build")
    deadline_s: float = Field(120.0, gt=0, description="hard limit of one attempt")
    retries: int = Field(4, ge=0, le=20)
    failures: Literal["stop", "drop"] = Field(
        "stop", description="a request that failed for good: end the build so that a repeat resumes, or drop"
    )
    chunk: int = Field(32, ge=1, le=1024, description="samples whose requests are in flight together")
    keep: KeepLimits = KeepLimits()

    @model_validator(mode="after")
    def _coherent(self) -> "SyntheticSource":
        if (self.endpoint is None) == (self.checkpoint is None):
            raise ValueError("give either endpoint (an OpenAI-compatible API) or checkpoint (of Fovea)")
        if self.endpoint is not None:
            _check_endpoint(self.endpoint)
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 asks the same question again: it needs a temperature above 0")
        word = self.prompt or ""
        if word and " " not in word and word not in PROMPTS:
            raise ValueError(f"no prompt named '{word}'{nearest(word, PROMPTS)}; or write its text")
        return self

    @property
    def instruction(self) -> Prompt:
        return named(self.prompt, self.task)


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("endpoint: expected http://HOST/v1 or https://HOST/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("endpoint: no credentials, query or fragment in the address; use api_key_env")
