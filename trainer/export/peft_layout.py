"""Adapters apart from their model, in PEFT's layout: adapter_config.json, adapter_model.safetensors."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import Idefics2ForConditionalGeneration

from data_pipeline.batch import Batch
from data_pipeline.errors import ConfigError, DataError
from trainer.export.consolidate import refuse_empty
from trainer.export.directory import replacing
from trainer.export.idefics2 import TOLERANCE, pixels_of
from trainer.models.adapters import PARTS
from trainer.models.idefics2 import places
from trainer.models.tuning import Tuning


def write_adapters(
    tensors: Mapping[str, torch.Tensor],
    train: Mapping[str, Tuning],
    base: Path,
    out: Path,
    rename: Callable[[str], str] = str,
) -> None:
    """Write the directory `out`, which peft loads onto the model in `base`.

    `tensors`: the adapters' under our names; `rename`: our name of a linear layer -> its name in that model.
    Raises ConfigError where there is no adapter, or where one of peft cannot say what was trained.
    """
    adapted = {module: tuning.adapter for module, tuning in train.items() if tuning.adapter}
    kinds = sorted({train[module].kind for module in adapted})
    if len(kinds) != 1:
        raise ConfigError(
            f"the adapters cannot be written apart: there are {' and '.join(kinds) or 'none'}; peft takes "
            "one kind.\n  Without --adapters they are merged into the exported weights."
        )
    refuse_empty(dict(tensors), "export")
    layers = {_layer(name): adapted[name.partition(".")[0]] for name in tensors}
    first = next(iter(layers.values()))
    theirs = {rename(layer): adapter for layer, adapter in layers.items()}
    config = LoraConfig(
        base_model_name_or_path=str(base),
        r=first.rank,
        lora_alpha=first.alpha,  # type: ignore[arg-type]  # peft says int, and divides it
        lora_dropout=first.dropout,
        use_dora=kinds == ["dora"],
        target_modules=sorted(theirs),
        rank_pattern={re.escape(n): a.rank for n, a in theirs.items() if a.rank != first.rank},
        alpha_pattern={re.escape(n): a.alpha for n, a in theirs.items() if a.alpha != first.alpha},
        inference_mode=True,
    )
    named = {
        f"base_model.model.{rename(_layer(name))}{written}": tensor.contiguous()
        for name, tensor in tensors.items()
        for part, written in PARTS.items()
        if name.endswith(part)
    }
    with replacing(out, "adapter_config.json", "exported adapter") as temporary:
        config.save_pretrained(str(temporary))
        save_file(named, temporary / "adapter_model.safetensors", metadata={"format": "pt"})


def idefics2_layer(layer: str) -> str:
    """Our name of a linear layer -> its name in transformers' Idefics2."""
    if layer == "language.lm_head":
        raise ConfigError(
            "the adapter of lm_head cannot be written apart: in Idefics2's layout that table holds the new "
            "tokens too.\n  Without --adapters it is merged into the exported weights."
        )
    weight = f"{layer}.weight"
    return places({weight: torch.Size([1])})[weight].name.removesuffix(".weight")


@torch.no_grad()
def compare_adapters(logits: torch.Tensor, base: Path, adapters: Path, probe: Batch) -> float:
    """Open both with transformers and peft; the largest difference from the `logits` of our model on `probe`.

    Raises DataError where they are further apart than rounding.
    """
    theirs = Idefics2ForConditionalGeneration.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, use_safetensors=True, attn_implementation="sdpa"
    )
    adapted = PeftModel.from_pretrained(theirs, adapters).eval()
    seen = adapted(input_ids=probe.input_ids, pixel_values=pixels_of(probe), use_cache=False).logits
    difference = float((logits - seen).abs().max())
    if not difference <= TOLERANCE * float(logits.abs().max()):
        raise DataError(
            f"{adapters}: on {base}, peft's logits differ by {difference:g} from the checkpoint's."
        )
    return difference


def _layer(name: str) -> str:
    """The linear layer of an adapter's tensor."""
    return next(name.removesuffix(part) for part in PARTS if name.endswith(part))
