"""On the CPU a row's documents are attended one after another: the same result, without the row's square."""

import pytest
import torch
from torch.nn import functional as F

from packed_rows import pack
from trainer.models.attention import PIECE, attend_under_mask, pieces
from trainer.models.masks import allowed, dense_mask, full_blocks

KINDS = ["causal", "image_full", "prefix_full"]
ROWS = (["i g150 w50", "i w20", "w40", "w10", "i g20 w200"], ["w300"], ["w129", "g128 w1", "i w60"])
LENGTH = 580


def mask_of(kind, window=None):
    batch = pack(*ROWS, length=LENGTH)
    blocks = full_blocks(kind, batch.image_ids, batch.labels)
    return dense_mask(allowed(batch.document_ids, blocks, window), len(ROWS), LENGTH, "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_fall_apart_between_documents_and_small_ones_stay_together(kind):
    # Padding sees itself alone: it is cut into the smallest pieces.
    first = [6 + 200, 26 + 40 + 10 + 226, LENGTH - 508]
    assert pieces(mask_of(kind)) == [first, [300, 128, 128, 24], [129, 129, 128, 128, 66]]


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_sees_across_the_pieces(kind, window):
    mask = mask_of(kind, window)
    for row, lengths in zip(mask, pieces(mask), strict=True):
        assert sum(lengths) == LENGTH
        assert min(lengths[:-1]) >= PIECE
        piece = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        assert not row[0][piece[:, None] != piece].any()


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_the_whole_row(kind):
    mask = mask_of(kind)
    torch.manual_seed(0)
    inputs = [torch.randn(len(ROWS), h, LENGTH, 8, requires_grad=True) for h in (6, 2, 2)]
    query, key, value = inputs
    weigh = torch.randn(len(ROWS), LENGTH, 6, 8)
    ours, _ = attend_under_mask(torch.nn.Module(), *inputs, mask, scaling=0.3)
    repeated = (t.repeat_interleave(3, 1) for t in (key, value))
    whole = F.scaled_dot_product_attention(query, *repeated, mask, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    got, want = (torch.autograd.grad((out * weigh).sum(), inputs) for out in (ours, whole))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_piece_is_attended_alone_or_with_causal_neighbours_of_its_length(monkeypatch):
    met, unmasked = [], []
    attend = F.scaled_dot_product_attention

    def watched(query, key, value, mask, *others, **options):
        count, _, length, _ = query.shape
        met.extend([length] * count)
        if mask is None:
            unmasked.append((count, length))
        return attend(query, key, value, mask, *others, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    mask = mask_of("causal")
    attend_under_mask(torch.nn.Module(), *(torch.randn(len(ROWS), 2, LENGTH, 8) for _ in range(3)), mask)
    assert met == [length for row in pieces(mask) for length in row]
    assert unmasked == [(1, 206), (1, 300), (2, 129)]  # single documents, which are plainly causal
