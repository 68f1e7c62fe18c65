"""An export in Idefics2's Hugging Face layout: plain transformers loads it, without code of ours.

config.json  generation_config.json  model.safetensors (or several, and their index)
preprocessor_config.json  processor_config.json
tokenizer.json  tokenizer_config.json  chat_template.jinja
"""

from pathlib import Path

import torch
from transformers import GenerationConfig, Idefics2ForConditionalGeneration

from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.manifest import write_json
from data_pipeline.stream.tokens import Tokenizer
from trainer.export.consolidate import refuse_empty
from trainer.export.directory import SHARD, replacing, write_weights
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.idefics2 import idefics2_config, joined, places, shapes_of

TOLERANCE = 1e-4
"""Of the largest logit: how far transformers' own forward pass may be from ours, both in float32."""


def export_idefics2(model: AutoregressiveVLM, tokenizer: Tokenizer, out: Path, largest: int = SHARD) -> None:
    """Write the directory `out`. Raises DataError where the model is none that Idefics2's layout can say."""
    t = tokenizer
    config = idefics2_config(model, {"image": t.image_id, "pad": t.pad_id, "bos": t.bos_id, "eos": t.eos_id})
    config.dtype = torch.float32
    config.architectures = [Idefics2ForConditionalGeneration.__name__]
    weights = dict(model.named_parameters())
    refuse_empty({name: p.data for name, p in weights.items()}, "export")
    parts = joined(weights, places(shapes_of(model)))
    with replacing(out, "config.json", "exported model") as temporary, torch.no_grad():
        write_weights(
            temporary,
            ((name, torch.cat([weights[n] for n in ours])) for name, ours in parts.items()),
            largest,
        )
        config.save_pretrained(temporary)
        GenerationConfig(
            bos_token_id=t.bos_id, eos_token_id=[t.eos_id, t.end_id], pad_token_id=t.pad_id
        ).save_pretrained(temporary)
        _write_processor(model, temporary)
        t.save(temporary)


def _write_processor(model: AutoregressiveVLM, directory: Path) -> None:
    image = model.config.image
    write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "Idefics2ImageProcessor",
            "processor_class": "Idefics2Processor",
            "do_convert_rgb": True,
            "do_image_splitting": False,
            "do_resize": True,
            "size": {"longest_edge": image.longest_edge, "shortest_edge": image.shortest_edge},
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_pad": True,
        },
    )
    write_json(
        directory / "processor_config.json",
        {"processor_class": "Idefics2Processor", "image_seq_len": model.config.image_tokens},
    )


@torch.no_grad()
def compare_idefics2(model: AutoregressiveVLM, directory: Path, probe: Batch) -> float:
    """Open the export with transformers; the largest difference of a logit on `probe`, a row of one picture.

    Raises DataError where a weight is not the model's bit by bit, or logits are further apart than rounding.
    """
    theirs = Idefics2ForConditionalGeneration.from_pretrained(
        directory,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation="sdpa",
    ).eval()
    weights = dict(model.named_parameters())
    reopened = dict(theirs.named_parameters())
    parts = joined(weights, places(shapes_of(model)))
    wrong = sorted(parts.keys() ^ reopened.keys()) or [
        n for n, ours in parts.items() if not torch.cat([weights[o] for o in ours]).equal(reopened[n])
    ]
    if wrong:
        raise DataError(f"{directory}: reopened, {len(wrong)} weights differ: {', '.join(wrong[:3])}")
    ours = model.logits(probe)
    logits = theirs(input_ids=probe.input_ids, pixel_values=pixels_of(probe), use_cache=False).logits
    difference = float((ours - logits).abs().max())
    if not difference <= TOLERANCE * float(ours.abs().max()):
        raise DataError(f"{directory}: transformers' logits differ by {difference:g} from the checkpoint's.")
    return difference


def pixels_of(probe: Batch) -> torch.Tensor:
    """float32[1, 1, 3, H, W] of a batch of one picture, normalised."""
    ((rows, columns),) = probe.grids
    levels = probe.patches.float() / 127.5 - 1
    return levels.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)[None, None]
