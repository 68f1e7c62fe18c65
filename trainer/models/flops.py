"""Floating-point operations of a model, by component, from its configurations alone: two for a multiply-add.

Only matrix products count. Training counts the products of forward and backward pass that a stage needs,
and nothing twice: neither layers, logits and attention scores that are computed again to save memory, nor
padding. DoRA counts as LoRA: the lengths of its weights' rows are the same work for any number of tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from data_pipeline.image_spec import MLP, Connector, ImageSpec, Perceiver, PixelShuffle
from trainer.models.config import Model
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.tuning import Tuning


@dataclass(frozen=True)
class Flops:
    """Operations of each component; the head is the language model's, over the positions that are targets."""

    vision: int = 0
    connector: int = 0
    cross_attention: int = 0
    language: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Load:
    """What passes through a model.

    `pairs`: (query, key) pairs that the mask lets see each other; see `causal_pairs`. `read`: pairs of a
    position and a visual token that it reads by cross-attention.
    """

    patches: tuple[int, ...]
    """Of each image that the tower sees."""
    tokens: int
    pairs: int
    targets: int
    read: int = 0


def causal_pairs(lengths: Iterable[int], window: int | None = None) -> int:
    """Pairs of a causal mask over documents of these lengths, each position with itself.

    What SDPA is given is a mask of T x T for a row of T positions, and a counter of its operations counts T^2
    pairs: for one document of T, nearly twice as many as are needed; for k of T / k, 2k times.
    """
    pairs = 0
    for n in lengths:
        seen = min(n, window or n)
        pairs += seen * (seen + 1) // 2 + (n - seen) * seen
    return pairs


