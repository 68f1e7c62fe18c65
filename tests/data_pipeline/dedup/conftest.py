"""Small datasets of distinct pictures, with copies put where a test wants them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_pipeline import manifest as m
from data_pipeline.build.images.phash import perceptual_hash
from data_pipeline.sample import SCHEMA, Media, Sample, Segment, content_id


def picture(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Soft shapes: no flat surface, no symmetry, no two seeds alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, quality: int | None = None) -> bytes:
    out = io.BytesIO()
    if quality is None:
        image.save(out, "PNG")
    else:
        image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def media(data: bytes, url: str | None = None, hashed: bool = True) -> Media:
    phash = perceptual_hash(Image.open(io.BytesIO(data))) if hashed else None
    return Media(media_id=content_id(data), url=url, phash=phash)


def caption(key: str, data: bytes, text: str, source: str = "pairs", hashed: bool = True, **more) -> Sample:
    return Sample(
        id=key,
        kind="caption",
        source=source,
        segments=(Segment(type="image", media=0), Segment(type="text", text=text, role="alt")),
        media=(media(data, hashed=hashed),),
        image_bytes=(data,),
        **more,
    )


def document(key: str, *parts: str | bytes, source: str = "web", urls: dict | None = None, **more) -> Sample:
    """Texts and pictures in order."""
    segments, found, data = [], [], []
    for part in parts:
        if isinstance(part, str):
            segments.append(Segment(type="text", text=part))
        else:
            segments.append(Segment(type="image", media=len(found)))
            found.append(media(part, (urls or {}).get(part)))
            data.append(part)
    return Sample(
        id=key,
        kind="interleaved" if found else "text",
        source=source,
        segments=tuple(segments),
        media=tuple(found),
        image_bytes=tuple(data),
        **more,
    )


def dataset(directory: Path, parts: list[tuple[str, list[Sample]]], rows: int = 2) -> m.Manifest:
    """One shard for each (split, samples of one source), in record batches of `rows`."""
    shards = []
    for n, (split, samples) in enumerate(parts):
        path = f"shards/{n:03d}-{split}.arrow"
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(directory / path), "wb") as f, pa.ipc.new_file(f, SCHEMA) as writer:
            for b in range(0, len(samples), rows):
                found = [s.to_row() for s in samples[b : b + rows]]
                writer.write_batch(pa.RecordBatch.from_pylist(found, schema=SCHEMA))
        shards.append(
            m.Shard(
                path=path,
                format="arrow",
                split=split,
                source=samples[0].source,
                nbytes=(directory / path).stat().st_size,
                sha256=m.sha256_file(directory / path),
                samples=len(samples),
                images=sum(len(s.media) for s in samples),
                text_chars=sum(len(s.text) for s in samples),
            )
        )
    record = m.TaskRecord(task=0, tasks=1, fingerprint="f", shards=tuple(shards), funnel={})
    made = m.Manifest(name="t", fingerprint="f", recipe={}, licences={}, unread=(), tasks=(record,))
    m.write_manifest(directory, made)
    return m.read_manifest(directory)


class Make:
    picture = staticmethod(picture)
    encoded = staticmethod(encoded)
    media = staticmethod(media)
    caption = staticmethod(caption)
    document = staticmethod(document)
    dataset = staticmethod(dataset)


@pytest.fixture(scope="session")
def copies() -> type[Make]:
    """Builders for datasets that hold copies."""
    return Make
