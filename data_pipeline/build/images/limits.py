"""Which images are wanted. Everything here but the last two is known before a pixel is decoded."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF"]


class ImageLimits(BaseModel):
    """An image beyond these is filtered out: its sample with it, or in a document the image alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    formats: tuple[ImageFormat, ...] = Field(("JPEG", "PNG", "WEBP", "GIF"), min_length=1)
    # Above 89,478,485 pixels Pillow itself takes an image for a decompression bomb.
    max_pixels: int = Field(
        50_000_000, ge=1, le=89_478_485, description="checked from the header, before decoding"
    )
    max_bytes: int = Field(64 * 2**20, ge=1, description="a larger image file is not read")
    min_bytes: int = Field(0, ge=0, description="a smaller image file is an icon or a tracking pixel")
    max_memory: int = Field(
        640 * 2**20, ge=1, description="bytes that decoding may take, estimated from the header"
    )
    min_side: int = Field(16, ge=1, description="pixels of the shorter side")
    min_width: int = Field(1, ge=1, description="pixels")
    min_height: int = Field(1, ge=1, description="pixels")
    max_side: int = Field(20_000, ge=1, description="pixels of the longer side (20,000: OBELICS)")
    max_aspect: float = Field(8.0, ge=1, description="longer side / shorter side")
    animated: Literal["keep_first", "drop"] = "keep_first"
    max_uniform: float = Field(
        1.0, ge=0, le=1, description="share of the image within 8 grey levels of its median colour; 1: any"
    )
    max_text_overlay: float = Field(1.0, ge=0, le=1, description="score of text written over it; 1: any")


def tightened(base: ImageLimits, other: ImageLimits) -> ImageLimits:
    """Both limits at once: of each key that `other` sets, the stricter value."""
    strict: dict[str, Any] = {}
    for key in other.model_fields_set:
        mine, theirs = getattr(base, key), getattr(other, key)
        if key == "formats":
            strict[key] = tuple(f for f in mine if f in theirs)
        elif key == "animated":
            strict[key] = "drop" if "drop" in (mine, theirs) else mine
        else:
            strict[key] = max(mine, theirs) if key.startswith("min_") else min(mine, theirs)
    return base.model_copy(update=strict)
