"""Which pictures are copies of which: every image gets a leader, the earliest image that it is a copy of.

Leaders, not connected components: a copy is near to its leader itself, never by way of others, so a long
row of slightly different pictures does not collapse into one. Two hashes agreeing is only a reason to look:
the thumbnails decide (`similarity`), because plain pages and radiographs share hashes and are no copies.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.build.dedup.config import NearImages
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.hamming import HammingIndex
from data_pipeline.build.images.phash import (
    Thumbnail,
    bits_allowed,
    decode_small,
    mirrored_phash,
    perceptual_hash,
    similarity,
    thumbnail,
)

_BATCH = 1024
_LOOKED_AT = 32  # leaders compared with one image, the earliest first
_THUMBNAILS = 16384  # 16 MiB


@dataclass(frozen=True)
class Pictures:
    """Images of a corpus in its order: numbers int64[n], hashes uint64[n], media ids."""

    image: np.ndarray
    phash: np.ndarray
    media_id: list[str]


class Thumbnails:
    """Thumbnails by image number, decoded when asked for and remembered for a while."""

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._seen: OrderedDict[int, Thumbnail | None] = OrderedDict()

    def __getitem__(self, image: int) -> Thumbnail | None:
        """None where the picture cannot be decoded."""
        if image in self._seen:
            self._seen.move_to_end(image)
            return self._seen[image]
        picture = opened(self._corpus.picture(image))
        self._seen[image] = None if picture is None else thumbnail(picture)
        if len(self._seen) > _THUMBNAILS:
            self._seen.popitem(last=False)
        return self._seen[image]


def likeness(far: int, a: Thumbnail | None, b: Thumbnail | None, *, distance: int, mirror: bool) -> float:
    """`similarity` of two pictures whose hashes differ in `far` bits, or of one and the mirrored other if
    that is greater; -1 where one is not to be seen, or its size does not allow so many bits."""
    if a is None or b is None or far > bits_allowed(distance, a, b):
        return -1.0
    straight = similarity(a.grey, b.grey)
    return max(straight, similarity(a.grey, b.grey[:, ::-1])) if mirror else straight


def leaders(corpus: Corpus, config: NearImages, work: Path) -> np.ndarray:
    """int64[images], a mapped file: the leader of every image that is shown; -1 for the others.

    A leader leads itself. An image without a stored hash is decoded; if it cannot be, it has no leader.
    """
    work.mkdir(parents=True, exist_ok=True)
    result = np.lib.format.open_memmap(
        work / "leaders.npy", mode="w+", dtype=np.int64, shape=(len(corpus.shown_images),)
    )
    result[:] = -1
    search = _Search(corpus, config, work)
    for batch in pictures(corpus):
        result[batch.image] = search.assign(batch)
    return result


class _Search:
    """The leaders so far, and the look at each batch of images that follows."""

    def __init__(self, corpus: Corpus, config: NearImages, work: Path):
        self.config = config
        self.corpus = corpus
        self.thumbnails = Thumbnails(corpus)
        self.index = HammingIndex(config.distance, work / "hamming")
        self.places = (work / "places.bin").open("w+b")  # image number of each leader, 8 bytes

    def assign(self, pictures: Pictures) -> np.ndarray:
        """int64[n]: the leader of each picture of the batch."""
        result = pictures.image.copy()
        earlier = self._earlier(pictures)
        media_id = dict(zip(pictures.image.tolist(), pictures.media_id, strict=True))
        led: set[int] = set()  # images of this batch that follow a leader
        for k, candidates in earlier.items():
            image = int(pictures.image[k])
            open_ = (c for c in sorted(candidates.items()) if c[0] not in led)
            for _, (leader, far) in zip(range(_LOOKED_AT), open_, strict=False):
                if self._is_copy(image, leader, far, media_id):
                    result[k] = leader
                    led.add(image)
                    break
        new = result == pictures.image
        self.index.add(pictures.phash[new])
        self.places.seek(0, 2)
        self.places.write(pictures.image[new].astype("<i8").tobytes())
        return result

    def _earlier(self, pictures: Pictures) -> dict[int, dict[int, int]]:
        """Position in the batch, ascending -> images before it whose hash is near, or near mirrored, and in
        how many bits it differs."""
        found: dict[int, dict[int, int]] = {}

        def add(query: int, image: int, far: int) -> None:
            others = found.setdefault(query, {})
            others[image] = min(far, others.get(image, far))

        sides = (pictures.phash, mirrored_phash(pictures.phash)) if self.config.mirror else (pictures.phash,)
        for hashes in sides:
            for query, number, far in zip(*self.index.search(hashes), strict=True):
                add(int(query), self._place(int(number)), int(far))
            bits = np.bitwise_count(hashes[:, None] ^ pictures.phash)
            for query, other in zip(*np.nonzero(np.tril(bits <= self.config.distance, -1)), strict=True):
                add(int(query), int(pictures.image[other]), int(bits[query, other]))
        return dict(sorted(found.items()))

    def _place(self, number: int) -> int:
        self.places.seek(8 * number)
        return int.from_bytes(self.places.read(8), "little")

    def _is_copy(self, image: int, leader: int, far: int, media_id: dict[int, str]) -> bool:
        known = media_id.get(leader) or self.corpus.describe(leader)[1]
        if known == media_id[image] or self.config.similarity <= -1:
            return True
        a, b = self.thumbnails[image], self.thumbnails[leader]
        found = likeness(far, a, b, distance=self.config.distance, mirror=self.config.mirror)
        return found >= self.config.similarity


def pictures(corpus: Corpus) -> Iterator[Pictures]:
    """The shown images in batches, without those that have no hash and cannot be decoded."""
    found: list[tuple[int, int, str]] = []
    for batch in corpus.media():
        for image, stored, media_id in zip(batch.image.tolist(), batch.phash, batch.media_id, strict=True):
            phash = _phash(corpus, image) if stored is None else stored
            if phash is not None:
                found.append((image, phash, media_id))
            if len(found) == _BATCH:
                yield _columns(found)
                found = []
    if found:
        yield _columns(found)


def _columns(found: list[tuple[int, int, str]]) -> Pictures:
    image, phash, media_id = zip(*found, strict=True)
    return Pictures(np.array(image, np.int64), np.array(phash, np.uint64), list(media_id))


def _phash(corpus: Corpus, image: int) -> int | None:
    picture = opened(corpus.picture(image))
    return None if picture is None else perceptual_hash(picture)


def opened(data: bytes | None, side: int = 64) -> Image.Image | None:
    """The picture, decoded no smaller than `side`; None where that fails."""
    try:
        return decode_small(data, side) if data else None
    except (OSError, ValueError):
        return None  # a picture that cannot be seen is a copy of nothing
