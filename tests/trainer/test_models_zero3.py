"""ZeRO-3 in bf16 on two processes whose batches hold images by turns: no hang, equal weights.

A rank that leaves out the tower would wait for ever, so the processes have a deadline of their own.
"""

import os
import socket
import subprocess
import sys

import pytest

WORKER = """
import sys
import torch, deepspeed
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False  # see trainer/engine/initialize.py
from data_pipeline.batch import Batch
from data_pipeline.image_spec import ImageSpec, Perceiver, PixelShuffle
from trainer.models.config import Model
from trainer.models.build import build_model
from trainer.models.freeze import freeze, parameter_groups
from transformers import Idefics2VisionConfig, MistralConfig, MistralForCausalLM
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

torch.set_num_threads(1)
kind, trained = sys.argv[1], sys.argv[2].split("+")
connector = PixelShuffle() if kind == "pixel_shuffle" else Perceiver(
    latents=4, depth=1, heads=2, kv_heads=1, head_dim=8)
torch.manual_seed(0)
vision = Idefics2VisionTransformer(Idefics2VisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    image_size=32, patch_size=8))
language = MistralForCausalLM(MistralConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2))
model = build_model(
    Model(image=ImageSpec(longest_edge=32, patch=8), connector=connector), vision, language,
    predicts_new=kind == "perceiver")  # as with Idefics2's layout: three more rows of the head
train = {name: 1.0 for name in trained}
freeze(model, train)
model.enable_activation_checkpointing()
groups = parameter_groups(model, train, lr=1e-2, weight_decay=0.1)
before = {n: p.detach().clone().bfloat16() for n, p in model.named_parameters()}
deepspeed.init_distributed("gloo", verbose=False)
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(groups),
    config={
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1000000,
    },
)
rank = torch.distributed.get_rank()

def batch(step):
    generator = torch.Generator().manual_seed(10 * step + rank)
    ids = torch.randint(0, 40, (2, 12), generator=generator)
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    image_ids = torch.zeros_like(ids)
    images = 2 * int(rank == step % 2)
    if images:
        ids[:, 2:8] = torch.tensor([40, 42, 42, 42, 42, 41])
        image_ids[:, 3:7] = torch.tensor([[1], [2]])
        labels[:, 1:7] = -100
    if step == 1 and kind == "perceiver" and rank:
        labels[:, 9] = 42  # a new token as a target, on one rank alone
    if step == 2:
        labels[:] = -100 if rank else labels  # and a rank without one target
    # Images of other sizes on each rank and step: the modules are still called once each.
    grids = ((4, 4), (1 + step, 3))[:images]
    count = sum(r * c for r, c in grids)
    index = [(n, i // c, i % c) for n, (r, c) in enumerate(grids) for i in range(r * c)]
    return Batch(
        input_ids=ids, labels=labels, positions=torch.arange(12).expand(2, 12),
        document_ids=torch.ones_like(ids), image_ids=image_ids,
        patches=torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator),
        patch_index=torch.tensor(index, dtype=torch.int64).view(-1, 3), grids=grids)

for step in range(3):
    loss = engine(batch=batch(step))
    assert loss.isfinite(), (step, loss)
    engine.backward(loss)
    engine.step()

moved, heads = set(), set()
for name, parameter in engine.module.named_parameters():
    with deepspeed.zero.GatheredParameters([parameter]):
        mine = parameter.detach().float().contiguous()
        theirs = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(theirs, mine)
        assert theirs[0].equal(theirs[1]), name
        assert mine.isfinite().all(), name
        if not mine.equal(before[name].float()):
            moved.add(name.split(".")[0])
            heads.add(name.endswith("new_tokens.head.weight"))
assert moved == set(trained), moved
assert (True in heads) == (kind == "perceiver")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("connector", "trained"),
    [
        ("pixel_shuffle", "connector+new_tokens"),
        ("pixel_shuffle", "connector+language+new_tokens"),
        ("perceiver", "vision+connector+language+new_tokens"),
    ],
)
def test_ranks_with_and_without_images_stay_together(tmp_path, connector, trained):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    logs = [(tmp_path / f"rank{rank}.log").open("w+") for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), connector, trained],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=logs[rank],
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        codes = [rank.wait(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for log in logs:
        log.seek(0)
    assert codes == [0, 0], "\n\n".join(log.read()[-3000:] for log in logs)
