"""A picture that its document shows again is taken out where it comes the second time."""

import pytest

from data_pipeline.build.dedup.within import RepeatedImages
from data_pipeline.build.steps import Kept


@pytest.mark.parametrize(("distance", "kept"), [(None, [0, 1, 3]), (5, [0, 1])])
def test_the_first_place_of_a_repeated_picture_stays(copies, distance, kept):
    one, two = copies.picture(1), copies.picture(2)
    parts = [copies.encoded(one), copies.encoded(two), copies.encoded(one), copies.encoded(two, 85)]
    document = copies.document("d", "a", parts[0], "b", parts[1], "c", parts[2], "d", parts[3])
    result = RepeatedImages(distance).judge(document)
    assert isinstance(result, Kept)
    assert [m.media_id for m in result.sample.media] == [document.media[i].media_id for i in kept]
    assert [c.media for c in result.cuts] == [i for i in range(4) if i not in kept]
    shown = [result.sample.image_bytes[s.media] for s in result.sample.segments if s.media is not None]
    assert shown == [parts[i] for i in kept]
    assert result.sample.text == document.text


def test_captions_and_documents_without_repeats_pass_unchanged(copies):
    caption = copies.caption("c", copies.encoded(copies.picture(1)), "t")
    document = copies.document("d", copies.encoded(copies.picture(1)), copies.encoded(copies.picture(2)))
    for sample in (caption, document):
        assert RepeatedImages(5).judge(sample) == Kept(sample)
