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


class MLP(BaseModel):
    """Project every patch by itself (a 2-layer MLP): as many tokens as the largest tile has patches."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["mlp"] = "mlp"


class Perceiver(BaseModel):
    """Learned queries attend to the projected patches (Idefics2, arXiv 2405.02246).

    Idefics2's own, as transformers has it: `qk_norm` false, `projection_width` the width of the language
    model's MLP (14,336 for the 8B), `eps` the language model's. `fovea import` writes all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["perceiver"] = "perceiver"
    latents: int = Field(64, ge=1, description="visual tokens per image")
    depth: int = Field(3, ge=1)
    heads: int = Field(16, ge=1)
    kv_heads: int = Field(4, ge=1)
    head_dim: int = Field(96, ge=1)
    qk_norm: bool = Field(True, description="norms on queries and keys; bounds the attention logits in bf16")
    projection_width: int | None = Field(
        None, ge=1, description="hidden width of the projection before it; null: 4 times the language model's"
    )
    eps: float = Field(1e-6, gt=0, description="of its norms")

    @model_validator(mode="after")
    def _grouped(self) -> "Perceiver":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


Connector = Annotated[PixelShuffle | MLP | Perceiver, Field(discriminator="kind")]


SPLIT_TILES = 5
"""Tiles of a split picture: its four quarters, row by row, and then the whole."""


class ImageSpec(BaseModel):
    """The size of a picture in patches, by Idefics2's rule (arXiv 2405.02246, section 3; its published image
    processor has longest_edge 980, shortest_edge 378 and patches of 14).

    A tile is what the tower sees as one image: a whole picture, or one quarter of a split one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    longest_edge: int = Field(64, ge=1, description="a longer side is scaled down to so many pixels")
    shortest_edge: int = Field(1, ge=1, description="a shorter side is stretched to so many pixels")
    patch: int = Field(8, ge=1, description="pixels of a patch's side")
    max_pixels: int = Field(50_000_000, ge=1, description="an image with more is refused unread")

    @model_validator(mode="after")
    def _edges(self) -> "ImageSpec":
        if self.longest_edge % self.patch:
            raise ValueError(f"longest_edge ({self.longest_edge}) must be a multiple of patch ({self.patch})")
        if self.shortest_edge > self.longest_edge:
            raise ValueError(
                f"shortest_edge ({self.shortest_edge}) is larger than longest_edge ({self.longest_edge})"
            )
        return self

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Pixels (width, height) after resizing: the longer side at most `longest_edge`, the aspect kept, and
        then each side at least `shortest_edge`, which does not keep it. Nothing else is scaled up.
        """
        aspect = width / height
        if width >= height and width > self.longest_edge:
            # As Idefics2 rounds: the division and int() decide which pixel rows there are.
            width, height = self.longest_edge, int(self.longest_edge / aspect)
        elif height > width and height > self.longest_edge:
            width, height = int(self.longest_edge * aspect), self.longest_edge
        return max(width, self.shortest_edge), max(height, self.shortest_edge)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of patches of a tile of so many pixels, before resizing.

        Pixels at the right and lower edge that do not fill a patch are left out. A side below one patch is
        padded to one.
        """
        columns, rows = (max(1, side // self.patch) for side in self.size(width, height))
        return rows, columns

    def tiles(self, width: int, height: int, split: bool = False) -> tuple[tuple[int, int], ...]:
        """The grid of each tile of a picture: one, or SPLIT_TILES. The sizes are of the upright picture."""
        return tuple(self.grid(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes(width, height, split))

    @property
    def largest_grid(self) -> int:
        """Patches per side of the largest tile."""
        return self.longest_edge // self.patch

    def tokens(self, connector: PixelShuffle | MLP | Perceiver) -> int:
        """Visual tokens that one tile takes in the sequence, whatever its size."""
        if isinstance(connector, Perceiver):
            return connector.latents
        if isinstance(connector, MLP):
            return self.largest_grid**2
        if self.largest_grid % connector.factor:
            raise ValueError(
                f"{self.largest_grid} patches a side (longest_edge {self.longest_edge} / patch {self.patch}) "
                f"do not divide by the pixel shuffle factor {connector.factor}"
            )
        return (self.largest_grid // connector.factor) ** 2


def boxes(width: int, height: int, split: bool) -> tuple[tuple[int, int, int, int], ...]:
    """(left, upper, right, lower) of each tile, in the picture's own pixels: cut before it is resized."""
    whole = (0, 0, width, height)
    if not split:
        return (whole,)
    return *((x0, y0, x1, y1) for y0, y1 in _halves(height) for x0, x1 in _halves(width)), whole


def _halves(side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """A side of one pixel, which has no halves, is given twice."""
    return (0, max(1, side // 2)), (min(side // 2, side - 1), side)
