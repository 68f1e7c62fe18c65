"""A stage's model, without its weights, as the rest of the plan needs it."""

from dataclasses import dataclass, field

import torch
from torch import nn

from trainer.config import Recipe, Stage
from trainer.engine.ds_keys import Page
from trainer.models.adapters import is_adapter
from trainer.models.freeze import Counted, count_parameters
from trainer.planning.activations import Kept, kept, loss_bytes, tower_bytes
from trainer.planning.hardware import Assumed
from trainer.planning.memory import BYTES, Memory, Weights, memory
from trainer.planning.work import Pictures
from trainer.sizes import skeleton

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """`plain`: parameters without adapters. `passes`: see `traffic_of`."""

    recipe: Recipe
    stage: Stage
    modules: tuple[Counted, ...]
    plain: int
    weights: Weights
    passes: dict[int, int]
    _kept: dict[tuple[object, ...], Kept] = field(default_factory=dict, repr=False, compare=False)

    def kept(self, page: Page, pictures: Pictures) -> Kept:
        """What a forward pass keeps in the precision of `page`. Images that are read beside a row take little
        of it: as in the fullest one."""
        count = pictures.fullest if self.recipe.model.cross_attention else 0
        setting = self.stage.activation_checkpointing
        key = (page.precision, self.stage.sequence_length, pictures.patches, count)
        if (*key, str(setting)) not in self._kept:
            found = kept(self.recipe, self.stage, DTYPES[page.precision], pictures.patches, count, setting)
            self._kept[*key, str(setting)], self._kept[*key, "False"] = found
        return self._kept[*key, str(setting)]

    def memory(self, page: Page, ranks: int, pictures: Pictures, images: float, assumed: Assumed) -> Memory:
        """Of a GPU whose micro-batch has so many `images` a row."""
        kept, micro_batch = self.kept(page, pictures), self.stage.micro_batch
        element, seen = BYTES[page.precision], micro_batch * images
        positions = micro_batch * self.stage.sequence_length
        loss = loss_bytes(
            positions,
            max(1, round(positions - seen * self.recipe.model_of(self.stage).image_tokens)),
            self._language["hidden_size"],
            self._language["vocab_size"],
            element,
        )
        activations, most = kept.total(micro_batch, seen), kept.most(micro_batch, seen)
        if "vision" not in self.stage.train:
            # Before the language model begins; what it leaves is little.
            most = max(most, tower_bytes(self.recipe, seen * pictures.patches, element))
        layer = max(0, most - activations - loss)  # the loss is done with when a layer is at work
        return memory(self.weights, page, ranks, activations, layer, loss, assumed)

    @property
    def _language(self) -> dict[str, int]:
        return self.recipe.expected.language


def shape_of(recipe: Recipe, stage: Stage) -> Shape:
    model = skeleton(recipe, stage)
    parameters = list(model.parameters())
    own = (sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules())
    return Shape(
        recipe=recipe,
        stage=stage,
        modules=count_parameters(model, stage.train),
        plain=sum(p.numel() for name, p in model.named_parameters() if not is_adapter(name)),
        weights=Weights(
            trained=tuple(p.numel() for p in parameters if p.requires_grad),
            frozen=tuple(p.numel() for p in parameters if not p.requires_grad),
            largest=max(own),
        ),
        passes=_passes(model, stage),
    )


def _passes(model: nn.Module, stage: Stage) -> dict[int, int]:
    """1 -> elements of what no graph leads through, 2 -> of all else."""
    once = (
        ()
        if "vision" in stage.train
        else ("vision",)
        if "connector" in stage.train
        else ("vision", "connector")
    )
    total = sum(p.numel() for p in model.parameters())
    ahead = sum(p.numel() for name in once for p in getattr(model, name).parameters())
    return {1: ahead, 2: total - ahead}
