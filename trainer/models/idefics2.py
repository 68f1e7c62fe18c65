"""Idefics2 as transformers writes it: where our weights stand in its files; its configuration and our page.

Its table of embeddings and its output head cover the new tokens; ours keep those rows apart, so that a stage
can train them alone.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Idefics2Config, Idefics2PerceiverConfig, PretrainedConfig

from data_pipeline.errors import DataError
from data_pipeline.image_spec import ImageSpec, Perceiver
from trainer.models.autoregressive import NEW_TOKENS, AutoregressiveVLM
from trainer.models.config import Model

_MODULES = {
    "vision": "model.vision_model",
    "connector": "model.connector",
    "language.model": "model.text_model",
    "language.lm_head": "lm_head",
}
_CONNECTOR = {
    "projection": "modality_projection",
    "latents": "perceiver_resampler.latents",
    "layers": "perceiver_resampler.layers",
    "norm": "perceiver_resampler.norm",
    "latent_norm": "input_latents_norm",
    "context_norm": "input_context_norm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
_BEHIND = {
    "new_tokens.weight": "language.model.embed_tokens.weight",
    "new_tokens.head.weight": "language.lm_head.weight",
}
"""Rows of ours that stand in one table with others, behind them."""


@dataclass(frozen=True)
class Place:
    """Rows `start` to `stop` of the tensor `name` of an Idefics2."""

    name: str
    start: int
    stop: int


def places(shapes: Mapping[str, torch.Size]) -> dict[str, Place]:
    """Our names, with their shapes, -> where each weight stands. Raises DataError for one without a place."""
    found = {}
    for name, shape in shapes.items():
        before = _BEHIND.get(name)
        start = shapes[before][0] if before else 0
        found[name] = Place(_theirs(before or name), start, start + shape[0])
    return found


def joined(names: Iterable[str], found: Mapping[str, Place]) -> dict[str, list[str]]:
    """Their names -> those of ours whose rows, one after another, make up the tensor."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda n: found[n].start):
        parts.setdefault(found[name].name, []).append(name)
    return parts


def shapes_of(model: AutoregressiveVLM) -> dict[str, torch.Size]:
    """Our names and shapes; of tied weights the first name alone."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _theirs(name: str) -> str:
    module = next((m for m in _MODULES if name.startswith(m + ".")), None)
    if module is None:
        raise DataError(f"the weight '{name}' has no place in Idefics2's layout")
    rest = name.removeprefix(module + ".")
    if module == "connector":
        rest = ".".join(_CONNECTOR.get(part, part) for part in rest.split("."))
    return f"{_MODULES[module]}.{rest}"


def model_page(config: Idefics2Config, image: Mapping[str, Any]) -> Model:
    """The recipe's `model` for an Idefics2. `image`: `size` of its image processor, in pixels.

    Raises DataError where the model does more than ours reproduces.
    """
    text: Any = config.text_config
    vision: Any = config.vision_config
    perceiver: Any = config.perceiver_config
    wrong = [
        f"{where} is {got!r}, allowed is {allowed!r}"
        for where, got, allowed in (
            ("text_config.hidden_act", text.hidden_act, "silu"),
            ("perceiver_config.hidden_act", perceiver.hidden_act, "silu"),
            ("perceiver_config.attention_dropout", perceiver.attention_dropout, 0.0),
        )
        if got != allowed
    ]
    if wrong:
        raise DataError("this Idefics2 is none that can be reproduced:\n  " + "\n  ".join(wrong))
    return Model(
        image=ImageSpec(
            longest_edge=image["longest_edge"],
            shortest_edge=image["shortest_edge"],
            patch=vision.patch_size,
        ),
        connector=Perceiver(
            latents=perceiver.resampler_n_latents,
            depth=perceiver.resampler_depth,
            heads=perceiver.resampler_n_heads,
            kv_heads=perceiver.num_key_value_heads,
            head_dim=perceiver.resampler_head_dim,
            qk_norm=False,
            projection_width=text.intermediate_size,
            eps=perceiver.rms_norm_eps,
        ),
    )


def idefics2_config(model: AutoregressiveVLM, ids: Mapping[str, int]) -> Idefics2Config:
    """The configuration under which transformers runs `model`. `ids`: image, pad, bos, eos.

    Raises DataError naming all that Idefics2 cannot say.
    """
    connector, language = model.config.connector, model.language.config
    wrong = []
    if model.config.cross_attention:
        wrong.append("architecture: cross_attention; Idefics2 has the visual tokens in its sequence")
    if model.mask != "causal":
        wrong.append(f"mask: {model.mask}; Idefics2 knows causal alone")
    if model.config.moe is not None:
        wrong.append("model.moe: experts; Idefics2's language model is dense")
    if model.new_tokens.head is None:
        wrong.append("the tokenizer's layout; it must be idefics2")
    if language.hidden_act != "silu":
        wrong.append(f"the language model's hidden_act: {language.hidden_act}; it must be silu")
    if not isinstance(connector, Perceiver):
        wrong.append(f"connector: {connector.kind}; it must be a perceiver")
    else:
        if connector.qk_norm:
            wrong.append("connector.qk_norm: true; Idefics2's perceiver has none")
        if (connector.projection_width or 4 * language.hidden_size) != language.intermediate_size:
            wrong.append(
                f"connector.projection_width: Idefics2's is the language model's intermediate_size, "
                f"{language.intermediate_size}"
            )
    if wrong:
        raise DataError("this model has no place in Idefics2's layout:\n  " + "\n  ".join(wrong))
    assert isinstance(connector, Perceiver)
    text = copy.deepcopy(language)
    text.vocab_size = model.vocabulary + NEW_TOKENS
    text.pad_token_id, text.bos_token_id, text.eos_token_id = ids["pad"], ids["bos"], ids["eos"]
    return Idefics2Config(
        text_config=_plain(text),
        vision_config=_plain(model.vision.config),
        perceiver_config=Idefics2PerceiverConfig(
            hidden_size=language.hidden_size,
            rms_norm_eps=connector.eps,
            resampler_n_latents=connector.latents,
            resampler_depth=connector.depth,
            resampler_n_heads=connector.heads,
            resampler_head_dim=connector.head_dim,
            num_key_value_heads=connector.kv_heads,
        ).to_dict(),
        image_token_id=ids["image"],
        tie_word_embeddings=language.tie_word_embeddings,
    )


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    left_out = ("architectures", "dtype", "transformers_version")
    return {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in left_out}
