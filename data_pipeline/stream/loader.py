"""The stream of training batches: plan the global batch, decode this rank's rows, one step ahead."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.batch import Batch
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.ahead import Ahead
from data_pipeline.stream.collate import Document, collate
from data_pipeline.stream.decode import DecodeError, blank, decode
from data_pipeline.stream.faults import Faults
from data_pipeline.stream.pack import Piece
from data_pipeline.stream.plan import Cursor, Plan, Planner
from data_pipeline.stream.source import Source
from data_pipeline.stream.tokens import Tokenizer

_DEPTH = 1  # steps waiting; one more is in the making
_REMEMBERED = 1000


@dataclass(frozen=True, eq=False)
class _Step:
    batches: list[Batch]
    plan: Plan
    image_tokens: int
    skipped: tuple[tuple[str, str], ...]


class Stream:
    """Batches for one rank, without end.

    Every rank plans the same global batch of `global_rows` rows and takes rows rank, rank + world_size, ...:
    the global batch is the same for every world size that divides it. The state is a few numbers that know
    nothing of ranks, so a run may go on with another number of them.

    A picture that cannot be decoded is seen by the rank that owns its row and by no other, so it must not
    change the plan: its document keeps its place with a blank picture and without a single target, and is
    counted. Too many of them raise DataError (`faults.py`).

    After `next()`, about the step it gave:
        `last_sample_ids`  ids of the whole global batch, by row (a sample cut into pieces comes repeatedly)
        `fill`             share of the global batch's positions that hold a token; the rest is padding
        `image_tokens`     visual tokens of the global batch
    and since the start of the process:
        `skipped`          reason -> count; unusable samples are counted on every rank alike, bad pictures
                           ("picture: ...") only on the rank that met them
        `skipped_samples`  the latest 1000 of them as (sample id, reason)
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        tokenizer: Tokenizer,
        image: ImageSpec,
        image_tokens: int,
        sequence_length: int,
        global_rows: int,
        micro_rows: int,
        rank: int,
        world_size: int,
        loss_on: str,
        seed: int,
        manifest_digest: str,
    ) -> None:
        if global_rows % (micro_rows * world_size):
            raise ConfigError(
                f"global_rows {global_rows} is no multiple of micro_rows ({micro_rows}) "
                f"x world_size ({world_size})"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} ranks")
        self._planner = Planner(
            sources=sources,
            weights=weights,
            tokenizer=tokenizer,
            image_tokens=image_tokens,
            sequence_length=sequence_length,
            global_rows=global_rows,
            loss_on=loss_on,
            seed=seed,
        )
        self._maker = _Maker(
            sources, tokenizer, image, image_tokens, sequence_length, micro_rows, rank, world_size
        )
        # Whatever changes the meaning of a cursor. Rows of a batch may change: a cursor does not know them.
        self._identity: dict[str, Any] = {
            "manifest_digest": manifest_digest,
            "seed": seed,
            "mixture": dict(sorted(weights.items())),
            "tokenizer": tokenizer.fingerprint[:16],
            "image_tokens": image_tokens,
            "sequence_length": sequence_length,
            "loss_on": loss_on,
        }
        self._lengths = {name: len(sources[name]) for name in weights}
        self._ahead: Ahead[_Step] | None = None
        self._cursor = self._planner.start()
        self.step = 0
        self.fill = 0.0
        self.image_tokens = 0
        self.last_sample_ids: tuple[tuple[str, ...], ...] = ()
        self.skipped: Counter[str] = Counter()
        self.skipped_samples: list[tuple[str, str]] = []

    def next(self) -> list[Batch]:
        """This rank's micro-batches of the next step, in the order of accumulation."""
        if self._ahead is None:
            self._ahead = Ahead(_steps(self._planner, self._maker, self._cursor), _DEPTH)
        step = self._ahead.next()
        self._cursor = step.plan.after
        self.step += 1
        self.fill = step.plan.fill
        self.image_tokens = step.image_tokens
        self.last_sample_ids = step.plan.sample_ids
        self.skipped.update(reason for _, reason in step.skipped)
        self.skipped_samples = [*self.skipped_samples, *step.skipped][-_REMEMBERED:]
        return step.batches

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: where the stream stands after the steps that `next` gave, not those it prepared."""
        draws = dict(sorted(self._cursor.draws.items()))
        return {
            **self._identity,
            "step": self.step,
            "draws": draws,
            "piece": self._cursor.piece,
            "epochs": {name: round(draws[name] / self._lengths[name], 4) for name in draws},  # to read only
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises DataError where it belongs to another stream."""
        for key, here in self._identity.items():
            if state.get(key) != here:
                raise DataError(
                    f"the saved stream has {key} {state.get(key)!r}, this run has {here!r}.\n"
                    f"  Resume with what the run began with, or start a new run from its weights."
                )
        draws, piece, step = state.get("draws"), state.get("piece"), state.get("step")
        numbers = [piece, step, *(draws.values() if isinstance(draws, Mapping) else [None])]
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or set(draws) != set(self._lengths):
            raise DataError(
                f"the saved stream has no valid place: step {step!r}, piece {piece!r}, draws {draws!r}"
            )
        self.close()
        self._cursor = Cursor(draws=dict(draws), piece=piece)
        self.step = step

    def close(self) -> None:
        """End the thread. A later `next` starts it again where the stream stands."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


def _steps(planner: Planner, maker: "_Maker", cursor: Cursor) -> Iterator[_Step]:
    maker.faults = Faults()
    while True:
        plan = planner.plan(cursor)
        yield maker.make(plan)
        cursor = plan.after


@dataclass(eq=False)
class _Maker:
    """Turns a plan into this rank's batches."""

    sources: Mapping[str, Source]
    tokenizer: Tokenizer
    image: ImageSpec
    image_tokens: int
    sequence_length: int
    micro_rows: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        self.faults = Faults()

    def make(self, plan: Plan) -> _Step:
        skipped = list(plan.skipped)
        mine = [[self._document(p, skipped) for p in row] for row in plan.rows[self.rank :: self.world_size]]
        batches = [
            collate(
                mine[b : b + self.micro_rows],
                tokenizer=self.tokenizer,
                image=self.image,
                image_tokens=self.image_tokens,
                sequence_length=self.sequence_length,
            )
            for b in range(0, len(mine), self.micro_rows)
        ]
        pictures = sum(len(p.tokens.images) for row in plan.rows for p in row)
        return _Step(batches, plan, pictures * self.image_tokens, tuple(skipped))

    def _document(self, piece: Piece, skipped: list[tuple[str, str]]) -> Document:
        """The piece with its pictures; muted, and noted in `skipped`, where one of them is bad."""
        pictures, muted = [], False
        for media in piece.tokens.images:
            try:
                pictures.extend(decode(self.sources[piece.source].picture(piece.index, media), self.image))
                self.faults.good()
            except DecodeError as e:
                skipped.append((piece.sample_id, f"picture: {e.reason}"))
                self.faults.bad(piece.sample_id, str(e))
                pictures.append(blank(self.image, (1, 1)))
                muted = True
        return Document(piece, tuple(pictures), muted)
