"""The vision tower: a SigLIP transformer that keeps aspect ratios, on one flat sequence of patches.

The tower is transformers' own module, so that weights load and export under its own names; only its attention
is ours, so that images of any sizes stand side by side without padding.
Shapes: N images, P patches of all images, p pixels of a patch's side, W the tower's width, H heads of d.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AttentionInterface, Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import DataError
from trainer.models.pretrained import pretrained_weights, read_config, read_pretrained
from trainer.models.runs import Run, attend_in_runs
from trainer.models.sharded import parameters_on_meta
from trainer.models.stored import Stored

_SIGLIP = ("siglip_vision_model", "siglip")
_SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
    *("image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout"),
)
_IN_SIGLIP = "vision_model."
_NOT_THE_TOWERS = ("head.", "text_model.", "logit_scale", "logit_bias")
"""Weights of a SigLIP that its patch features do not pass: pooling, its text tower, its loss."""


def load_vision(directory: str | Path, dtype: torch.dtype = torch.float32) -> Idefics2VisionTransformer:
    """The tower of a directory of transformers format, safetensors only, in training mode.

    Either Idefics2's, or a SigLIP, alone or with its text tower: its layers are the same, and its table of
    positions serves other sizes by fractions (`position_ids`). Raises DataError where the directory is no
    such tower or its weights do not fit: transformers alone would warn and go on with random ones.
    """
    directory = Path(directory)
    config, beside = vision_config(directory)
    tower = read_pretrained(
        Idefics2VisionTransformer,
        directory,
        beside,
        config=config,
        dtype=dtype,
        attn_implementation=ATTENTION,
        key_mapping={rf"^{re.escape(_IN_SIGLIP)}": ""},
    )
    return tower.train()


def vision_on_meta(directory: Path) -> Idefics2VisionTransformer:
    """As `load_vision`, with parameters on the meta device."""
    config, _ = vision_config(directory)
    config._attn_implementation = ATTENTION
    with parameters_on_meta():
        return Idefics2VisionTransformer(config).train()


def vision_weights(tower: Idefics2VisionTransformer, directory: Path) -> dict[str, Stored]:
    """What `load_vision` reads, unread, by the names of the tower. Raises DataError as it does."""
    return pretrained_weights(tower, directory, vision_config(directory)[1], prefix=_IN_SIGLIP)


def vision_config(directory: Path) -> tuple[Idefics2VisionConfig, tuple[str, ...]]:
    """The tower that config.json describes, and how the names of weights begin that are none of its own.

    Raises DataError as `load_vision` does.
    """
    page = read_config(directory)
    kind = page.get("model_type")
    if kind not in (Idefics2VisionConfig.model_type, *_SIGLIP):
        raise DataError(
            f"{directory / 'config.json'}: model_type is '{kind}', "
            f"allowed are {', '.join((Idefics2VisionConfig.model_type, *_SIGLIP))}"
        )
    if kind == "siglip":
        page = page["vision_config"]
    if kind in _SIGLIP:
        return Idefics2VisionConfig(**{k: page[k] for k in _SHAPE if k in page}), _NOT_THE_TOWERS
    return Idefics2VisionConfig.from_dict(page), ()


def save_vision(tower: Idefics2VisionTransformer, directory: str | Path) -> None:
    """Write config.json and model.safetensors, which `load_vision` reads back to equal weights."""
    tower.save_pretrained(directory, safe_serialization=True)


def patch_features(
    tower: Idefics2VisionTransformer,
    patches: torch.Tensor,
    patch_index: torch.Tensor,
    grids: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """Features of all patches, in their order; each image sees itself alone.

    patches uint8[P, 3, p, p], patch_index int64[P, 3], N grids (rows, columns) -> [P, W]: what the tower's
    own forward gives for these images padded to the largest. A fully frozen tower keeps no graph.
    """
    trained = any(p.requires_grad for p in tower.parameters())
    lengths = [rows * columns for rows, columns in grids]
    there, back = _by_length(lengths, patches.device)
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        # Modules are called, their weights never read: under ZeRO-3 a call is what gathers them.
        levels = (patches[there].float() / 127.5 - 1).to(tower.dtype)
        # Side by side as one picture: P convolutions of one patch each take three times as long on the CPU.
        side_by_side = levels.permute(1, 2, 0, 3).flatten(2)[None]  # [1, 3, p, P * p]
        embedded = tower.embeddings.patch_embedding(side_by_side)[0, :, 0].T
        side = tower.embeddings.num_patches_per_side
        placed = embedded + tower.embeddings.position_embedding(position_ids(patch_index[there], grids, side))
        encoded = tower.encoder(
            inputs_embeds=placed[None], attention_mask=tuple(sorted(lengths))
        ).last_hidden_state
        return tower.post_layernorm(encoded)[0][back]


def position_ids(patch_index: torch.Tensor, grids: Sequence[tuple[int, int]], side: int) -> torch.Tensor:
    """int64[P, 3] -> int64[P]: where each patch stands in the tower's table of `side` x `side` positions.

    Idefics2's fractions of an image's height and width, by its own operations in float32: other operations
    of the same value land in other buckets (of 25 rows on a table of 70, for one).
    """
    sizes = torch.tensor(grids, device=patch_index.device)[patch_index[:, 0]]
    boundaries = torch.arange(1 / side, 1.0, 1 / side, device=patch_index.device)
    fractions = (patch_index[:, 1:].float() * (1.0 / sizes)).clamp(max=1.0 - 1e-6)
    row, column = torch.bucketize(fractions, boundaries, right=True).unbind(1)
    return row * side + column


def _by_length(lengths: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """int64[P] twice: patches to the order in which images of equal length stand together, and back."""
    pieces = torch.arange(sum(lengths)).split(list(lengths))
    there = torch.cat([pieces[n] for n in sorted(range(len(lengths)), key=lengths.__getitem__)])
    return there.to(device), there.argsort().to(device)


def attend_within_images(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Query, key, value [1, H, P, d] and the number of patches of each image, ascending -> [1, P, H, d].

    No mask of P x P: images of equal length are one batch of scaled dot-product attention. transformers
    calls it; `lengths` stands where others have their mask, the one argument that its tower hands through.
    """
    runs = [Run(count, length) for length, count in Counter(lengths).items()]
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    return attend_in_runs(q, k, v, runs, scaling, dropout)[None], None


ATTENTION = "fovea_within_images"
"""The name of `attend_within_images` among transformers' attention functions."""

AttentionInterface.register(ATTENTION, attend_within_images)
