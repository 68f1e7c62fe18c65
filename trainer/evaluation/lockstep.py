"""Ranks that answer with one model whose weights they share: all run the same modules, equally often.

A rank that skipped a forward pass would leave the others waiting for its part of the weights. So all take as
many batches as the one with most, and each decodes until no rank has an answer to finish.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from trainer.distributed import World, all_sum, alone, gathered

T = TypeVar("T")


@dataclass(frozen=True)
class Lockstep:
    """The ranks that share a model; one that has its own is alone. `agree` is called by all of them before
    each batch: what it raises, it raises on all."""

    world: World = field(default_factory=alone)
    agree: Callable[[], object] = lambda: None

    @property
    def shared(self) -> bool:
        return self.world.size > 1

    def any(self, going: bool) -> bool:
        """Whether any rank still has something to do (all ranks)."""
        return all_sum(self.world, float(going))[0] > 0 if self.shared else going

    def rounds(self, batches: Sequence[T], nothing: T) -> Iterator[T]:
        """This rank's batches, and then `nothing` as long as others have some (all ranks)."""
        most = max(gathered(self.world, len(batches)))
        for n in range(most):
            self.agree()
            yield batches[n] if n < len(batches) else nothing
