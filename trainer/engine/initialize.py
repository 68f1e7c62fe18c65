"""A module and its parameter groups under DeepSpeed."""

import os
from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import AsyncIOBuilder, QuantizerBuilder
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
from deepspeed.utils import set_z3_leaf_module
from torch import nn

from data_pipeline.errors import PreflightError
from trainer.engine.swapped import claim


def initialize(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    config: dict[str, Any],
    *,
    lr: float,
    betas: tuple[float, float],
    whole: Sequence[nn.Module] = (),
) -> deepspeed.DeepSpeedEngine:
    """The engine over `model` (all ranks). `groups` say what is trained; each may carry an `lr_scale`.

    ZeRO-3 gathers the weights of each module of `whole` at once, not layer by layer inside of it. Raises
    PreflightError where another run has its optimizer in the same folder of a drive.
    """
    for module in whole:
        set_z3_leaf_module(module, True)
    without_shared_memory_operator()
    if drive := _drive(config):
        claim(drive, torch.distributed.get_rank())
    optimizer = torch.optim.AdamW([dict(g) for g in groups], lr=lr, betas=betas)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def require(config: dict[str, Any]) -> None:
    """Raises PreflightError where this machine cannot run `config`, one that `read_ds_config` gave."""
    zero = config.get("zero_optimization", {})
    quantised = [key for key in ("zero_quantized_weights", "zero_quantized_gradients") if zero.get(key)]
    if quantised and not torch.cuda.is_available():
        raise PreflightError(
            f"ds_config: {' and '.join(quantised)} need a GPU: DeepSpeed quantises in a CUDA kernel alone.\n"
            "  Remove them; zero_hpz_partition_size alone runs anywhere."
        )
    if quantised and not QuantizerBuilder().is_compatible(verbose=False):
        raise PreflightError(
            f"ds_config: {' and '.join(quantised)} need DeepSpeed's kernel 'quantizer', "
            "which cannot be built here.\n"
            "  `ds_report` says what is missing; or remove them."
        )
    if config.get("fp16", {}).get("enabled") and not get_accelerator().is_fp16_supported():
        raise PreflightError(
            "ds_config: fp16.enabled: DeepSpeed takes no float16 on this machine's device (of CPUs on those "
            "with AVX512-FP16 alone).\n"
            "  Use a file in bf16, such as zero3, or one in float32."
        )
    if drive := _drive(config):
        _require_drive("ds_config: zero_optimization.offload_optimizer", drive)


def _drive(config: dict[str, Any]) -> str | None:
    """The folder of a drive on which `config` has the optimizer."""
    offload = config.get("zero_optimization", {}).get("offload_optimizer", {})
    return offload["nvme_path"] if offload.get("device") == "nvme" else None


def _require_drive(what: str, path: str) -> None:
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise PreflightError(
            f"{what} to nvme needs DeepSpeed's kernel 'async_io', which cannot be built here.\n"
            "  Install libaio with its headers (Debian: libaio-dev), or set the device to cpu."
        )
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        raise PreflightError(
            f"{what}.nvme_path: {path} is no directory that can be written to here.\n"
            "  Copy the file, name a folder on a local drive of every node, and name the copy in ds_config"
        )


def without_shared_memory_operator() -> None:
    """To be called before DeepSpeed first communicates on a machine without a GPU."""
    if not torch.cuda.is_available():
        # It would compile a shared-memory all-reduce at the first start. A rank killed meanwhile leaves the
        # compiler's lock behind, and every later start waits for it; gloo needs none of it.
        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False


def set_lr(engine: deepspeed.DeepSpeedEngine, lr: float) -> None:
    """The learning rate of every group: `lr` times the group's own scale."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
