"""The model's own part of a recipe. No torch: recipes are checked before torch is imported."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from data_pipeline.image_spec import Connector, ImageSpec, PixelShuffle
from trainer.models.moe.config import MixtureOfExperts

MODULES = ("vision", "connector", "language", "new_tokens")
"""The parts of a model that a stage freezes or trains."""


class Model(BaseModel):
    """Autoregressive: tower -> connector -> spliced into the token sequence of the language model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: Literal["autoregressive"] = "autoregressive"
    image: ImageSpec = ImageSpec()
    connector: Connector = PixelShuffle()
    moe: MixtureOfExperts | None = None

    @model_validator(mode="after")
    def _tokens_exist(self) -> "Model":
        self.image.tokens(self.connector)
        return self

    @property
    def image_tokens(self) -> int:
        return self.image.tokens(self.connector)
