"""Under ZeRO-3 a model is loaded in the ranks' parts: as by plain loading, and no rank holds the whole."""

import gc
import re
import threading
from contextlib import contextmanager
from pathlib import Path

import deepspeed
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from adapted import batch, tunings
from data_pipeline.errors import DataError
from data_pipeline.image_spec import ImageSpec, Perceiver
from ranks import on_ranks
from trainer.config import load_recipe
from trainer.distributed import World, all_sum, barrier
from trainer.engine import checkpoint, saving
from trainer.engine.ds_config import merge_ds_config
from trainer.engine.initialize import initialize
from trainer.engine.sharding import Shards, shards_parameters
from trainer.engine.state import TrainState
from trainer.models.adapters import is_adapter
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.freeze import count_parameters, freeze, parameter_groups
from trainer.models.language import language_on_meta, load_language
from trainer.models.pretrained import pretrained_weights
from trainer.models.tuning import Tuning
from trainer.models.vision import load_vision, vision_on_meta, vision_weights
from trainer.start import start, start_sharded

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
LANGUAGE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PAGE = Model(
    image=ImageSpec(longest_edge=32, patch=8),
    connector=Perceiver(latents=3, depth=1, heads=2, kv_heads=1, head_dim=8),
)
ZERO3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
FULL = {m: Tuning() for m in ("vision", "connector", "language", "new_tokens")}
MIXED = tunings("dora") | {"connector": tunings("lora")["connector"]}
LATER = MIXED | {"language": tunings("lora", rank=2)["language"]}
"""After MIXED: adapters of connector and tower go on, the language model's is merged, a new one made."""


def write(room: Path, config, shards: str = "8KB") -> Path:
    """Backbones of random weights: a SigLIP, and a language model in several files."""
    torch.manual_seed(5)
    SiglipVisionModel(SiglipVisionConfig(**TOWER)).save_pretrained(room / "vision")
    AutoModelForCausalLM.from_config(config).save_pretrained(room / "language", max_shard_size=shards)
    return room


def config_of(world: World, precision: str) -> dict:
    own = {**ZERO3, "bf16": {"enabled": precision == "bf16"}}
    return merge_ds_config(own, micro_batch=2, accumulation=1, world_size=world.size, clip=1.0)


def plain(backbones: Path, train, before):
    torch.manual_seed(1)
    model = build_model(PAGE, load_vision(backbones / "vision"), load_language(backbones / "language"))
    start(model, before, train)
    freeze(model, train)
    return model


def sharded(world: World, backbones: Path, train, before, config, shards=None):
    torch.manual_seed(1)
    model = build_model(PAGE, vision_on_meta(backbones / "vision"), language_on_meta(backbones / "language"))
    start_sharded(model, before, train, backbones, shards or Shards(config), world)
    freeze(model, train)
    return model


def engine_over(model, train, config):
    groups = parameter_groups(model, train, lr=1e-2, weight_decay=0.1)
    return initialize(model, groups, config, lr=1e-2, betas=(0.9, 0.95))


def take_a_step(world: World, engine, step: int) -> float:
    ours = batch(step, world.rank)
    loss = engine(ours)
    targets, total = all_sum(world, ours.target_tokens, float(loss.detach()))
    engine.backward(loss * world.size / targets)
    engine.step()
    return total / targets


def gathered(model) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().clone()
    return found


def equal_to_plain(world: World, backbones: Path, train, before, precision: str) -> tuple[int, float]:
    """The number of weights compared, and the loss of the step that both take alike."""
    config = config_of(world, precision)
    theirs, ours = plain(backbones, train, before), sharded(world, backbones, train, before, config)
    assert count_parameters(ours, train) == count_parameters(theirs, train)
    for name, p in ours.named_parameters():
        # `initialize` cuts new adapters: they are small.
        assert is_adapter(name) or (p.numel() == 0 and p.ds_tensor.numel() < p.ds_numel), name
    start_values = gathered(ours)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    expected = dict(theirs.named_parameters(remove_duplicate=False))
    assert start_values.keys() == expected.keys()
    for name, values in start_values.items():
        assert values.dtype == dtype
        assert values.equal(expected[name].detach().to(dtype)), name
    assert {n: p.requires_grad for n, p in ours.named_parameters()} == {
        n: p.requires_grad for n, p in theirs.named_parameters()
    }
    for (name, buffer), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert buffer.dtype == other.dtype, name
        assert buffer.equal(other), name
    engines = [engine_over(model, train, config) for model in (ours, theirs)]
    one, other = [take_a_step(world, engine, step=0) for engine in engines]
    assert one == other
    one_after, other_after = (gathered(engine.module) for engine in engines)
    for name, values in one_after.items():
        assert values.equal(other_after[name]), name
    moved = [name for name in one_after if not one_after[name].equal(start_values[name])]
    assert moved
    return len(start_values), one


def every_start(world: World, untied: Path, tied: Path, out: Path) -> list[tuple[int, float]]:
    done = [
        equal_to_plain(world, untied, FULL, None, "bf16"),
        equal_to_plain(world, tied, FULL, None, "fp32"),
        equal_to_plain(world, untied, MIXED, None, "bf16"),
    ]
    config = config_of(world, "bf16")
    engine = engine_over(sharded(world, untied, MIXED, None, config), MIXED, config)
    for step in range(2):
        take_a_step(world, engine, step)
    stage = load_recipe("tiny").stages[0].model_copy(update={"train": MIXED})
    fingerprints = {"stage": stage.model_dump(mode="json")}
    path = saving.save(engine, out, TrainState(step=2), fingerprints, world, keep=2)
    before = checkpoint.verify(path)
    done.append(equal_to_plain(world, untied, LATER, before, "bf16"))
    done.append(equal_to_plain(world, untied, FULL, before, "fp32"))
    refuse_on_every_rank(world, untied, before, config)
    return done


