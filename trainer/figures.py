"""What a step is measured by beside its loss: loss by source, gradient norms, memory, operations, MFU.

One exact pass: the loss of each target is there already, sizes are counted on the host, and one sum over all
ranks carries everything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

import deepspeed
import numpy as np
import psutil
import torch

from data_pipeline.batch import IGNORE, Batch
from data_pipeline.stream.rows import Row
from trainer.config import Recipe, Stage
from trainer.distributed import World, all_sum
from trainer.engine.gate import norms_by_module
from trainer.engine.moves import Move
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.flops import Flops, Load, training
from trainer.models.load import joined, load_of
from trainer.observe.peaks import peak_tflops
from trainer.observe.sinks import Metrics

GIB = 2**30
PARTS = tuple(f.name for f in fields(Flops))


class Figures:
    """Gathers over the micro-batches of a step (`add`), sums over all ranks at its end (`of_step`)."""

    def __init__(self, recipe: Recipe, stage: Stage, model: AutoregressiveVLM, world: World) -> None:
        self._model, self._train, self._world = model, stage.train, world
        self._vision = model.vision.config.to_dict()
        self._language = model.language.config.to_dict()
        self._every = recipe.observe.norms_every
        self._sources = {name: i for i, name in enumerate(sorted(stage.mixture))}
        self._losses = torch.zeros(len(self._sources), dtype=torch.float64, device=world.device)
        self._targets = np.zeros(len(self._sources), dtype=np.int64)
        self._loads: list[Load] = []
        self._norms: Mapping[str, float] = {}
        self._move: Move | None = None
        on_gpu = world.device.type == "cuda"
        known = peak_tflops(torch.cuda.get_device_name(world.device)) if on_gpu else None
        self._peak = recipe.observe.peak_tflops or known

    def add(self, batch: Batch, rows: Sequence[Row], losses: torch.Tensor) -> None:
        """A micro-batch on the host, the pieces in its rows, and float32[targets]: the loss of each target,
        in reading order."""
        self._loads.append(load_of(self._model, batch))
        if not rows:
            return
        sources = torch.from_numpy(self._source_of_targets(batch, rows))
        self._targets += np.bincount(sources, minlength=len(self._sources))
        self._losses.index_add_(0, sources.to(losses.device), losses.double())

    def note_update(self, engine: deepspeed.DeepSpeedEngine, step: int) -> None:
        """Norms by module, every so many steps (all ranks, between the gradients and the update)."""
        if self._every and step % self._every == 0:
            self._norms = norms_by_module(engine.module.named_parameters())
            self._move = Move(engine)

    def of_step(self, tokens: float, images: float) -> Metrics:
        """Everything of the step (all ranks); then the next one begins. `tokens`, `images`: of all ranks."""
        world, sources = self._world, list(self._sources)
        flops = training(self._model.config, self._vision, self._language, joined(self._loads), self._train)
        memory = [[0.0] * world.size, [0.0] * world.size]
        memory[0][world.rank] = psutil.Process().memory_info().rss / GIB
        if world.device.type == "cuda":
            memory[1][world.rank] = torch.cuda.max_memory_allocated(world.device) / GIB
            torch.cuda.reset_peak_memory_stats(world.device)
        modules = self._move.modules if self._move else ()
        squares = self._move.squares() if self._move else []
        mine = [*self._losses.tolist(), *self._targets.tolist(), *(getattr(flops, p) for p in PARTS)]
        told = iter(all_sum(world, *mine, *memory[0], *memory[1], *squares))
        losses, targets = ([next(told) for _ in sources] for _ in range(2))
        done = {part: next(told) for part in PARTS}
        memory = [[next(told) for _ in range(world.size)] for _ in range(2)]
        moved, length = ({module: math.sqrt(next(told)) for module in modules} for _ in range(2))
        norms = self._norms
        self._losses.zero_()
        self._targets[:] = 0
        self._loads, self._norms, self._move = [], {}, None
        return {
            **{f"loss/{s}": loss / k for s, loss, k in zip(sources, losses, targets, strict=True) if k},
            **{f"target_tokens/{s}": int(k) for s, k in zip(sources, targets, strict=True) if k},
            **{f"grad_norm/{module}": norm for module, norm in norms.items()},
            **{f"update_norm/{module}": norm for module, norm in moved.items()},
            **{f"weight_norm/{module}": norm for module, norm in length.items()},
            "image_text_ratio": self._image_text_ratio(tokens, images),
            "host_memory_gib": max(memory[0]),
            **({"device_memory_gib": max(memory[1])} if world.device.type == "cuda" else {}),
            **{f"tflops/{part}": v / 1e12 for part, v in done.items() if v},
            "tflops": sum(done.values()) / 1e12,
        }

    def speed(self, metrics: Metrics) -> Metrics:
        """Model FLOPs utilisation of each component, and their sum. Empty where no peak is known."""
        if self._peak is None:
            return {}
        most = self._peak * self._world.size * float(metrics["step_s"])
        return {
            key.replace("tflops", "mfu"): float(value) / most
            for key, value in metrics.items()
            if key.startswith("tflops")
        }

    def _source_of_targets(self, batch: Batch, rows: Sequence[Row]) -> np.ndarray:
        """int64[targets]: the number of the source that each target comes from, in reading order."""
        numbers = np.zeros((len(rows), 1 + max(map(len, rows), default=0)), dtype=np.int64)
        for r, row in enumerate(rows):
            numbers[r, 1 : 1 + len(row)] = [self._sources[placed.source] for placed in row]
        at = np.nonzero(batch.labels.numpy() != IGNORE)
        return numbers[at[0], batch.document_ids.numpy()[at]]

    def _image_text_ratio(self, tokens: float, images: float) -> float:
        """Visual tokens over all others; where pictures stand beside the sequence, over all of it."""
        config = self._model.config
        visual = images * config.image.tokens(config.connector)
        text = tokens - images * config.image_tokens
        return visual / max(1.0, text)
