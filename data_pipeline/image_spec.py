"""How a picture becomes visual tokens: the one place where their number is computed.

Data (placeholders in the token sequence) and model (features to splice) both read it here.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PixelShuffle(BaseModel):
    """Fold `factor` x `factor` patches into one token, then project (a 2-layer MLP)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["pixel_shuffle"] = "pixel_shuffle"
    factor: int = Field(2, ge=1, description="patches per side that become one token")


class Perceiver(BaseModel):
    """Learned queries attend to the patches (Idefics2, arXiv 2405.02246)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["perceiver"] = "perceiver"
    latents: int = Field(64, ge=1, description="visual tokens per image")
    depth: int = Field(3, ge=1)
    heads: int = Field(16, ge=1)
    kv_heads: int = Field(4, ge=1)
    head_dim: int = Field(96, ge=1)

    @model_validator(mode="after")
    def _grouped(self) -> "Perceiver":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


Connector = Annotated[PixelShuffle | Perceiver, Field(discriminator="kind")]


class ImageSpec(BaseModel):
    """Images keep their aspect ratio: the longest side becomes `side` pixels, the rest is padding."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    side: int = Field(64, ge=8, description="pixels of the longest side")
    patch: int = Field(8, ge=1, description="pixels of a patch's side")
    max_pixels: int = Field(50_000_000, ge=1, description="an image with more is refused unread")

    @model_validator(mode="after")
    def _divides(self) -> "ImageSpec":
        if self.side % self.patch:
            raise ValueError(f"side ({self.side}) must be a multiple of patch ({self.patch})")
        return self

    @property
    def grid(self) -> int:
        """Patches per side of the padded square."""
        return self.side // self.patch

    def tokens(self, connector: PixelShuffle | Perceiver) -> int:
        """Visual tokens that one image takes in the sequence."""
        if isinstance(connector, Perceiver):
            return connector.latents
        if self.grid % connector.factor:
            raise ValueError(
                f"{self.grid} patches a side (side {self.side} / patch {self.patch}) "
                f"do not divide by the pixel shuffle factor {connector.factor}"
            )
        return (self.grid // connector.factor) ** 2
