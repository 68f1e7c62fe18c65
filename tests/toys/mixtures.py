"""Small language models, and mixtures of experts made of them."""

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WIDTH, INNER, EXPERTS = 16, 24, 4

SIZES = {"vocab_size": 40, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 4}

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}


def llama(**more) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, **more))


def mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, **HEADS))


def qwen() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS))


class Dense(nn.Module):
    """A gated FFN, as transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)
        self.act_fn = nn.SiLU()
