"""From a sample to the pieces that stand in rows: one road, for measuring sizes and for making batches."""

import hashlib
import json
from dataclasses import dataclass, replace

from data_pipeline.image_spec import ImageSpec
from data_pipeline.sample import Sample
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.chat import Rendered, Unusable, Variant, caption_count, render
from data_pipeline.stream.fit import Fitted, Policy, fit
from data_pipeline.stream.tokens import Tokenizer

VERSION = 1
"""Raised when a sample gives other pieces than before under the same settings: sizes on disk are void."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Everything that decides how many tokens, tiles and patches a sample takes.

    `image_tokens`: visual tokens of a tile. `splitting`: the share of draws whose pictures are cut into four
    quarters beside the whole. `shuffle_turns`: a dialogue's questions come in another order in each epoch.
    """

    tokenizer: Tokenizer
    image: ImageSpec
    image_tokens: int
    loss_on: str
    budget: Budget
    overlong: Policy = "split"
    splitting: float = 0.0
    shuffle_turns: bool = False

    @property
    def modes(self) -> tuple[bool, ...]:
        """Are pictures split, in each of the modes that a sample is drawn in."""
        return (False,) if self.splitting <= 0 else (True,) if self.splitting >= 1 else (False, True)

    @property
    def key(self) -> str:
        """Names what sizes depend on: those measured under other settings do not fit."""
        facts = {
            "version": VERSION,
            "tokenizer": self.tokenizer.fingerprint,
            "image": self.image.model_dump(mode="json"),
            "image_tokens": self.image_tokens,
            "loss_on": self.loss_on,
            "budget": vars(self.budget),
            "overlong": self.overlong,
            "modes": self.modes,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def captions(self, sample: Sample) -> int:
        """How many captions there are to choose from. Raises Unusable."""
        return caption_count(sample)

    def pieces(self, sample: Sample, variant: int, turns: int | None = None) -> Fitted:
        """The pieces of variant number caption x modes + mode. Raises Unusable."""
        caption, mode = divmod(variant, len(self.modes))
        written = Variant(caption=caption, split=self.modes[mode])
        if turns is not None and self.shuffle_turns:
            fitted = self._fit(sample, replace(written, turns=turns))
            if fitted.note is None:
                return fitted
        # What does not fit whole keeps its order: in another one, other turns would be left out.
        return self._fit(sample, written)

    def _fit(self, sample: Sample, variant: Variant) -> Fitted:
        whole = render(sample, self.tokenizer, self.image_tokens, self.loss_on, variant)
        patches = [rows * columns for rows, columns in self.grids(sample, whole)]
        return fit(whole, self.budget, patches, self.tokenizer.bos_id, self.overlong)

    def size(self, sample: Sample, piece: Rendered) -> tuple[int, int, int]:
        """(tokens, tiles, patches) of one piece."""
        grids = self.grids(sample, piece)
        return len(piece), len(grids), sum(rows * columns for rows, columns in grids)

    def grids(self, sample: Sample, document: Rendered) -> list[tuple[int, int]]:
        """Rows and columns of patches of each tile of `document`, by the recorded sizes of its pictures.

        A picture that EXIF turns is recorded lying: its rows and columns are swapped, their product is not.
        Raises Unusable where patches have a budget and a picture has no recorded size.
        """
        split = document.tiles > 1
        media = [sample.media[m] for m in document.images]
        if self.budget.patches is not None and not all(m.width and m.height for m in media):
            raise Unusable("picture without a recorded size")
        return [grid for m in media for grid in self.image.tiles(m.width or 1, m.height or 1, split)]
