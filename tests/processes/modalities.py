"""Training on batches whose modalities are drawn at random on each rank, and its twin in one process.

The ranks take the project's own steps (trainer/loop.py) under ZeRO-3; the twin is plain torch on the same
global batches.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from data_pipeline.batch import IGNORE, Batch
from data_pipeline.image_spec import ImageSpec, Perceiver, PixelShuffle
from toy_backbones import toy_mistral, toy_tower
from trainer.config import Recipe, Stage
from trainer.distributed import World
from trainer.engine.ds_config import merge_ds_config
from trainer.engine.gate import Gate
from trainer.engine.initialize import initialize
from trainer.engine.state import TrainState
from trainer.figures import Figures
from trainer.loop import train_step
from trainer.models.adapters import attach
from trainer.models.build import build_model
from trainer.models.config import CrossAttention, Model
from trainer.models.freeze import count_parameters, freeze, parameter_groups
from trainer.models.gradients import GradientCheck
from trainer.models.regions import compile_regions
from trainer.run import Run

VOCABULARY, START, END, IMAGE = 40, 40, 41, 42
ROWS, SLOTS, SLOT = 2, 4, 6
"""A row is four slots of six positions, each text or a picture of four visual tokens; two documents a row."""
LENGTH = SLOTS * SLOT
LR, WEIGHT_DECAY, ACCUMULATION = 5e-3, 0.05, 2

Kind = Literal["text", "one", "many"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how."""

    train: dict[str, Any]
    model: dict[str, Any]
    stage: dict[str, Any]


ALL = dict.fromkeys(("vision", "connector", "language", "new_tokens"), 1.0)
PERCEIVER = Perceiver(latents=4, depth=1, heads=2, kv_heads=1, head_dim=8)
CASES = {
    "all trained": Case(train=ALL, model={"connector": PixelShuffle()}, stage={}),
    "frozen tower, LoRA": Case(
        train={"connector": 1.0, "new_tokens": 1.0, "language": {"lora": {"rank": 4, "alpha": 8}, "lr": 2.0}},
        model={"connector": PERCEIVER},
        stage={"activation_checkpointing": {"language": 2, "connector": 1}},
    ),
    "compiled": Case(
        train=ALL,
        model={"connector": PixelShuffle()},
        stage={"compile": True, "activation_checkpointing": {"language": 2}},
    ),
    "cross-attention": Case(
        train=ALL | {"cross_attention": 2.0},
        model={
            "architecture": "cross_attention",
            "connector": PERCEIVER,
            "cross_attention": CrossAttention(every=2),
        },
        # At 5e-3 one process differs from itself, begun 1e-7 beside its weights, by 6e-4 within 200 steps.
        stage={"lr": 2e-3},
    ),
}


def kind_of(step: int, rank: int, draw: torch.Generator) -> Kind:
    """Drawn; but of four steps, one has a rank that sees text alone while all others have pictures."""
    kind: Kind = ("text", "one", "many")[int(torch.randint(3, (), generator=draw))]
    if step % 4 == 3:
        return "text" if rank == step // 4 % 2 else "many" if kind == "text" else kind
    return kind


