"""A built dataset's images, and what a model writes about each: new samples that name their parents.

The original text stays beside the new one. Each image asked about gives one item: a sample, or its fault.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.layouts.turns import questions_and_answers
from data_pipeline.build.read.reading import Fault, Item, Stamp, as_json
from data_pipeline.build.synthesize.answers import pairs
from data_pipeline.build.synthesize.cache import AnswerCache
from data_pipeline.build.synthesize.checks import agreement, scores, verdict
from data_pipeline.build.synthesize.client import Answer, Client, Failure, Image, Question
from data_pipeline.build.synthesize.source import SyntheticSource
from data_pipeline.errors import ConfigError, TransientError
from data_pipeline.manifest import MANIFEST, Shard, read_manifest
from data_pipeline.sample import Sample, Segment, content_id
from data_pipeline.view import View, record_batches

VERSION = "1"
MAX_IMAGE = 20 * 2**20
_MIMES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


@dataclass(frozen=True)
class Chunk:
    """Rows of a shard: `count` from row `first` on."""

    shard: Shard
    first: int
    count: int


@dataclass(frozen=True)
class Wanted:
    """An image to ask about, in its parent."""

    parent: Sample
    media: int
    where: str
    image: Image
    prompt: str


@dataclass(frozen=True)
class SyntheticReader:
    """`endpoint` and `cache` are where this build asks and remembers; neither is part of what it is."""

    source: SyntheticSource
    path: Path  # of the dataset
    cache: Path
    endpoint: str | None = None  # of the checkpoint's server, where the source names a checkpoint

    def __post_init__(self) -> None:
        name = self.source.api_key_env
        if name is not None and not os.environ.get(name):
            # The name is not repeated: where somebody wrote the key itself, it would be shown.
            raise ConfigError(
                f"source '{self.source.name}': api_key_env names an environment variable that is not set.\n"
                "  Put the NAME of the variable on the page, and the key into the environment."
            )
        known = read_manifest(self.path).funnel
        if unknown := [s for s in self.source.from_sources if s not in known]:
            raise ConfigError(
                f"source '{self.source.name}': {self.path} holds no source '{unknown[0]}'; "
                f"it holds {', '.join(sorted(known))}"
            )

    def inputs(self) -> list[Stamp]:
        """The manifest names all that the dataset shows: its shards by digest, and what it excludes."""
        tree = Tree.at(self.path)
        return [tree.stamp(MANIFEST), *(tree.stamp(s.path) for s in self._shards())]

    def units(self) -> list[Chunk]:
        step = self.source.chunk
        return [Chunk(s, first, step) for s in self._shards() for first in range(0, s.samples, step)]

    def read(self, unit: Chunk) -> Iterator[Item]:
        """Raises TransientError where a request failed for good and the source says `failures: stop`."""
        asked: list[Wanted | Item] = []
        for row, parent in self._parents(unit):
            asked += self._wanted(parent, unit.shard.path, f"row {row}")
        client = self._client()
        wanted = [w for w in asked if isinstance(w, Wanted)]
        k = self.source.samples
        seeds = [self.source.seed + n for n in range(k)]
        found = client.ask([Question(w.prompt, w.image, s) for w in wanted for s in seeds]) if wanted else []
        answers = iter([found[n : n + k] for n in range(0, len(found), k)])
        for one in asked:
            yield one if isinstance(one, Item) else self._item(one, next(answers), client, unit.shard.path)

    def _shards(self) -> list[Shard]:
        shards = read_manifest(self.path).shards(format="arrow", split=self.source.split)
        return [s for s in shards if not self.source.from_sources or s.source in self.source.from_sources]

    def _client(self) -> Client:
        s = self.source
        endpoint = self.endpoint or s.endpoint
        if endpoint is None:
            raise ConfigError(f"source '{s.name}': its checkpoint is served nowhere")
        client = Client(
            endpoint=endpoint,
            model=s.model,
            temperature=s.temperature,
            max_tokens=s.max_tokens,
            concurrency=s.concurrency,
            deadline_s=s.deadline_s,
            retries=s.retries,
            api_key_env=s.api_key_env,
            cache=AnswerCache(self.cache),
        )
        return dataclasses.replace(client, model=client.model_name())

    def _parents(self, unit: Chunk) -> Iterator[tuple[int, Sample]]:
        """The rows of the chunk that the dataset shows, each with its number in the shard."""
        view = _view(self.path, read_manifest(self.path).digest)
        start = 0
        for batch in record_batches(self.path, unit.shard):
            first, last = max(unit.first, start), min(unit.first + unit.count, start + batch.num_rows)
            rows = batch.slice(first - start, last - first).to_pylist() if first < last else []
            for n, row in enumerate(rows, start=first):
                if (parent := view.apply(Sample.from_row(row))) is not None:
                    yield n, parent
            start += batch.num_rows

    def _wanted(self, parent: Sample, file: str, where: str) -> list[Wanted | Item]:
        def fault(reason: str, detail: str) -> Item:
            return Item.failed(Fault(reason=reason, detail=detail, bad=False, file=file, where=where))

        if not parent.media:
            return [fault("no image to describe", f"sample {parent.id} is text alone")]
        asked: list[Wanted | Item] = []
        for n, data in enumerate(parent.image_bytes):
            mime = None if data is None else (parent.media[n].mime or _mime(data))
            if data is None or mime is None:
                why = "has no bytes" if data is None else "is of no known format"
                asked.append(fault("no image to describe", f"image {n} of sample {parent.id} {why}"))
            elif len(data) > MAX_IMAGE:
                asked.append(fault("image too large to send", f"{len(data):,} bytes, allowed {MAX_IMAGE:,}"))
            else:
                prompt = self.source.instruction.filled("\n".join(_originals(parent, n)))
                image = Image(parent.media[n].media_id, mime, data)
                asked.append(Wanted(parent, n, where, image, prompt))
        return asked

    def _item(self, w: Wanted, found: Sequence[Answer | Failure], client: Client, file: str) -> Item:
        def fault(reason: str, detail: str) -> Item:
            return Item.failed(Fault(reason=reason, detail=detail, bad=False, file=file, where=w.where))

        failed = next((f for f in found if isinstance(f, Failure)), None)
        if failed is not None and not failed.lasting and self.source.failures == "stop":
            raise TransientError(
                f"source '{self.source.name}', {client.endpoint}: {failed.reason} ({failed.detail}), after "
                f"{self.source.retries + 1} tries, for {file}, {w.where}.\n"
                "  Repeat the command: answers that came are kept. To go on without:  failures: drop"
            )
        if failed is not None:
            return fault(failed.reason, failed.detail)
        answers = [f for f in found if isinstance(f, Answer)]
        alike = agreement([a.text for a in answers])
        chosen = max(range(len(answers)), key=lambda n: (alike[n], -n))
        answer = answers[chosen]
        cut = answer.finish_reason == "length"
        text = answer.text.strip()
        asked = pairs(text, cut=cut) if self.source.task == "qa" else None
        judged = text if asked is None else " ".join(a for _, a in asked)
        expected = self.source.language or w.parent.lang
        found_scores = scores(
            judged, _originals(w.parent, w.media), w.prompt, cut=cut, expected_language=expected
        )
        if len(answers) > 1:
            found_scores["agreement"] = alike[chosen]
        if dropped := verdict(judged, found_scores, self.source.keep):
            return fault(*dropped)
        if self.source.task == "qa" and asked is None:
            return fault("no question-answer pairs", f"the answer begins {text[:40]!a}")
        sample = self._sample(w, answer, chosen, client.model or "", asked, text)
        return Item(file=file, where=w.where, sample=dataclasses.replace(sample, scores=found_scores))

    def _sample(
        self,
        w: Wanted,
        answer: Answer,
        chosen: int,
        generator: str,
        asked: list[tuple[str, str]] | None,
        text: str,
    ) -> Sample:
        s, parent, media = self.source, w.parent, w.parent.media[w.media]
        version = "@".join(v for v in (answer.model or generator, answer.fingerprint) if v)
        synthetic = {
            "generator": generator,
            "generator_version": version,
            "prompt_id": s.instruction.id,
            "seed": s.seed + chosen,
            "params_json": as_json(
                {
                    "task": s.task,
                    "temperature": s.temperature,
                    "max_tokens": s.max_tokens,
                    "samples": s.samples,
                    "finish_reason": answer.finish_reason,
                }
            ),
            "parent_ids": [parent.id],
        }
        step = {
            "step": "synthesize",
            "version": VERSION,
            "config_hash": content_id(as_json(synthetic)),
            "action": "recaption" if asked is None else "questions",
            "reason": s.instruction.id,
        }
        return dataclasses.replace(
            parent,
            id=content_id(s.name, parent.id, media.media_id, as_json(synthetic), text),
            kind="caption" if asked is None else "instruct",
            source=s.name,
            license=parent.license or s.license,
            segments=_recaptioned(w, text) if asked is None else questions_and_answers(asked, image=True),
            media=(media,),
            image_bytes=(parent.image_bytes[w.media],),
            synthetic=synthetic,
            lineage=(*(parent.lineage or ()), step),
            n_text_tokens=None,
            n_image_tokens=None,
        )


@lru_cache(maxsize=2)
def _view(dataset: Path, digest: str) -> View:
    """Opened once for all chunks, since it may hold millions of exclusions; `digest` is the manifest's."""
    return View.open(dataset, read_manifest(dataset))


def _recaptioned(w: Wanted, text: str) -> tuple[Segment, ...]:
    """The new caption after what the parent says: all of a caption sample, else the image's alt text."""
    new = Segment(type="text", text=text, role="recaption")
    if _is_caption(w.parent):
        return (*w.parent.segments, new)
    alt = w.parent.media[w.media].alt
    kept = (Segment(type="text", text=alt, role="alt"),) if alt else ()
    return (Segment(type="image", media=0), *kept, new)


def _originals(parent: Sample, media: int) -> list[str]:
    """What the parent says about this image: its captions, else its alt text."""
    if _is_caption(parent):
        return [s.text for s in parent.segments if s.type == "text" and s.text]
    alt = parent.media[media].alt
    return [alt] if alt else []


def _is_caption(parent: Sample) -> bool:
    return parent.kind == "caption" and len(parent.media) == 1


def _mime(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((mime for magic, mime in _MIMES if data.startswith(magic)), None)
