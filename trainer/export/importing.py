"""`fovea import`: a directory in Idefics2's Hugging Face layout becomes backbones from which a stage trains.

OUT/vision OUT/language    config.json and weights, each in transformers' format
OUT/connector.safetensors  OUT/new_tokens.safetensors
OUT/tokenizer              with the layout `idefics2`
OUT/model.yaml             the recipe's `model` for it
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Idefics2Config, Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import DataError
from data_pipeline.stream.tokens import Tokenizer
from trainer.export.directory import SHARD, replacing, write_weights
from trainer.models.autoregressive import NEW_TOKENS, AutoregressiveVLM
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.idefics2 import joined, model_page, places, shapes_of
from trainer.models.language import check_architecture
from trainer.models.pretrained import read_config, weight_files
from trainer.models.stored import StoredWeights

_NOTE = """\
# For the recipe, with backbones.path as this directory. Idefics2 was trained with `mask: causal`.
"""


def import_idefics2(directory: Path, out: Path, largest: int = SHARD) -> dict[str, Any]:
    """Write `out` from `directory`, one tensor in memory at a time and one file's at most; what was read.

    Raises DataError where the directory is no Idefics2, its weights are pickles, or one of them is missing,
    unknown or of another shape.
    """
    config = _config(directory)
    tokenizer = Tokenizer.load(directory, "idefics2")
    _check_vocabulary(directory, config, tokenizer)
    page = model_page(config, _image_size(directory))
    stored = StoredWeights(weight_files(directory))
    model = skeleton(config, page)
    found = places(shapes_of(model))
    _check_weights(directory, stored, model, config.tie_word_embeddings)

    def tensors(part: str) -> Iterator[tuple[str, torch.Tensor]]:
        for name, place in found.items():
            if name.startswith(part + "."):
                yield name.removeprefix(part + "."), stored.rows(place.name, place.start, place.stop)

    with replacing(out, "model.yaml", "imported model") as temporary:
        for part, own in (("vision", model.vision), ("language", model.language)):
            (temporary / part).mkdir()
            own.config.architectures = [type(own).__name__]
            own.config.save_pretrained(temporary / part)
            write_weights(temporary / part, tensors(part), largest)
        for part in ("connector", "new_tokens"):
            state = {name: tensor.contiguous() for name, tensor in tensors(part)}
            save_file(state, temporary / f"{part}.safetensors", metadata={"format": "pt"})
        tokenizer.save(temporary / "tokenizer")
        text = yaml.safe_dump({"model": page.model_dump(mode="json")}, sort_keys=False)
        (temporary / "model.yaml").write_text(_NOTE + text, encoding="utf-8")
    return {
        "directory": str(directory),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(stored.shapes),
        "model": page.model_dump(mode="json"),
    }


def skeleton(config: Idefics2Config, page: Model) -> AutoregressiveVLM:
    """Our model of that shape on the meta device: names and shapes without memory."""
    text: Any = copy.deepcopy(config.text_config)
    text.vocab_size -= NEW_TOKENS
    text.tie_word_embeddings = config.tie_word_embeddings
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(text, trust_remote_code=False, attn_implementation="sdpa")
        vision = Idefics2VisionTransformer(cast(Idefics2VisionConfig, copy.deepcopy(config.vision_config)))
        return build_model(page, vision, language, "causal", predicts_new=True)


def _config(directory: Path) -> Idefics2Config:
    page = read_config(directory)
    if page.get("model_type") != Idefics2Config.model_type:
        raise DataError(
            f"{directory / 'config.json'}: model_type is '{page.get('model_type')}', allowed is "
            f"'{Idefics2Config.model_type}'.\n"
            "  A tower or a causal LM needs no import: put it into the backbones, as vision/ or language/."
        )
    try:
        config = Idefics2Config.from_dict(page)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as e:
        raise DataError(f"{directory / 'config.json'}: {e}") from None
    check_architecture(directory, config.text_config)
    return config


def _check_vocabulary(directory: Path, config: Idefics2Config, tokenizer: Tokenizer) -> None:
    text: Any = config.text_config
    if len(tokenizer) != text.vocab_size or tokenizer.image_id != config.image_token_id:
        raise DataError(
            f"{directory}: config.json says vocab_size {text.vocab_size} and image_token_id "
            f"{config.image_token_id}; the tokenizer has {len(tokenizer)} tokens and <image> is "
            f"{tokenizer.image_id}"
        )


def _image_size(directory: Path) -> dict[str, int]:
    """`size` of the image processor: preprocessor_config.json, since transformers 5 processor_config.json."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            page = json.loads(path.read_text(encoding="utf-8"))
            size = page.get("image_processor", page).get("size")
            if size is not None:
                return {
                    "longest_edge": int(size["longest_edge"]),
                    "shortest_edge": int(size["shortest_edge"]),
                }
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise DataError(f"{path}: no configuration of an image processor ({e!r})") from None
    raise DataError(f"{directory}: no preprocessor_config.json with the size of its pictures")


def _check_weights(directory: Path, stored: StoredWeights, model: AutoregressiveVLM, tied: bool) -> None:
    shapes = shapes_of(model)
    wanted = {
        name: (sum(shapes[n][0] for n in ours), *shapes[ours[0]][1:])
        for name, ours in joined(shapes, places(shapes)).items()
    }
    beside = {"lm_head.weight"} if tied else set()
    faults = {
        "missing keys": sorted(wanted.keys() - stored.shapes.keys()),
        "unexpected keys": sorted(stored.shapes.keys() - wanted.keys() - beside),
        "keys of another shape": [
            f"{name} {stored.shapes[name]}, expected {shape}"
            for name, shape in wanted.items()
            if stored.shapes.get(name, shape) != shape
        ],
    }
    if any(faults.values()):
        lines = [
            f"  {len(names)} {fault}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for fault, names in faults.items()
            if names
        ]
        raise DataError("\n".join([f"{directory}: the weights do not fit config.json", *lines]))
