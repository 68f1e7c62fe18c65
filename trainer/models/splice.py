"""Put visual tokens at their places in the token sequence. Never aligned by force: a mismatch is an error.

Shapes: B rows, T positions a row, N images, K visual tokens an image, D the language model's width.
"""

import torch

from data_pipeline.errors import DataError


def splice(
    text_embeddings: torch.Tensor, image_features: torch.Tensor, image_ids: torch.Tensor
) -> torch.Tensor:
    """text_embeddings [B, T, D], image_features [N, K, D], image_ids int64[B, T] -> [B, T, D].

    The K features of image n fill, in order, the positions where `image_ids == n + 1`. Images stand in the
    order of their spans, row by row. Raises DataError where they do not, or where a span has not K positions.
    """
    images, tokens, width = image_features.shape
    taken = image_ids.flatten() > 0
    order = taken.cumsum(0) - 1  # which visual token of the batch stands here
    # One comparison, read once: on an accelerator each read of a value waits for the queue.
    fits = torch.where(taken, image_ids.flatten() == order // max(tokens, 1) + 1, True).all()
    if not bool(fits & (taken.sum() == images * tokens)):
        raise DataError(_mismatch(image_ids, images, tokens))
    if images == 0:
        return text_embeddings
    flat = image_features.to(text_embeddings.dtype).reshape(images * tokens, width)
    placed = flat[order.clamp(min=0)].view_as(text_embeddings)
    return torch.where(taken.view_as(image_ids)[..., None], placed, text_embeddings)


def _mismatch(image_ids: torch.Tensor, images: int, tokens: int) -> str:
    """What does not fit, with both counts, at the first image where it shows."""
    ids = image_ids.cpu()
    for image in range(1, max(images, int(ids.max())) + 1):
        rows, _ = (ids == image).nonzero(as_tuple=True)
        where = f"row {', '.join(map(str, rows.unique().tolist()))}" if len(rows) else "in no row"
        expected = tokens if image <= images else 0
        if len(rows) != expected:
            return (
                f"image {image} of {images} ({where}): {len(rows)} positions carry its id, "
                f"but it has {expected} features. Do the batch and the model use the same ImageSpec "
                "and connector?"
            )
    return f"the {images} images do not stand in the order of their spans in image_ids, row by row"
