"""Near-equal texts by datatrove's MinHash, in stages that any of its executors runs one after another.

Signatures, buckets, clusters are datatrove's steps. Around them stands what they lack: the files of a task
are sealed with their lengths and hashes when it is through, a stage starts only on sealed files, and of a
cluster the sample that is first in the corpus stays, so that the number of tasks does not change the result.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from hashlib import sha1
from io import StringIO
from itertools import accumulate
from pathlib import Path

import numpy as np
from blake3 import blake3
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer

from data_pipeline.build.dedup.config import MinHash
from data_pipeline.build.dedup.corpus import Block, Corpus
from data_pipeline.build.executor import Job
from data_pipeline.errors import DataError
from data_pipeline.manifest import commit, write_json
from data_pipeline.view import Exclusion

_MERSENNE = np.uint64((1 << 61) - 1)
_SHIFT = np.uint64(61)
_WITHOUT_MARKS = TextNormConfig(norm_unicode_diacritics=False)
_MARKS = TextNormConfig(lowercase=False, norm_whitespace=False, remove_punctuation=False, norm_numbers=False)
_SHINGLES = 4096  # hashed at once: 4 MiB at 112 hashes
# Scripts without spaces between words: each character stands for a word.
_WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+"
)


class Words(WordTokenizer):
    """Words without any download. datatrove's own tokenizers need spaCy, NLTK and their data."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split() if text.isascii() else _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


class Signatures(MinhashDedupSignature):
    """datatrove's first step with the same signatures, bit for bit, faster and in bounded memory."""

    def get_shingles(self, text: str) -> np.ndarray:
        """uint64[n, 1]: hashes of the text's n-grams of words."""
        words = [w.encode() for w in self.word_tokenizer.word_tokenize(_simplified(text))]
        joined = b" ".join(words)
        ends = list(accumulate(len(w) + 1 for w in words))
        starts = [0, *ends[: -self.config.n_grams]]
        grams = zip(starts, ends[self.config.n_grams - 1 :], strict=False)
        digests = b"".join([sha1(joined[start : end - 1]).digest() for start, end in grams])
        return np.frombuffer(digests, np.uint8).reshape(-1, 20)[:, :8].copy().view("<u8")

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        a, b = self.parameters
        lowest = []
        for start in range(0, len(shingles), _SHINGLES):
            value = shingles[start : start + _SHINGLES] * a
            value += b
            # x mod 2^61 - 1 without a division; what is still below the modulus wraps round and is not taken.
            high = value >> _SHIFT
            value &= _MERSENNE
            value += high
            np.minimum(value, value - _MERSENNE, out=value)
            lowest.append(value.min(axis=0))
        return [x.tolist() for x in np.split(np.minimum.reduce(lowest), self.config.num_buckets)]


class Clusters(MinhashDedupCluster):
    """datatrove's last step without its progress bar, which would stand between the lines of the build."""

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> None:
        with redirect_stderr(StringIO()):
            super().run(data, rank, world_size)


def _simplified(text: str) -> str:
    """`simplify_text`, whose last step takes half of its time and changes nothing in ASCII."""
    text = simplify_text(text, _WITHOUT_MARKS)
    return text if text.isascii() else simplify_text(text, _MARKS)


class TextView(PipelineStep):
    """The texts of this task's blocks, every sample as a document: those not to be compared have no words."""

    type = "read"
    name = "texts of the dataset"

    def __init__(self, corpus: Corpus, config: MinHash, mask: Path):
        super().__init__()
        self.directory = corpus.directory
        self.shards = corpus.shards
        self.kinds = config.kinds
        self.mask = mask

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        corpus = Corpus(self.directory, self.shards)
        shown = np.unpackbits(np.load(self.mask), count=len(corpus.shown_rows)).astype(bool)
        for block in corpus.blocks[rank::world_size]:
            for k, row in enumerate(corpus.batch(block).select(["id", "kind", "segments"]).to_pylist()):
                wanted = shown[block.first_row + k] and row["kind"] in self.kinds
                text = "\n".join(s["text"] for s in row["segments"] if s["text"]) if wanted else ""
                yield Document(text=text, id=row["id"])


@dataclass(frozen=True)
class Sealed:
    """The files of one stage. `pattern` finds those of a task: the rank is formatted into it."""

    name: str
    output: Path
    tasks: int
    pattern: str

    def files(self, rank: int) -> dict[str, list[int | str]]:
        """Length and hash of each file of a task."""
        found = sorted(self.output.glob(self.pattern.format(rank=rank)))
        return {p.relative_to(self.output).as_posix(): _facts(p) for p in found}

    def seal(self, rank: int) -> Path:
        return self.output.with_name(f"{self.output.name}-sealed") / f"{rank:05d}.json"

    def is_done(self, rank: int) -> bool:
        """Whether the task is sealed and its files are what they then were."""
        try:
            return json.loads(self.seal(rank).read_text(encoding="utf-8")) == self.files(rank)
        except (OSError, ValueError):
            return False


