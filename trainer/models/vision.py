"""The vision tower: a SigLIP transformer that keeps aspect ratios (a patch mask, fractional positions).

The tower is transformers' own module, used as it is, so that weights load and export under its own names.
Shapes: N images, S pixels a side, G patches a side, W the tower's width.
"""

from pathlib import Path

import torch
from transformers import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import DataError


def load_vision(directory: str | Path, dtype: torch.dtype = torch.float32) -> Idefics2VisionTransformer:
    """The tower of a directory that holds config.json and model.safetensors, in training mode.

    Raises DataError where the directory is no such tower or lacks weights: transformers alone would warn
    and go on with random ones.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise DataError(f"{directory}: no config.json; expected a directory written by save_vision")
    config = Idefics2VisionConfig.get_config_dict(directory, local_files_only=True)[0]
    if config.get("model_type") != Idefics2VisionConfig.model_type:
        raise DataError(
            f"{directory / 'config.json'}: model_type is '{config.get('model_type')}', "
            f"allowed is '{Idefics2VisionConfig.model_type}'"
        )
    tower, info = Idefics2VisionTransformer.from_pretrained(
        directory,
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    for fault in ("missing_keys", "unexpected_keys"):
        if info[fault]:
            names = sorted(info[fault])
            raise DataError(
                f"{directory}: {len(names)} {fault.replace('_', ' ')} in the weights: {names[:3]} ..."
            )
    return tower.train()


def save_vision(tower: Idefics2VisionTransformer, directory: str | Path) -> None:
    """Write config.json and model.safetensors, which `load_vision` reads back to equal weights."""
    tower.save_pretrained(directory, safe_serialization=True)


def patch_features(
    tower: Idefics2VisionTransformer, pixels: torch.Tensor, patch_mask: torch.Tensor
) -> torch.Tensor:
    """Features of all patches, row by row; exact zeros where padded.

    pixels float[N, 3, S, S], patch_mask bool[N, G, G] -> [N, G * G, W]. A fully frozen tower keeps no graph.
    """
    trained = any(p.requires_grad for p in tower.parameters())
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        weight = tower.embeddings.patch_embedding.weight
        features = tower(pixels.to(weight.dtype), patch_attention_mask=patch_mask).last_hidden_state
        return features.masked_fill(~patch_mask.flatten(1)[..., None], 0)
