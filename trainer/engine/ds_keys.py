"""Which keys of DeepSpeed's JSON are taken, and which of them contradict one another. Imports no torch.

DeepSpeed itself passes over keys that it does not know at the top level, and meets contradictions as
assertions on every rank. Names and meanings: https://www.deepspeed.ai/docs/config-json/ and its
`runtime/zero/config.py`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Elements = Annotated[int, Field(ge=0)]
DType = Literal["fp32", "bf16", "fp16"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bf16(_Part):
    enabled: bool = False
    bf16_master_weights_and_grads: bool = False
    bf16_optimizer_states: bool = False


class Fp16(_Part):
    enabled: bool = False
    loss_scale: float = Field(0, ge=0)
    initial_scale_power: int = Field(16, ge=0)
    loss_scale_window: int = Field(1000, ge=1)
    hysteresis: int = Field(2, ge=1)
    consecutive_hysteresis: bool = False
    min_loss_scale: int = Field(1, ge=1)


class _Offload(_Part):
    device: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: str | None = None
    pin_memory: bool = True


class OffloadParam(_Offload):
    buffer_count: Elements = 5
    buffer_size: Elements = 10**8
    max_in_cpu: Elements = 10**9

    @model_validator(mode="after")
    def _is_in_memory(self) -> "OffloadParam":
        if self.device == "nvme":
            raise ValueError(
                "device nvme: what is there would be in no checkpoint; set it to cpu, and offload_optimizer, "
                "which is six times as large, to nvme"
            )
        return self


class OffloadOptimizer(_Offload):
    buffer_count: Elements = 4
    pipeline_read: bool = False
    pipeline_write: bool = False
    fast_init: bool = False

    @model_validator(mode="after")
    def _has_room(self) -> "OffloadOptimizer":
        if self.device == "nvme" and not self.nvme_path:
            raise ValueError("device nvme needs nvme_path, a directory on a local drive of every node")
        needed = 4 * (1 + self.pipeline_read + self.pipeline_write)
        if self.device == "nvme" and self.buffer_count < needed:
            raise ValueError(
                f"buffer_count {self.buffer_count}: {needed} are needed, four (weights, gradients, two "
                "moments) for the part that is updated, and for those that are read and written meanwhile"
            )
        return self


class Zero(_Part):
    stage: Literal[0, 1, 2, 3] = 0
    contiguous_gradients: bool = True
    overlap_comm: bool | None = None
    reduce_scatter: bool = True
    reduce_bucket_size: int = Field(5 * 10**8, gt=0)
    use_multi_rank_bucket_allreduce: bool = True
    allgather_partitions: bool = True
    allgather_bucket_size: Elements = 5 * 10**8
    round_robin_gradients: bool = False
    ignore_unused_parameters: bool = True
    sub_group_size: Elements = 10**9
    stage3_prefetch_bucket_size: Elements = 5 * 10**7
    stage3_param_persistence_threshold: Elements = 10**5
    stage3_model_persistence_threshold: Elements = 2**63 - 1
    stage3_max_live_parameters: Elements = 10**9
    stage3_max_reuse_distance: Elements = 10**9
    stage3_module_granularity_threshold: Elements = 0
    stage3_use_all_reduce_for_fetch_params: bool = False
    stage3_allgather_sequential: bool = False
    zero_hpz_partition_size: int = Field(1, ge=1)
    zero_quantized_weights: bool = False
    zero_quantized_gradients: bool = False
    memory_efficient_linear: bool = True
    log_trace_cache_warnings: bool = False
    enable_sanity_checks: bool = False
    offload_param: OffloadParam = OffloadParam()
    offload_optimizer: OffloadOptimizer = OffloadOptimizer()

    @model_validator(mode="after")
    def _fits_the_stage(self) -> "Zero":
        of_three = {
            "offload_param": self.offload_param.device != "none",
            "offload_optimizer to nvme": self.offload_optimizer.device == "nvme",
            "zero_hpz_partition_size": self.zero_hpz_partition_size > 1,
            "zero_quantized_weights": self.zero_quantized_weights,
            "zero_quantized_gradients": self.zero_quantized_gradients,
        }
        if self.stage < 3 and (set_ := [key for key, on in of_three.items() if on]):
            raise ValueError(f"{', '.join(set_)}: only with stage 3 (here {self.stage}); set stage to 3")
        if self.stage == 0 and self.offload_optimizer.device != "none":
            raise ValueError("offload_optimizer: only with stage 1, 2 or 3 (here 0)")
        return self


class DataTypes(_Part):
    grad_accum_dtype: DType | None = None


class CommsLogger(_Part):
    enabled: bool = False
    verbose: bool = False
    prof_all: bool = True
    prof_ops: tuple[str, ...] = ()
    debug: bool = False


class Aio(_Part):
    block_size: int = Field(2**20, ge=1)
    queue_depth: int = Field(8, ge=1)
    intra_op_parallelism: int = Field(1, ge=1)
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class Page(_Part):
    """All of it. Defaults are DeepSpeed's own."""

    bf16: Bf16 = Bf16()
    fp16: Fp16 = Fp16()
    data_types: DataTypes = DataTypes()
    communication_data_type: DType | None = None
    zero_optimization: Zero = Zero()
    aio: Aio = Aio()
    comms_logger: CommsLogger = CommsLogger()
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    dump_state: bool = False
    disable_python_gc: bool = False

    @property
    def precision(self) -> DType:
        return "bf16" if self.bf16.enabled else "fp16" if self.fp16.enabled else "fp32"

    @model_validator(mode="after")
    def _one_precision(self) -> "Page":
        if self.bf16.enabled and self.fp16.enabled:
            raise ValueError("bf16.enabled and fp16.enabled: one of them, or none for float32")
        stage, accumulated = self.zero_optimization.stage, self.data_types.grad_accum_dtype
        if stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"zero_optimization.stage 0 in {self.precision}: there DeepSpeed steps AdamW once on "
                "zeros before training, which spoils its moments; set the stage to 1, or leave the precision "
                "float32"
            )
        if stage == 0 and accumulated not in (None, "fp32"):
            raise ValueError("data_types.grad_accum_dtype: at zero_optimization.stage 0 only fp32")
        if (stage, self.precision, accumulated) == (1, "bf16", "fp32") and not self._offloads:
            raise ValueError(
                "data_types.grad_accum_dtype fp32 in bf16 at zero_optimization.stage 1: DeepSpeed takes an "
                "optimizer there that tells no gradient norm before its step; set the stage to 2"
            )
        return self

    @model_validator(mode="after")
    def _states_in_bf16(self) -> "Page":
        bf16, zero = self.bf16, self.zero_optimization
        if bf16.bf16_master_weights_and_grads != bf16.bf16_optimizer_states:
            raise ValueError(
                "bf16.bf16_master_weights_and_grads and bf16.bf16_optimizer_states: both or neither (one "
                "alone needs DeepSpeed's own CPU optimizer, and Fovea's is torch's AdamW)"
            )
        if bf16.bf16_optimizer_states and (not bf16.enabled or zero.stage == 0 or self._offloads):
            raise ValueError(
                "bf16.bf16_optimizer_states: only with bf16.enabled, zero_optimization.stage 1, 2 or 3, and "
                "offload_optimizer.device none"
            )
        return self

    @property
    def _offloads(self) -> bool:
        return self.zero_optimization.offload_optimizer.device != "none"
