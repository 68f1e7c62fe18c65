"""The language model: any causal LM of transformers whose layers share one kind of attention.

It gets embeddings, positions and a mask from us, so that its own vocabulary and masks stay out of the way.
"""

from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from data_pipeline.errors import DataError
from trainer.models.pretrained import read_config, read_pretrained
from trainer.models.sharded import parameters_on_meta

_RESCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Config keys of models that change the logits after lm_head. The loss calls lm_head itself, so they are
refused rather than trained on other logits than their own forward gives."""


class Body(Protocol):
    """What the causal LMs of transformers have below their head."""

    layers: nn.ModuleList
    norm: nn.Module
    rotary_emb: nn.Module


def body_of(language: PreTrainedModel) -> Body:
    return cast(Body, language.base_model)


def load_language(directory: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal LM of a local directory in transformers' format, safetensors only, in training mode.

    Raises DataError where its weights do not fit, or the architecture does more than this stack reproduces.
    """
    directory = Path(directory)
    config = language_config(directory)
    language = read_pretrained(
        AutoModelForCausalLM,
        directory,
        config=config,
        dtype=dtype,
        attn_implementation="sdpa",
        trust_remote_code=False,
    )
    return language.train()


def language_on_meta(directory: Path) -> PreTrainedModel:
    """As `load_language`, with parameters on the meta device, unless transformers translates its files.

    Their values are `pretrained_weights` of the same directory.
    """
    config = language_config(directory)
    if get_checkpoint_conversion_mapping(config.model_type):
        return load_language(directory)  # its files hold other tensors than the model does
    with parameters_on_meta():
        language = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )
    return language.train()


def language_config(directory: Path) -> PretrainedConfig:
    """What config.json describes. Raises DataError as `load_language` does."""
    read_config(directory)
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    check_architecture(directory, config)
    return config


def window(language: PreTrainedModel) -> int | None:
    """How far back a token attends in this LM; None where it sees its whole document."""
    return getattr(language.config, "sliding_window", None)


def check_architecture(directory: Path, config: object) -> None:
    """Raise DataError where an LM of this configuration does more than this stack reproduces."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) > 1:
        raise DataError(f"{directory}: layers of several kinds ({', '.join(sorted(kinds))}); one is allowed")
    for key in _RESCALED_LOGITS:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise DataError(
                f"{directory}: config.json sets {key} = {getattr(config, key)}; only an LM whose logits are "
                "lm_head's own output is supported"
            )
