"""An exported model: a directory that stands alone, reopened and compared before it is called done.

config.json               the architecture, the image specification, both backbones' configurations
model.safetensors         float32 weights, names as in training
vision/ language/         config.json of each backbone (transformers' own)
tokenizer/                tokenizer.json, tokenizer_config.json, chat_template.jinja
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import DataError
from data_pipeline.manifest import write_json
from data_pipeline.stream.tokens import Tokenizer
from trainer.export.consolidate import refuse_empty
from trainer.export.directory import replacing
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model, predicts_new
from trainer.models.config import Model
from trainer.models.vision import vision_config
from trainer.models.weights import load_weights

FORMAT = "fovea-vlm"


def export(
    weights: dict[str, torch.Tensor],
    model: Model,
    mask: str,
    backbones: Path,
    out: Path,
    about: dict[str, Any],
) -> None:
    """Write the directory `out`. Raises DataError where a tensor is empty or `out` holds something else."""
    refuse_empty(weights, "export")
    with replacing(out, "config.json", "exported model") as temporary:
        for part in ("vision", "language"):
            (temporary / part).mkdir()
            shutil.copy(backbones / part / "config.json", temporary / part)
        shutil.copytree(backbones / "tokenizer", temporary / "tokenizer")
        save_file(_once(weights), temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(
            temporary / "config.json",
            {
                "model_type": FORMAT,
                "format_version": 1,
                "model": model.model_dump(mode="json"),
                "mask": mask,
                "dtype": "float32",
                **about,
            },
        )


def _once(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor under one name: tied ones are one in memory, and load_weights ties them again."""
    return dict({tensor.data_ptr(): (name, tensor) for name, tensor in reversed(weights.items())}.values())


def load_exported(directory: Path) -> AutoregressiveVLM:
    """The model of an exported directory, in evaluation mode; safetensors only, nothing is executed.

    Raises DataError where the directory holds no such model or a tensor is empty.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as e:
        raise DataError(f"{directory} holds no exported model: {e}.") from None
    if config.get("model_type") != FORMAT:
        raise DataError(
            f"{directory / 'config.json'}: model_type is {config.get('model_type')!r}, expected {FORMAT!r}."
        )
    file = directory / "model.safetensors"
    with safe_open(file, "pt") as f:  # the shapes stand in the header: look before anything is read
        sizes = {name: f.get_slice(name).get_shape() for name in f.keys()}  # noqa: SIM118
    if empty := [name for name, shape in sizes.items() if 0 in shape]:
        raise DataError(f"{file}: tensors of size 0: {', '.join(empty[:5])}.")
    vision = Idefics2VisionTransformer(vision_config(directory / "vision")[0])
    language = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(directory / "language", local_files_only=True),
        trust_remote_code=False,
        attn_implementation="sdpa",
    )
    model = build_model(
        Model.model_validate(config["model"]),
        vision,
        language,
        config["mask"],
        predicts_new(Tokenizer.load(directory / "tokenizer")),
    )
    load_weights(model.float(), file)
    return model.eval()