def full_pairs(lengths: Iterable[int]) -> int:
    """Pairs beyond the causal ones where spans of these lengths see themselves whole (image_full)."""
    return sum(n * (n - 1) // 2 for n in lengths)


@dataclass(frozen=True)
class _Product:
    """`rows` vectors through a linear layer. `reached`: a gradient of its inputs is needed in training."""

    name: str
    inputs: int
    outputs: int
    rows: int
    reached: bool = True


@dataclass(frozen=True)
class _Attention:
    """Scores and their weighted sum, over `pairs`, in heads of `width` altogether.

    `query`, `source`: whether queries, and keys and values, have a gradient.
    """

    width: int
    pairs: int
    query: bool = True
    source: bool = True


_Part = Sequence[_Product | _Attention]


def forward(model: Model, vision: Mapping[str, Any], language: Mapping[str, Any], load: Load) -> Flops:
    """Of one forward pass. `vision`, `language`: config.json of the backbones, every key of their shape."""
    return _summed(_parts(model, vision, language, load, {}), {})


def training(
    model: Model,
    vision: Mapping[str, Any],
    language: Mapping[str, Any],
    load: Load,
    train: Mapping[str, Tuning],
) -> Flops:
    """Of forward and backward pass of a stage that trains `train`."""
    return _summed(_parts(model, vision, language, load, train), train)


def _parts(
    model: Model,
    vision: Mapping[str, Any],
    language: Mapping[str, Any],
    load: Load,
    train: Mapping[str, Tuning],
) -> dict[str, _Part]:
    width = language["hidden_size"]
    # Whether what the language model's first layer reads has a gradient.
    entered = _text_is_trained(train) or not {"vision", "connector", "cross_attention"}.isdisjoint(train)
    parts: dict[str, _Part] = {
        "vision": _tower(vision, load, _in_full(train, "vision")),
        "connector": _connector(
            model.connector,
            model.image,
            vision["hidden_size"],
            width,
            load,
            train,
        ),
        "language": _language(language, model.moe, load, entered),
        "head": [_Product("lm_head", width, language["vocab_size"], load.targets)],
    }
    if model.cross_attention is not None:
        visual = len(load.patches) * model.image.tokens(model.connector)
        parts["cross_attention"] = _blocks(language, model.cross_attention.every, visual, load, train)
    return parts


def _summed(parts: Mapping[str, _Part], train: Mapping[str, Tuning]) -> Flops:

    # Where nothing in front of a module is trained, and nothing in it, it keeps no graph.
    graph = {
        "vision": "vision" in train,
        "connector": not {"vision", "connector"}.isdisjoint(train),
    }
    done: dict[str, int] = {}
    for name, part in parts.items():
        if not graph.get(name, bool(train)):
            done[name] = sum(_forward(p, None) for p in part)
            continue
        tuning = train.get("language" if name == "head" else name)
        if name == "head" and tuning is not None and not _adapts_head(tuning):
            tuning = None
        done[name] = sum(_forward(p, tuning) + _backward(p, tuning) for p in part)
    return Flops(**done)


def _forward(part: _Product | _Attention, tuning: Tuning | None) -> int:
    if isinstance(part, _Attention):
        return 4 * part.width * part.pairs
    rank = _rank(part, tuning)
    return 2 * part.rows * (part.inputs * part.outputs + rank * (part.inputs + part.outputs))


def _backward(part: _Product | _Attention, tuning: Tuning | None) -> int:
    if isinstance(part, _Attention):
        # Of the scores; of keys and of values; of queries.
        products = (part.query or part.source) + 2 * part.source + part.query
        return 2 * part.width * part.pairs * products
    rank, size = _rank(part, tuning), part.inputs * part.outputs
    full = tuning is not None and tuning.adapter is None
    products = size * (part.reached + full)
    # Of A: its weights', and its inputs' where they are needed. Of B: both.
    products += rank * (part.inputs * (1 + part.reached) + 2 * part.outputs)
    return 2 * part.rows * products


def _rank(part: _Product, tuning: Tuning | None) -> int:
    adapter = tuning.adapter if tuning else None
    if adapter is None or part.name in ("experts", "router"):
        return 0
    targeted = part.name in adapter.targets if adapter.targets else part.name not in ("lm_head", "patches")
    return adapter.rank if targeted else 0


def _adapts_head(tuning: Tuning) -> bool:
    return tuning.adapter is None or "lm_head" in tuning.adapter.targets


def _in_full(train: Mapping[str, Tuning], module: str) -> bool:
    return module in train and train[module].adapter is None


def _text_is_trained(train: Mapping[str, Tuning]) -> bool:
    """Whether embeddings of text are: the language model's own with it, if in full."""
    return "new_tokens" in train or _in_full(train, "language")


def _tower(config: Mapping[str, Any], load: Load, full: bool) -> _Part:
    width, inner = config["hidden_size"], config["intermediate_size"]
    rows, pairs = sum(load.patches), sum(n * n for n in load.patches)
    parts: list[_Product | _Attention] = [
        _Product("patches", 3 * config["patch_size"] ** 2, width, rows, reached=False)
    ]
    for layer in range(config["num_hidden_layers"]):
        reached = full or layer > 0  # below the first adapter nothing is trained
        parts += [_Product(n, width, width, rows, reached) for n in ("q_proj", "k_proj", "v_proj")]
        parts += [_Attention(width, pairs), _Product("out_proj", width, width, rows)]
        parts += [_Product("fc1", width, inner, rows), _Product("fc2", inner, width, rows)]
    return parts


def _connector(
    config: Connector, image: ImageSpec, vision: int, width: int, load: Load, train: Mapping[str, Tuning]
) -> _Part:
    images, tokens = len(load.patches), image.tokens(config)
    match config:
        case PixelShuffle() | MLP():
            factor = config.factor if isinstance(config, PixelShuffle) else 1
            rows = images * tokens
            return [
                _Product("up", vision * factor**2, width, rows, "vision" in train),
                _Product("down", width, width, rows),
            ]
        case Perceiver():
            return _perceiver(config, vision, width, load, train)


def _perceiver(config: Perceiver, vision: int, width: int, load: Load, train: Mapping[str, Tuning]) -> _Part:
    images, patches = len(load.patches), sum(load.patches)
    rows = images * config.latents
    source = patches + rows  # the latents read themselves too
    heads, few = config.heads * config.head_dim, config.kv_heads * config.head_dim
    parts: list[_Product | _Attention] = _gated(
        vision, config.projection_width or 4 * width, width, patches, "vision" in train
    )
    for layer in range(config.depth):
        reached = layer > 0 or _in_full(train, "connector")  # the first reads the latents
        parts += [_Product("query", width, heads, rows, reached)]
        parts += [_Product(n, width, few, source) for n in ("key", "value")]
        queried = layer > 0 or "connector" in train
        parts += [_Attention(heads, config.latents * source, queried), _Product("out", heads, width, rows)]
        parts += _gated(width, 4 * width, width, rows, reached=True)
    return parts


def _gated(inputs: int, inner: int, outputs: int, rows: int, reached: bool) -> list[_Product | _Attention]:
    first = [_Product(n, inputs, inner, rows, reached) for n in ("gate", "up")]
    return [*first, _Product("down", inner, outputs, rows)]


def _language(config: Mapping[str, Any], moe: MixtureOfExperts | None, load: Load, entered: bool) -> _Part:
    """`entered`: what the first layer reads has a gradient. Of experts, those count that a token goes to."""
    width, inner, rows = config["hidden_size"], config["intermediate_size"], load.tokens
    heads, few = _heads(config)
    parts: list[_Product | _Attention] = []
    for layer in range(config["num_hidden_layers"]):
        reached = entered or layer > 0
        parts += [_Product("q_proj", width, heads, rows, reached)]
        parts += [_Product(n, width, few, rows, reached) for n in ("k_proj", "v_proj")]
        parts += [_Attention(heads, load.pairs), _Product("o_proj", heads, width, rows)]
        if moe is not None and (layer + 1) % moe.every == 0:
            visits = rows * moe.top_k
            parts += [_Product("router", width, moe.experts, rows)]
            parts += [
                _Product("experts", *sides, visits) for sides in [(width, inner)] * 2 + [(inner, width)]
            ]
        else:
            parts += [_Product(n, width, inner, rows) for n in ("gate_proj", "up_proj")]
            parts += [_Product("down_proj", inner, width, rows)]
    return parts


def _blocks(
    config: Mapping[str, Any], every: int, visual: int, load: Load, train: Mapping[str, Tuning]
) -> _Part:
    """Gated cross-attention before every n-th layer, over `visual` tokens."""
    text, read = _text_is_trained(train), not {"vision", "connector"}.isdisjoint(train)
    tuned, full = "cross_attention" in train, _in_full(train, "cross_attention")
    width, inner, rows = config["hidden_size"], config["intermediate_size"], load.tokens
    heads, few = _heads(config)
    parts: list[_Product | _Attention] = []
    for block in range(-(-config["num_hidden_layers"] // every)):
        reached = block > 0 or text or full
        parts += [_Product("query", width, heads, rows, reached)]
        parts += [_Product(n, width, few, visual, read) for n in ("key", "value")]
        parts += [_Attention(heads, load.read, query=reached or tuned, source=read or tuned)]
        parts += [_Product("out", heads, width, rows)]
        parts += _gated(width, inner, width, rows, reached=True)
    return parts


def _heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """Width of all query heads, and of all key heads."""
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return heads * width, (config.get("num_key_value_heads") or heads) * width
