"""How a stage trains a module: all of its weights, or an adapter beside its frozen ones.

No torch: recipes are checked before torch is imported.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from data_pipeline.errors import nearest
from trainer.models.config import MODULES

Kind = Literal["full", "lora", "dora"]


class Adapter(BaseModel):
    """A product of two thin matrices beside each linear layer, `alpha / rank` times.

    LoRA: arXiv 2106.09685. DoRA, which trains each row's length apart: arXiv 2402.09353. The defaults of rank
    and alpha are those of Idefics2's open training code.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rank: int = Field(64, ge=1)
    alpha: float = Field(16.0, gt=0, description="scales the product by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on what the adapter reads, in training")
    targets: tuple[str, ...] = Field(
        (), description="last names of linear layers; none: all of the module but the language model's head"
    )


class Tuning(BaseModel):
    """On the page a bare number is the factor of a module that is trained in full."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    lr: float = Field(1.0, gt=0, description="factor on the stage's learning rate")
    lora: Adapter | None = None
    dora: Adapter | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_factor(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | Tuning) else {"lr": value}

    @model_validator(mode="after")
    def _one_adapter(self) -> "Tuning":
        if self.lora and self.dora:
            raise ValueError("lora or dora, not both")
        return self

    @model_serializer
    def _as_written(self) -> float | dict[str, Any]:
        if self.adapter is None:
            return self.lr
        return {self.kind: self.adapter.model_dump(mode="json"), "lr": self.lr}

    @property
    def kind(self) -> Kind:
        return "lora" if self.lora else "dora" if self.dora else "full"

    @property
    def adapter(self) -> Adapter | None:
        return self.lora or self.dora

    def continues(self, before: "Tuning | None") -> bool:
        """Whether the adapter of the stage before fits this one as it is."""
        if before is None or before.adapter is None or self.adapter is None or before.kind != self.kind:
            return False
        # Dropout shapes no weight.
        return before.adapter == self.adapter.model_copy(update={"dropout": before.adapter.dropout})

    def __str__(self) -> str:
        if self.adapter is None:
            return "full"
        return f"{self.kind} (rank {self.adapter.rank}, alpha {self.adapter.alpha:g})"


def check_modules(train: Mapping[str, Tuning]) -> None:
    """Raises ValueError unless `train` names at least one module, and only such as can be trained so."""
    unknown = [m for m in train if m not in MODULES]
    if unknown:
        raise ValueError(
            "; ".join(f"no module '{m}'{nearest(m, MODULES)}" for m in unknown)
            + f" (there are {', '.join(MODULES)})"
        )
    if not train:
        raise ValueError(f"nothing is trained; name at least one of {', '.join(MODULES)}")
    if "new_tokens" in train and train["new_tokens"].adapter:
        raise ValueError("new_tokens is a table of a few rows: train it in full, new_tokens: 1.0")
