"""Dataset images that are a benchmark's pictures: by bytes, by perceptual hash, or by an embedding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from data_pipeline.build.decontaminate.benchmark import Fault, Picture
from data_pipeline.build.decontaminate.config import ImageSearch
from data_pipeline.build.dedup.clusters import Thumbnails, likeness, opened, pictures
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.hamming import HammingIndex
from data_pipeline.build.images.phash import Thumbnail, perceptual_hash, thumbnail
from data_pipeline.sample import content_id

# Pictures to vectors float[n, d]; their lengths do not matter.
Embed = Callable[[Sequence[Image.Image]], np.ndarray]
_EMBEDDED = 64
_EMBED_SIDE = 384


@dataclass(frozen=True)
class ImageHit:
    """An image of the dataset and the picture of the benchmark that it shows."""

    image: int
    picture: int
    how: Literal["bytes", "perceptual hash", "embedding"]
    distance: int | None  # bits of 64; None for embeddings
    similarity: float  # of the thumbnails, or the cosine


class PictureIndex:
    """The pictures of a benchmark: 1 KB each, and their embedding."""

    def __init__(self, config: ImageSearch, embed: Embed | None = None):
        self.config = config
        self.names: list[str] = []
        self._embed = embed
        self._by_bytes: dict[str, int] = {}
        self._thumbnails: list[Thumbnail] = []
        self._index = HammingIndex(config.distance)
        self._sides: list[int] = []  # hash number -> picture: each has one hash, or two with the mirrored one
        self._vectors: list[np.ndarray] = []

    def add(self, picture: Picture) -> Fault | None:
        """None where the picture was taken in."""
        image = opened(picture.data, _EMBED_SIDE if self._embed else 64)
        if image is None:
            return Fault(picture.name, "no picture that can be decoded")
        number = len(self.names)
        self.names.append(picture.name)
        self._by_bytes.setdefault(content_id(picture.data), number)
        self._thumbnails.append(thumbnail(image))
        sides = [image]
        if self.config.mirror:
            sides.append(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        self._index.add(np.array([perceptual_hash(side) for side in sides], np.uint64))
        self._sides += [number] * len(sides)
        if self._embed is not None:
            self._vectors.append(_unit(self._embed([image.convert("RGB")]))[0])
        return None

    def search(self, corpus: Corpus) -> Iterator[ImageHit]:
        """For each image of the corpus, in order, the nearest picture if any is near enough."""
        if not self.names:
            return
        thumbnails = Thumbnails(corpus)
        for batch in pictures(corpus):
            near: dict[int, dict[int, int]] = {}
            for query, side, far in zip(*self._index.search(batch.phash), strict=True):
                found = near.setdefault(int(query), {})
                picture = self._sides[side]
                found[picture] = min(int(far), found.get(picture, 64))
            embedded = self._embeddings(corpus, batch.image.tolist())
            for k, (image, media_id) in enumerate(zip(batch.image.tolist(), batch.media_id, strict=True)):
                if media_id in self._by_bytes:
                    yield ImageHit(image, self._by_bytes[media_id], "bytes", 0, 1.0)
                elif (hit := self._nearest(image, near.get(k, {}), thumbnails)) is not None:
                    yield hit
                elif image in embedded:
                    yield embedded[image]

    def _nearest(self, image: int, near: dict[int, int], thumbnails: Thumbnails) -> ImageHit | None:
        hits = []
        for picture, far in near.items():
            a, b = thumbnails[image], self._thumbnails[picture]
            found = likeness(far, a, b, distance=self.config.distance, mirror=self.config.mirror)
            if found >= self.config.similarity:
                hits.append(ImageHit(image, picture, "perceptual hash", far, found))
        return max(hits, key=lambda h: (h.similarity, -h.picture), default=None)

    def _embeddings(self, corpus: Corpus, images: list[int]) -> dict[int, ImageHit]:
        hits: dict[int, ImageHit] = {}
        if self._embed is None:
            return hits
        vectors = np.stack(self._vectors)
        for start in range(0, len(images), _EMBEDDED):
            seen = [
                (i, image.convert("RGB"))
                for i in images[start : start + _EMBEDDED]
                if (image := opened(corpus.picture(i), _EMBED_SIDE)) is not None
            ]
            if not seen:
                continue
            cosines = _unit(self._embed([image for _, image in seen])) @ vectors.T
            for (i, _), row in zip(seen, cosines, strict=True):
                if row.max() >= self.config.embedding:
                    hits[i] = ImageHit(i, int(row.argmax()), "embedding", None, float(row.max()))
        return hits


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
