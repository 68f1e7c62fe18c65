"""A recipe's mixture of experts. No torch: recipes are checked before torch is imported."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Backend = Literal["grouped", "megablocks", "loop"]


class MixtureOfExperts(BaseModel):
    """Experts in place of the language model's FFN, in every n-th layer; a token visits `top_k`.

    Defaults: experts, top_k and every are MoE-LLaVA's (arXiv 2401.15947, ablations and scripts), balance is
    Switch's (arXiv 2101.03961, section 2.2), z is ST-MoE's (arXiv 2202.08906, c_z). No token is ever dropped,
    whatever the balance (arXiv 2211.15841).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    experts: int = Field(4, ge=2, description="of a layer")
    top_k: int = Field(
        2,
        ge=2,
        description="experts of a token; its gates sum to 1, so a single one would teach the router nothing",
    )
    every: int = Field(2, ge=1, description="layers every, 2 every, ... counted from 1 have experts")
    balance: float = Field(0.01, ge=0, description="weight of the load-balance loss of a layer")
    z: float = Field(0.001, ge=0, description="weight of the router's z-loss of a layer")
    backend: Backend = Field("grouped", description="how training multiplies tokens with their experts")

    @model_validator(mode="after")
    def _enough_experts(self) -> "MixtureOfExperts":
        if self.top_k > self.experts:
            raise ValueError(f"top_k is {self.top_k}, but a layer has only {self.experts} experts")
        return self
