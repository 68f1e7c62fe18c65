"""Small dialogues, a vocabulary of single letters in which their ids are known, and random ones."""

import random
from pathlib import Path

import mistral_like
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import Rendered
from data_pipeline.stream.tokens import Tokenizer

# Ids of the golden tokenizer: bytes from 3, so that <0x0A> is 13; then the letters; then the merges.
LETTERS = "▁abchioqsuAITNSU[]/:?"

IDS = {c: 259 + n for n, c in enumerate(LETTERS)}

MERGES = [("▁", "h"), ("▁h", "i"), ("N", "S"), ("]", "▁"), (":", "▁")]

HI, NS = 281, 282  # "▁hi", "NS"; 280 is "▁h"; 283, "]▁", and 284, ":▁", join what no layout may join

FIRST = 285  # behind the vocabulary: Mistral's <|image_start|>, Idefics2's <fake_token_around_image>

BOS, EOS, NEWLINE = 1, 2, 13


def b(text: str) -> list[int]:
    """The ids of letters that no merge joins."""
    return [IDS[c.replace(" ", "▁")] for c in text]


def golden(directory: Path, layout: str) -> Tokenizer:
    return Tokenizer.load(mistral_like.write(directory, LETTERS, MERGES, "legacy"), layout)


def sample(kind: str, *segments: Segment, media: int = 2) -> Sample:
    many = tuple(Media(media_id=str(n)) for n in range(media))
    return Sample(id="s", kind=kind, source="x", segments=segments, media=many, image_bytes=(b"",) * media)


def says(role: str, turn: int, *parts: str | int) -> list[Segment]:
    """A message: texts, and pictures by number."""
    return [
        Segment(type="image", media=p, role=role, turn=turn)
        if isinstance(p, int)
        else Segment(type="text", text=p, role=role, turn=turn)
        for p in parts
    ]


DIALOGUE = sample(
    "instruct",
    *says("user", 0, 0, "hi?"),
    *says("assistant", 0, "a"),
    *says("user", 1, "b"),
    *says("assistant", 1, "c"),
)

WITH_SYSTEM = sample(
    "instruct",
    *says("system", 0, "s"),
    *says("user", 0, "hi", 0, 1, "u"),
    *says("assistant", 0, "a"),
)

DOCUMENT = sample("interleaved", *says("", 0, "a", 0, 1, "b", "c"))

CAPTION = sample("caption", *says("", 0, 0, "a"))


def targets(r: Rendered) -> list[int]:
    return r.input_ids[r.loss].tolist()


WORDS = "a cat, Naïve 日本 😀 User: [/INST] [INST] what? Assistant: 3.5 x=1; </p <b> the\tend".split(" ")  # noqa: SIM905


def random_text(rng: random.Random) -> str:
    words = rng.choices(WORDS, k=rng.randint(1, 8))
    blank = rng.choice([" ", " ", "  ", "\n", "\n\n"])
    return rng.choice(["", "", "", " ", "\n"]) + blank.join(words) + rng.choice(["", "", "", " ", "\n\n"])


def random_dialogue(rng: random.Random, pictures: bool) -> Sample:
    segments: list[Segment] = []
    if rng.random() < 0.3:
        segments += says("system", 0, random_text(rng))
    for turn in range(rng.randint(1, 4)):
        shown = [rng.randint(0, 1) for _ in range(rng.randint(0, 3))] if pictures else []
        parts: list[str | int] = [*shown, *(random_text(rng) for _ in range(rng.randint(1, 2)))]
        if rng.random() < 0.3:
            rng.shuffle(parts)
        segments += says("user", turn, *parts)
        segments += says("assistant", turn, random_text(rng))
    return sample("instruct", *segments)