def draw_batch(step: int, rank: int, micro: int) -> Batch:
    """A micro-batch; one in eight has no target. Every size depends on (step, rank, micro) alone."""
    draw = torch.Generator().manual_seed((step * 64 + rank) * 8 + micro)
    kind = kind_of(step, rank, draw)
    images = {"text": 0, "one": 1, "many": 2 + int(torch.randint(4, (), generator=draw))}[kind]
    # Something to learn, so that a wrong step shows: a document counts, by more behind a bright picture.
    bright = torch.randint(2, (ROWS * SLOTS,), generator=draw)
    slots = torch.randperm(ROWS * SLOTS, generator=draw)[:images].sort().values
    seen = torch.zeros(ROWS * SLOTS, dtype=torch.int64).index_copy(0, slots, bright[slots])
    first = torch.randint(VOCABULARY, (ROWS * SLOTS, 1), generator=draw)
    behind = seen.view(-1, 2).cummax(1).values.view(-1, 1)
    ids = (first + torch.arange(SLOT) * (3 + 4 * behind)) % VOCABULARY
    image_ids = torch.zeros_like(ids)
    for n, slot in enumerate(slots, start=1):
        ids[slot] = torch.tensor([START, *[IMAGE] * 4, END])
        image_ids[slot, 1:5] = n
    ids = ids.view(ROWS, LENGTH)
    half = LENGTH // 2
    labels = torch.full_like(ids, IGNORE)
    for begin in (0, half):  # two documents a row
        labels[:, begin : begin + half - 1] = ids[:, begin + 1 : begin + half]
    labels[labels >= VOCABULARY] = IGNORE
    if not torch.randint(8, (), generator=draw):
        labels[:] = IGNORE
    grids = tuple(tuple(torch.randint(1, 5, (2,), generator=draw).tolist()) for _ in range(images))
    index = [(n, i // c, i % c) for n, (r, c) in enumerate(grids) for i in range(r * c)]
    patches = torch.randint(0, 100, (len(index), 3, 8, 8), dtype=torch.uint8, generator=draw)
    patch_index = torch.tensor(index, dtype=torch.int64).view(-1, 3)
    patches += (150 * bright[slots][patch_index[:, 0]]).to(torch.uint8)[:, None, None, None]
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.arange(half).repeat(ROWS, 2),
        document_ids=torch.tensor([1, 2]).repeat_interleave(half).repeat(ROWS, 1),
        image_ids=image_ids.view(ROWS, LENGTH),
        patches=patches,
        patch_index=patch_index,
        grids=grids,
    )


def batch_of(case: Case, step: int, rank: int, micro: int) -> Batch:
    """`draw_batch` as the model of `case` reads it: under cross-attention a picture has one placeholder, the
    first of its four positions."""
    batch = draw_batch(step, rank, micro)
    if "cross_attention" not in case.model:
        return batch
    again = batch.image_ids == batch.image_ids.roll(1, dims=1)
    return replace(
        batch,
        image_ids=batch.image_ids.masked_fill(again, 0),
        input_ids=batch.input_ids.masked_fill(again & (batch.image_ids > 0), START),
    )


def stage_of(case: Case, ranks: int, steps: int) -> Stage:
    page = {
        "name": "drawn",
        "init_from": "backbones",
        "train": case.train,
        "mixture": {"drawn": 1},
        "steps": steps,
        "global_batch": ROWS * ACCUMULATION * ranks,
        "micro_batch": ROWS,
        "sequence_length": LENGTH,
        "lr": LR,
        "schedule": "constant",
        "weight_decay": WEIGHT_DECAY,
    }
    return Stage.model_validate(page | case.stage)


def page_of(case: Case) -> Model:
    return Model(image=ImageSpec(longest_edge=32, patch=8), **case.model)


def model_of(case: Case, stage: Stage) -> nn.Module:
    torch.manual_seed(0)
    vision, language = toy_tower(num_hidden_layers=2), toy_mistral(VOCABULARY)
    model = build_model(page_of(case), vision, language, stage.mask)
    attach(model, stage.train)
    freeze(model, stage.train)
    return model


class Drawn:
    """The stream of one rank: what a Run reads of one."""

    imbalance, fill, samples = (1.0, 1.0), 1.0, 0
    rows = ((),) * ACCUMULATION

    def __init__(self, case: Case, rank: int) -> None:
        self.case, self.step, self.rank, self.skipped = case, 0, rank, {}

    def ready(self, seconds: float) -> bool:
        return True

    def next(self) -> list[Batch]:
        batches = [batch_of(self.case, self.step, self.rank, micro) for micro in range(ACCUMULATION)]
        self.step += 1
        return batches

    def state_dict(self) -> dict[str, int]:
        return {"ledger": 0, "window": 0, "row": self.step}


def run_on(
    world: World,
    case: Case,
    stage: Stage,
    stream: Any,
    zero: dict[str, Any],
    *,
    accumulation: int,
    directory: Path = Path("/nowhere"),
    backend: str = "inductor",
) -> Run:
    """The case as a Run in fp32 (all ranks), which gets its batches from `stream`."""
    model = model_of(case, stage)
    parameters = count_parameters(model, stage.train)
    model.enable_activation_checkpointing(stage.activation_checkpointing)
    groups = parameter_groups(model, stage.train, lr=stage.lr, weight_decay=stage.weight_decay)
    config = merge_ds_config(
        {"zero_optimization": zero},
        micro_batch=stage.micro_batch,
        accumulation=accumulation,
        world_size=world.size,
        clip=stage.clip,
    )
    regions = compile_regions(model, backend) if stage.compile else []
    engine = initialize(model, groups, config, lr=stage.lr, betas=stage.betas, whole=regions)
    recipe = Recipe(name="drawn", model=page_of(case), stages=(stage,))
    return Run(
        recipe=recipe,
        stage=stage,
        stage_dir=directory,
        world=world,
        accumulation=accumulation,
        stream=stream,
        engine=engine,
        gate=Gate(engine),
        state=TrainState(),
        fingerprints={},
        parameters=parameters,
        gradients=GradientCheck(engine.module),
        figures=Figures(recipe, stage, engine.module, world),
        sinks=[],
    )


def ranks_train(
    world: World, names: list[str], steps: int, backend: str = "inductor"
) -> dict[str, list[float]]:
    """The loss of each step of each case (all ranks), fp32 under ZeRO-3 with nothing kept whole."""
    losses, zero3 = {}, {"stage": 3, "stage3_param_persistence_threshold": 0}
    for name in names:
        case = CASES[name]
        stage, stream = stage_of(case, world.size, steps), Drawn(case, world.rank)
        run = run_on(world, case, stage, stream, zero3, accumulation=ACCUMULATION, backend=backend)
        losses[name] = [train_step(run)["loss"] for _ in range(steps)]
    return losses


def twin_trains(name: str, ranks: int, steps: int) -> list[float]:
    """One process, plain torch, no checkpointing: the batches of all ranks, one after another."""
    stage = stage_of(CASES[name], ranks, steps)
    model = model_of(CASES[name], stage)
    groups = parameter_groups(model, stage.train, lr=stage.lr, weight_decay=stage.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas)
    trained = [p for group in groups for p in group["params"]]
    losses = []
    for step in range(steps):
        batches = [
            batch_of(CASES[name], step, rank, micro) for rank in range(ranks) for micro in range(ACCUMULATION)
        ]
        targets = sum(batch.target_tokens for batch in batches)
        total = 0.0
        for batch in batches:
            loss = model(batch) / targets
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(trained, stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses
