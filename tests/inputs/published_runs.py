"""Runs whose wall time was published, as recipes: what the papers do not say is ours, and said."""

from trainer.config import Recipe
from trainer.planning.hardware import Cluster, gpu_named

SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 364,
    "patch_size": 14,
}
LLAMA_8B = {  # Llama 3.1, config.json
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
QWEN3_8B = {  # Qwen3, config.json
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
COMMON = {
    "mixture": {"any": 1},
    "mask": "causal",
    "micro_batch": 1,
    "lr": 1e-4,
    "ds_config": "zero3-large",
}
NEW = {"connector": 1.0, "new_tokens": 1.0}
DORA = NEW | {part: {"dora": {"rank": 64}} for part in ("vision", "language")}


def idefics3() -> Recipe:
    """arXiv 2408.12637: 1,000 steps with frozen backbones and 9,500 with DoRA, of 1,024 rows of 10,000;
    tiles of 364 pixels, 169 tokens each. Ours: rank 64, micro-batch, how much of a row is pictures."""
    rows = COMMON | {"global_batch": 1024, "sequence_length": 10_000}
    steps = {"first": (1000, NEW), "second": (3000, DORA), "third": (1500, DORA), "instruct": (5000, DORA)}
    before = "backbones"
    stages = []
    for name, (count, train) in steps.items():
        stages.append(rows | {"name": name, "init_from": before, "steps": count, "train": train})
        before = name
    return _recipe("idefics3", LLAMA_8B, 2, stages)


IDEFICS3_CLUSTER = Cluster(gpu_named("h100"), nodes=32, per_node=8, network=3200)
IDEFICS3_DAYS = 5.0
"""With restarts."""


def llava_onevision() -> Recipe:
    """LLaVA-OneVision-1.5, its 8B in mid-training: 64 billion tokens, rows of 8,192, everything trained,
    all layers recomputed. Ours: the tower (theirs is another, of a similar size), the batch, ZeRO-3 in
    place of Megatron."""
    rows = 8192 * 1024
    stage = COMMON | {
        "name": "middle",
        "init_from": "backbones",
        "global_batch": 1024,
        "sequence_length": 8192,
        "steps": round(64e9 / rows),
        "train": NEW | {"vision": 1.0, "language": 1.0},
    }
    return _recipe("llava-onevision", QWEN3_8B, 2, [stage])


LLAVA_CLUSTER = Cluster(gpu_named("a100"), nodes=16, per_node=8, network=1600)
LLAVA_DAYS = 3.7
"""On A800: an A100 with slower NVLink."""


def _recipe(name: str, language: dict, factor: int, stages: list[dict]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": name,
            "backbones": {"expects": {"vision": SO400M, "language": language, "layout": "mistral"}},
            "model": {
                "image": {"longest_edge": 364, "patch": 14},
                "connector": {"kind": "pixel_shuffle", "factor": factor},
            },
            "stages": stages,
        }
    )
