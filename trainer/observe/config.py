"""What is measured and where it goes: the recipe's `observe:`. None of it changes what is trained."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Observe(BaseModel):
    """May change between a checkpoint and its resume."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | None = Field(
        None, description="beside metrics.jsonl; none: TensorBoard where it is installed"
    )
    norms_every: int = Field(
        100, ge=0, description="steps between two norms of gradients and updates by module; 0: never"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="dense bf16 peak of one device, for MFU; none: by the device's name, if known"
    )