def refuse_on_every_rank(world: World, backbones: Path, before, config) -> None:
    """No rank is left waiting in a collective where weights do not fit."""
    narrower = PAGE.model_copy(update={"connector": PAGE.connector.model_copy(update={"latents": 2})})
    model = build_model(
        narrower, vision_on_meta(backbones / "vision"), language_on_meta(backbones / "language")
    )
    wrong = r"1 of another shape: connector\.latents \(3, 16\), expected \(2, 16\)"
    with pytest.raises(DataError, match=wrong):
        start_sharded(model, before, FULL, backbones, Shards(config), world)
    barrier(world)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_and_a_step_equal_plain_loading_bit_by_bit(tmp_path, ranks):
    """Full and adapted, over a tied and an untied language model, from backbones and from a stage before."""
    untied = write(tmp_path / "untied", MistralConfig(**LANGUAGE))
    tied = write(tmp_path / "tied", LlamaConfig(**LANGUAGE, tie_word_embeddings=True))
    done = on_ranks(every_start, untied, tied, tmp_path / "out", ranks=ranks)
    assert all(d == done[0] for d in done)
    assert len({loss for _, loss in done[0]}) == 5


WIDE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
}


def anonymous_memory() -> int:
    """Bytes of this process that no file stands behind.

    Pages of safetensors files that are mapped count as resident, and as private too where one process alone
    has mapped them; the system takes them back when it needs memory.
    """
    return 1024 * int(re.search(r"Anonymous: +(\d+)", Path("/proc/self/smaps_rollup").read_text())[1])


@contextmanager
def highest(began: int):
    """Anonymous memory above `began` at its highest, sampled every 2 ms."""
    seen, over = [0], threading.Event()

    def sample():
        while not over.wait(0.002):
            seen[0] = max(seen[0], anonymous_memory() - began)

    thread = threading.Thread(target=sample)
    thread.start()
    yield seen
    over.set()
    thread.join()
    seen[0] = max(seen[0], anonymous_memory() - began)


def memory_of_loading(world: World, backbones: Path) -> tuple[int, int]:
    config = config_of(world, "bf16")
    train = {"connector": Tuning()}
    gc.collect()
    began = anonymous_memory()
    with highest(began) as in_parts:
        model = sharded(world, backbones, train, None, config)
    del model
    gc.collect()
    with highest(began) as whole:
        model = plain(backbones, train, None)
        for p in model.parameters():  # as the engine does: until here they may be the files' own pages
            p.data = p.data + 0
    del model
    return in_parts[0], whole[0]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_no_rank_holds_more_than_its_part_and_the_largest_tensor(tmp_path, ranks, monkeypatch):
    # What is freed goes back at once: glibc would keep up to twice the largest tensor for later, by chance.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
    config = MistralConfig(**WIDE, num_key_value_heads=8)
    backbones = write(tmp_path, config, shards="50MB")
    with torch.device("meta"):
        whole = 4 * sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    largest = 4 * WIDE["vocab_size"] * WIDE["hidden_size"]
    assert whole > 190e6
    for in_parts, plainly in on_ranks(memory_of_loading, backbones, ranks=ranks):
        # Twice the largest: where it is read, and where the ranks receive it.
        assert in_parts < whole / ranks + 2 * largest + 20e6, (in_parts / 1e6, whole / 1e6)
        assert plainly > 0.95 * whole, (plainly / 1e6, whole / 1e6)


def test_only_zero_3_is_loaded_in_parts():
    assert shards_parameters(ZERO3)
    assert not shards_parameters({})
    assert not shards_parameters({"zero_optimization": {"stage": 2}})


def altered(directory: Path, change) -> None:
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("model.norm.weight"),
        lambda s: s.update({"model.extra": torch.ones(1)}),
        lambda s: s.update({"model.norm.weight": torch.ones(3)}),
        lambda s: s.update({"lm_head.weight": torch.ones(2)}),
    ],
)
def test_a_language_model_that_plain_loading_refuses_is_refused_in_the_same_words(tmp_path, change):
    write(tmp_path, MistralConfig(**LANGUAGE), shards="1GB")
    directory = tmp_path / "language"
    assert pretrained_weights(language_on_meta(directory), directory)
    altered(directory, change)
    with pytest.raises(DataError) as plainly:
        load_language(directory)
    with pytest.raises(DataError, match=re.escape(str(plainly.value))):
        pretrained_weights(language_on_meta(directory), directory)


def test_a_tower_that_does_not_fit_is_refused_in_the_same_words(tmp_path):
    directory = write(tmp_path, MistralConfig(**LANGUAGE)) / "vision"
    # SigLIP's pooling head is none of the tower's own, and may stand there.
    assert len(vision_weights(vision_on_meta(directory), directory)) == 21
    altered(directory, lambda s: s.pop(next(k for k in s if k.endswith("post_layernorm.bias"))))
    with pytest.raises(DataError) as plainly:
        load_vision(directory)
    with pytest.raises(DataError, match=re.escape(str(plainly.value))):
        vision_weights(vision_on_meta(directory), directory)
