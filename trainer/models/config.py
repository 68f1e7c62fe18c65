"""The model's own part of a recipe. No torch: recipes are checked before torch is imported."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_pipeline.image_spec import Connector, ImageSpec, PixelShuffle
from trainer.models.moe.config import MixtureOfExperts

MODULES = ("vision", "connector", "cross_attention", "language", "new_tokens")
"""The parts of a model that a stage freezes or trains; `cross_attention` where the architecture has it."""

Recomputed = Literal["vision", "connector", "cross_attention", "language"]
"""Modules whose layers a stage may recompute in the backward pass."""


class CrossAttention(BaseModel):
    """Gated blocks between the language model's layers that read pictures (Flamingo, arXiv 2204.14198).

    Heads and widths are the language model's own, as in Idefics (arXiv 2306.16527, appendix).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    every: int = Field(4, ge=1, description="a block before the first of so many layers")
    qk_norm: bool = Field(True, description="norms on queries and keys; bounds the attention logits in bf16")


class Model(BaseModel):
    """Tower -> connector -> language model, which gets the visual tokens by one of two ways:

    autoregressive   spliced into its token sequence
    cross_attention  read by blocks between its layers; one placeholder stands in the sequence
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: Literal["autoregressive", "cross_attention"] = "autoregressive"
    image: ImageSpec = ImageSpec()
    connector: Connector = PixelShuffle()
    moe: MixtureOfExperts | None = None
    cross_attention: CrossAttention | None = None

    @model_validator(mode="before")
    @classmethod
    def _blocks_by_default(cls, page: Any) -> Any:
        crossed = isinstance(page, dict) and page.get("architecture") == "cross_attention"
        return {**page, "cross_attention": page.get("cross_attention") or {}} if crossed else page

    @model_validator(mode="after")
    def _blocks_only_there(self) -> "Model":
        if self.cross_attention and self.architecture != "cross_attention":
            raise ValueError(
                f"cross_attention is set, but the architecture is {self.architecture}: leave it out, or set "
                "architecture to cross_attention"
            )
        return self

    @model_validator(mode="after")
    def _tokens_exist(self) -> "Model":
        self.image.tokens(self.connector)
        return self

    @property
    def image_tokens(self) -> int:
        """Positions that a tile takes in the token sequence."""
        return 1 if self.cross_attention else self.image.tokens(self.connector)

    @property
    def modules(self) -> tuple[str, ...]:
        """Those of MODULES that this model has."""
        return tuple(m for m in MODULES if m != "cross_attention" or self.cross_attention)
