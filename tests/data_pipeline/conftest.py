"""Tiny datasets, written by hand: shards of `sample.SCHEMA` under a manifest."""

import io
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from data_pipeline import manifest as m
from data_pipeline.sample import SCHEMA, Media, Sample, Segment
from data_pipeline.stream.tokens import Tokenizer, train_tokenizer

WORDS = "a red green blue small large circle square ring left right above below of the one".split()  # noqa: SIM905


def png(width: int = 24, height: int = 16, color: str | tuple = "red", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), color).save(out, "PNG")
    return out.getvalue()


def text(n: int, length: int = 6) -> str:
    return " ".join(WORDS[(n * 7 + k * k) % len(WORDS)] for k in range(length)) + f" {n}."


def caption_sample(n: int, picture: bytes | None = None) -> Sample:
    """One picture with an alt text and a dense caption."""
    picture = png(color=(n * 20 % 256, 80, 120)) if picture is None else picture
    return Sample(
        id=f"cap{n}",
        kind="caption",
        source="caps",
        segments=(
            Segment(type="image", media=0),
            Segment(type="text", text=text(n, 3), role="alt"),
            Segment(type="text", text=text(n, 9), role="recaption"),
        ),
        media=(Media(media_id=f"m{n}"),),
        image_bytes=(picture,),
    )


def document_sample(n: int, paragraphs: int = 3, pictures: int = 1, length: int = 8) -> Sample:
    """Paragraphs, with a picture before each of the first `pictures`."""
    segments = []
    for p in range(paragraphs):
        if p < pictures:
            segments.append(Segment(type="image", media=p))
        segments.append(Segment(type="text", text=text(n + 31 * p, length)))
    return Sample(
        id=f"doc{n}",
        kind="interleaved" if pictures else "text",
        source="docs",
        segments=tuple(segments),
        media=tuple(Media(media_id=f"d{n}.{p}") for p in range(pictures)),
        image_bytes=tuple(png(16, 24, color=(p * 40 % 256, n % 256, 9)) for p in range(pictures)),
    )


def dialogue_sample(n: int, turns: int = 2) -> Sample:
    segments = [Segment(type="image", media=0, role="user", turn=0)]
    for turn in range(turns):
        segments.append(Segment(type="text", text=f"what is {n} {turn}?", role="user", turn=turn))
        segments.append(Segment(type="text", text=text(n + turn, 3), role="assistant", turn=turn))
    return Sample(
        id=f"chat{n}",
        kind="instruct",
        source="chats",
        segments=tuple(segments),
        media=(Media(media_id=f"c{n}"),),
        image_bytes=(png(),),
    )


def write_shard(path: Path, samples: list[Sample], rows_per_batch: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, SCHEMA) as writer:
        for b in range(0, len(samples), rows_per_batch):
            rows = [s.to_row() for s in samples[b : b + rows_per_batch]]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def write_dataset(directory: Path, samples: Iterable[Sample], per_shard: int = 7) -> m.Manifest:
    """Shards of each source (split "train"), one task record, the manifest."""
    by_source: dict[str, list[Sample]] = {}
    for s in samples:
        by_source.setdefault(s.source, []).append(s)
    shards = []
    for source, members in by_source.items():
        for n in range(0, len(members), per_shard):
            part = members[n : n + per_shard]
            path = f"shards/{source}-{n:05d}.arrow"
            write_shard(directory / path, part)
            shards.append(
                m.Shard(
                    path=path,
                    format="arrow",
                    split="train",
                    source=source,
                    nbytes=(directory / path).stat().st_size,
                    sha256=m.sha256_file(directory / path),
                    samples=len(part),
                    images=sum(len(s.media) for s in part),
                    text_chars=sum(len(s.text) for s in part),
                )
            )
    funnel = {k: m.Funnel(read=len(v), written=len(v)) for k, v in by_source.items()}
    record = m.TaskRecord(task=0, tasks=1, fingerprint="f", shards=tuple(shards), funnel=funnel)
    made = m.Manifest(name="tiny", fingerprint="f", recipe={}, licences={}, unread=(), tasks=(record,))
    m.write_task_record(directory, record)
    m.write_manifest(directory, made)
    return m.read_manifest(directory)


class Make:
    """The builders above, for tests that take the `make` fixture."""

    png = staticmethod(png)
    caption = staticmethod(caption_sample)
    document = staticmethod(document_sample)
    dialogue = staticmethod(dialogue_sample)
    dataset = staticmethod(write_dataset)
    shard = staticmethod(write_shard)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer((text(n, 12) for n in range(60)), 300)


@pytest.fixture(scope="session")
def bytes_tokenizer() -> Tokenizer:
    """No merges: the id of every byte is known by hand."""
    return train_tokenizer([], 263)


@pytest.fixture
def samples() -> list[Sample]:
    """17 captions, 11 documents, 9 dialogues."""
    return [
        *(caption_sample(n) for n in range(17)),
        *(document_sample(n, pictures=n % 3) for n in range(11)),
        *(dialogue_sample(n) for n in range(9)),
    ]


@pytest.fixture
def dataset(tmp_path: Path, samples: list[Sample]) -> tuple[Path, m.Manifest]:
    return tmp_path, write_dataset(tmp_path, samples)
