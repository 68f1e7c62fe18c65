"""Toy backbones: a tower for pictures of at most 4 x 4 patches of 8 pixels, and a Mistral of width 32."""

from typing import Any

from transformers import Idefics2VisionConfig, MistralConfig, MistralForCausalLM
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer


def toy_tower(**changes: Any) -> Idefics2VisionTransformer:
    """One layer of width 16; `changes` are keys of its config."""
    page = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return Idefics2VisionTransformer(Idefics2VisionConfig(**(page | changes)))


def toy_mistral(vocabulary: int = 40, **changes: Any) -> MistralForCausalLM:
    """Two layers of width 32; `changes` are keys of its config."""
    return MistralForCausalLM(MistralConfig(**(MISTRAL | {"vocab_size": vocabulary} | changes)))


MISTRAL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
