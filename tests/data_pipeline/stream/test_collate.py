"""What enters a batch is checked where the sample's name is known."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.chat import Rendered, render
from data_pipeline.stream.collate import Document, Piece, collate
from data_pipeline.stream.decode import Picture, blank

IMAGE = ImageSpec(longest_edge=16, patch=8)
IMAGE_TOKENS = 4


def test_collate_names_the_sample_at_fault(tokenizer, make) -> None:
    good = render(make.caption(0), tokenizer, IMAGE_TOKENS, "all_text")

    some = blank(IMAGE, (2, 1))

    def attempt(tokens: Rendered, pictures: int = 1, length: int = 96, picture: Picture = some) -> None:
        document = Document(Piece("cap0", "caps", 7, tokens), (picture,) * pictures)
        collate(
            [[document]],
            tokenizer=tokenizer,
            image=IMAGE,
            image_tokens=IMAGE_TOKENS,
            sequence_length=length,
        )

    attempt(good)
    cases = {
        "token ids": replace(good, input_ids=good.input_ids + 290),
        "visual or first token is marked": replace(good, loss=np.ones_like(good.loss)),
        "outside the image spans": replace(good, image_ids=np.roll(good.image_ids, 1)),
    }
    for message, tokens in cases.items():
        with pytest.raises(DataError, match=rf"sample cap0 of source 'caps' \(index 7\).*{message}"):
            attempt(tokens)
    with pytest.raises(DataError, match=r"2 pictures of 4 tokens each, but spans of \[4\]"):
        attempt(good, pictures=2)
    with pytest.raises(DataError, match="the row has room for 10"):
        attempt(good, length=10)
    with pytest.raises(DataError, match=r"sample cap0 .*: a picture of 3 x 1 patches, allowed are 1 to 2"):
        attempt(good, picture=blank(IMAGE, (3, 1)))
    for wrong in (
        Picture(some.blocks.astype(np.float32)),
        Picture(some.blocks[:, :, :1]),
        blank(ImageSpec(longest_edge=8, patch=4), (2, 1)),
    ):
        with pytest.raises(DataError, match=r"sample cap0 .*: patches .*, expected are uint8 of \("):
            attempt(good, picture=wrong)
