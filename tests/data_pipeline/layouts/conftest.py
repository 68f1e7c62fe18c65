"""A vocabulary and merges learned from the dialogues' words."""

import random

import pytest

import mistral_like
from dialogues import random_text


@pytest.fixture(scope="module")
def learned() -> tuple[str, list[tuple[str, str]]]:
    rng = random.Random(0)
    texts = [" [INST] " + random_text(rng) + " [/INST] " + random_text(rng) for _ in range(200)]
    texts += ["User: x", "Assistant: x", "System: x"] * 20
    letters, merges = mistral_like.learn((t.replace("\n", " ") for t in texts), 300)
    return letters, merges