class Seal(PipelineStep):
    """Last step of a task: records its files, so that half a file is never taken for a whole one."""

    type = "seal"
    name = "seal"

    def __init__(self, stage: Sealed):
        super().__init__()
        self.stage = stage

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> None:
        write_json(self.stage.seal(rank), self.stage.files(rank))


class RequireSealed(PipelineStep):
    """First step of a stage: the stage before it is complete, or the task ends with a DataError."""

    type = "check"
    name = "check the stage before"

    def __init__(self, stage: Sealed):
        super().__init__()
        self.stage = stage

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> None:
        if missing := [r for r in range(self.stage.tasks) if not self.stage.is_done(r)]:
            raise DataError(
                f"MinHash stage '{self.stage.name}' is incomplete in {self.stage.output}: "
                f"{len(missing)} of {self.stage.tasks} tasks, the first is {missing[0]}. Repeat the command."
            )


def jobs(corpus: Corpus, config: MinHash, work: Path, tasks: int) -> tuple[Path, list[Job]]:
    """(folder of this configuration and content, the stages in order). Another input gets another folder."""
    shown = np.packbits(corpus.shown_rows)
    content = [config.model_dump(mode="json"), tasks, [(s.path, s.sha256) for s in corpus.shards]]
    name = blake3(json.dumps(content).encode() + shown.tobytes()).hexdigest(length=8)
    folder = work / f"minhash-{name}"
    with commit(folder / "shown.npy") as f:
        np.save(f, shown)
    ours = datatrove_config(config)
    signatures = Sealed("signatures", folder / "signatures", tasks, "bucket_*/{rank:05d}.minhash.sig")
    buckets = Sealed("buckets", folder / "buckets", config.buckets, "{rank:05d}_00.dups")
    clusters = Sealed("clusters", folder / "clusters", 1, "*")
    texts = TextView(corpus, config, folder / "shown.npy")
    made, paired, joined = (str(stage.output) for stage in (signatures, buckets, clusters))
    steps: list[tuple[Sealed, list[PipelineStep]]] = [
        (signatures, [texts, Signatures(made, config=ours, language=Words())]),
        (buckets, [RequireSealed(signatures), MinhashDedupBuckets(made, paired, config=ours)]),
        (clusters, [RequireSealed(buckets), Clusters(paired, joined, config=ours, save_cluster_id=True)]),
    ]
    return folder, [
        Job(
            name=f"minhash-{stage.name}",
            pipeline=[*pipeline, Seal(stage)],
            tasks=stage.tasks,
            logs=folder / "logs" / stage.name,
            is_done=stage.is_done,
        )
        for stage, pipeline in steps
    ]


def datatrove_config(config: MinHash) -> MinhashConfig:
    return MinhashConfig(
        n_grams=config.ngram,
        num_buckets=config.buckets,
        hashes_per_bucket=config.hashes,
        seed=config.seed,
        # xxhash, datatrove's default, fails for it from version 4 on.
        hash_config=HashConfig(precision=64, hash_fc="sha1"),
    )


def near_text_exclusions(corpus: Corpus, folder: Path, tasks: int) -> Iterator[Exclusion]:
    """What the clusters of a finished last stage leave out: of each cluster all but the corpus's first."""
    cluster: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    for rank in range(tasks):
        file = folder / "clusters" / f"{rank:06d}.clusters"
        if file.exists():
            pairs = np.fromfile(file, "<u4").reshape(-1, 2)
            rows.append(_rows(corpus.blocks[rank::tasks])[pairs[:, 0]])
            cluster.append(pairs[:, 1])
    if not rows:
        return
    row, label = np.concatenate(rows), np.concatenate(cluster)
    order = np.lexsort((row, label))
    row, label = row[order], label[order]
    first = np.concatenate(([True], np.diff(label) != 0))
    kept = np.repeat(row[first], np.diff(np.concatenate((np.flatnonzero(first), [len(row)]))))
    for k in np.flatnonzero(~first):
        detail = f"of sample {corpus.row(int(kept[k]), ('id',))['id']}"
        yield corpus.exclude_row(int(row[k]), "nearly the text of another document", detail)


def _rows(blocks: list[Block]) -> np.ndarray:
    """Number in the corpus of each document of a task, in the order in which it read them."""
    return np.concatenate([np.arange(b.first_row, b.first_row + b.rows) for b in blocks])


def _facts(path: Path) -> list[int | str]:
    h = blake3()
    with path.open("rb") as f:
        while data := f.read(1 << 20):
            h.update(data)
    return [path.stat().st_size, h.hexdigest(length=16)]
