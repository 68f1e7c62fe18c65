"""What a forward pass keeps for the backward pass: the recipe's own modules run on the meta device, and what
their graph holds is counted.

Nothing is computed and no memory taken. The graph has as many layers as it takes to see what one more of them
keeps; the rest follows, for all are alike.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.config import Recipe, Stage
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.config import Recomputed
from trainer.models.cross_attention import Media
from trainer.models.loss import CHUNK
from trainer.models.vision import patch_features
from trainer.sizes import skeleton

_GRADIENTS = 0.2
"""Of what a layer keeps, what its gradients take beside it: the backward pass frees as it goes. Measured by
tests/trainer/planning/test_activations.py."""


@dataclass(frozen=True)
class Kept:
    """Bytes. `row`: of one row in the language model; `image`: of one image in tower and connector.
    `row_layer`, `image_layer`: beside it, of the layer that the backward pass is at."""

    row: int
    image: int
    row_layer: int
    image_layer: int

    def total(self, rows: int, images: float) -> int:
        """What stays until the backward pass comes."""
        return round(rows * self.row + images * self.image)

    def most(self, rows: int, images: float) -> int:
        """In the backward pass, which is done with the rows when it comes to the images."""
        in_language = self.total(rows, images) + rows * self.row_layer
        return round(max(in_language, images * (self.image + self.image_layer)))


def kept(
    recipe: Recipe,
    stage: Stage,
    dtype: torch.dtype,
    patches: int,
    images: int,
    setting: bool | Mapping[Recomputed, int],
) -> tuple[Kept, Kept]:
    """Of a stage that computes in `dtype`, each image of so many `patches`: with `setting` as its
    activation_checkpointing, and with nothing recomputed. `images` of a row count where they are read
    beside it.
    """
    parts: tuple[Recomputed, ...] = ("vision", "language")
    layers = {p: getattr(recipe.expected, p)["num_hidden_layers"] for p in parts}
    few, more = ({p: min(layers[p], times * _period(recipe, setting, p)) for p in parts} for times in (1, 2))
    short, long = (_run(recipe, stage, dtype, patches, images, setting, n) for n in (few, more))

    def of_all(part: Recomputed, of_few: int, of_more: int) -> int:
        if more[part] == few[part]:
            return of_more
        return of_more + (of_more - of_few) * (layers[part] - more[part]) // (more[part] - few[part])

    as_set, plain = (
        replace(b, row=of_all("language", a.row, b.row), image=of_all("vision", a.image, b.image))
        for a, b in zip(short, long, strict=True)
    )
    # The backward pass begins with the last layer: one that is not recomputed leaves its room to the others.
    return replace(
        as_set,
        row_layer=as_set.row_layer if _recomputes_last(setting, "language", layers) else plain.row_layer,
        image_layer=as_set.image_layer if _recomputes_last(setting, "vision", layers) else plain.image_layer,
    ), plain


def loss_bytes(positions: int, targets: int, width: int, vocabulary: int, element: int) -> int:
    """Of the loss, at most: the hidden states of all targets, and of one chunk of them the logits, their
    logarithms and gradients in float32 (trainer/models/loss.py)."""
    chunks = -(-positions // CHUNK)
    size = max(1, -(-targets // chunks))
    return chunks * size * width * element + size * vocabulary * (3 * 4 + 2 * element)


def tower_bytes(recipe: Recipe, patches: float, element: int) -> int:
    """Of a tower without a graph, at work on so many patches in all: its widest layer's inputs and
    outputs."""
    vision = recipe.expected.vision
    return round(patches * element * (2 * vision["intermediate_size"] + 6 * vision["hidden_size"]))


def graph_bytes(run: Callable[[], Any], model: nn.Module) -> tuple[int, int]:
    """What the graph of `run` keeps beside the parameters of `model`, and the most that one layer does."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    graph: list[weakref.ref[_Packed]] = []

    def pack(tensor: torch.Tensor) -> _Packed:
        packed = _Packed(tensor)
        graph.append(weakref.ref(packed))
        return packed

    def held(first: int = 0) -> int:
        """Of what was packed from number `first` on, what the graph still holds."""
        alive = [p.tensor.untyped_storage() for p in (r() for r in graph[first:]) if p is not None]
        return sum({s._cdata: s.nbytes() for s in alive if s._cdata not in weights}.values())

    largest, begun = [0], [0]

    def enter(*_: Any) -> None:
        begun.append(len(graph))

    def leave(*_: Any) -> None:
        largest.append(held(begun.pop()))

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    hooks = [h for m in layers for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        result = run()
    for hook in hooks:
        hook.remove()
    total = held()
    del result
    return total, max(largest)


@dataclass(eq=False)
class _Packed:
    tensor: torch.Tensor


class _Attended(torch.autograd.Function):
    """What fused attention keeps (arXiv 2205.14135): its inputs, its output, a number for each query. The
    output lies head by head: what reads it takes a copy, as behind FlexAttention."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(query.shape)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


class _Grouped(torch.autograd.Function):
    """What the product of sorted tokens and their experts keeps: both."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tokens, experts)
        return tokens.new_empty(tokens.shape[0], experts.shape[-1])


class _Fused(TorchFunctionMode):
    """On the meta device torch would take its plain attention, which keeps all scores, and its grouped
    product takes bfloat16 alone."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return _Attended.apply(*args[:3])
        if function in (F.grouped_mm, torch._grouped_mm):
            return _Grouped.apply(*args[:2])
        return function(*args, **(kwargs or {}))


def _period(recipe: Recipe, setting: bool | Mapping[Recomputed, int], part: Recomputed) -> int:
    """Layers after which what a layer is and keeps repeats itself."""
    model, every = recipe.model, setting if isinstance(setting, Mapping) else {}
    own = every.get(part, 1)
    if part == "vision":
        return own
    blocks = model.cross_attention.every * every.get("cross_attention", 1) if model.cross_attention else 1
    return math.lcm(own, blocks, model.moe.every if model.moe else 1)


def _recomputes_last(
    setting: bool | Mapping[Recomputed, int], part: Recomputed, layers: Mapping[Recomputed, int]
) -> bool:
    if not isinstance(setting, Mapping):
        return setting
    return part in setting and (layers[part] - 1) % setting[part] == 0


def _run(
    recipe: Recipe,
    stage: Stage,
    dtype: torch.dtype,
    patches: int,
    images: int,
    setting: bool | Mapping[Recomputed, int],
    layers: Mapping[Recomputed, int],
) -> tuple[Kept, Kept]:
    """Of a model of so many `layers`."""
    with torch.device("meta"), _Fused():
        model = skeleton(_shortened(recipe, layers), stage).to(dtype).train()
        model.language.set_attn_implementation("sdpa")
        runs = partial(_row, model, stage, images), partial(_image, model, patches)
        (row, row_layer), (image, image_layer) = (graph_bytes(run, model) for run in runs)
        gradients = round(_GRADIENTS * row_layer), round(_GRADIENTS * image_layer)
        plain = Kept(row, image, *gradients)
        if setting is False:
            return plain, plain
        model.enable_activation_checkpointing(setting)
        less_row, less_image = (graph_bytes(run, model)[0] for run in runs)
    # A layer that is recomputed keeps all of its own again while the backward pass is at it.
    as_set = Kept(less_row, less_image, row_layer + gradients[0], image_layer + gradients[1])
    return as_set, plain


def _row(model: AutoregressiveVLM, stage: Stage, images: int) -> torch.Tensor:
    """A row through the language model."""
    ids = torch.zeros(1, stage.sequence_length, dtype=torch.int64)
    text = model.embed_text(ids)
    seen = not {"vision", "connector"}.isdisjoint(stage.train)
    media = None
    if model.config.cross_attention is not None:
        visual = images * model.config.image.tokens(model.config.connector)
        read = torch.empty(1, visual, text.shape[-1], dtype=text.dtype, requires_grad=seen)
        sees = torch.ones(1, 1, ids.shape[1], visual, dtype=torch.bool)
        media = Media(read, sees, sees[:, 0, :, :1])
    elif seen and not text.requires_grad:
        text.requires_grad_()
    mask = torch.ones(1, 1, *2 * ids.shape[1:], dtype=torch.bool)
    return model.decode(text, mask, ids, media=media)


def _image(model: AutoregressiveVLM, patches: int) -> torch.Tensor:
    """An image of so many patches, in one line, through tower and connector."""
    side = model.config.image.largest_grid
    grids = [(-(-patches // side), side)] if patches > side else [(1, patches)]
    count, p = grids[0][0] * grids[0][1], model.config.image.patch
    index = torch.empty(count, 3, dtype=torch.int64)
    seen = patch_features(model.vision, torch.empty(count, 3, p, p, dtype=torch.uint8), index, grids)
    return model.connector(seen, index, grids)


def _shortened(recipe: Recipe, layers: Mapping[Recomputed, int]) -> Recipe:
    expects = recipe.expected
    parts: dict[str, Any] = {p: getattr(expects, p) | {"num_hidden_layers": n} for p, n in layers.items()}
    backbones = recipe.backbones.model_copy(update={"expects": expects.model_copy(update=parts)})
    return recipe.model_copy(update={"backbones": backbones})
