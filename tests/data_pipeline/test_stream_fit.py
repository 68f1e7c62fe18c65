"""Fitting documents into rows: no budget exceeded, no picture cut, all text once, losses noted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_like
from data_pipeline.errors import ConfigError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream import fit as f
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.chat import Rendered, Unusable, Variant, render
from data_pipeline.stream.fit import fit
from data_pipeline.stream.tokens import Tokenizer, train_tokenizer

WORDS = ("a", "red", "square", "left", "of", "it", "日本", "x y z")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> dict[str, Tokenizer]:
    made = {"tiny": train_tokenizer(["a red square left of it"] * 3, 280)}
    letters, merges = mistral_like.learn(["a red square left of it"] * 3, 60)
    for name in ("idefics2", "mistral"):
        directory = mistral_like.write(tmp_path_factory.mktemp(name), letters, merges, "legacy")
        made[name] = Tokenizer.load(directory, name)
    return made


@st.composite
def samples(draw) -> Sample:
    """Documents, captions and dialogues of all lengths, with pictures in runs and alone."""
    kind = draw(st.sampled_from(["interleaved", "caption", "instruct"]))
    text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)
    quiet = st.sampled_from([None, None, None, 0.0])
    segments = []
    for n in range(draw(st.integers(1, 8))):
        role = ("user", "assistant")[n % 2] if kind == "instruct" else None
        for _ in range(draw(st.integers(0, 2)) if role != "assistant" else 0):
            segments.append(Segment(type="image", media=len(segments) % 3, role=role, turn=n // 2))
        segments.append(Segment(type="text", text=draw(text), role=role, turn=n // 2, loss=draw(quiet)))
    media = tuple(Media(media_id=str(n)) for n in range(3))
    return Sample(
        id="s", kind=kind, source="x", segments=tuple(segments), media=media, image_bytes=(b"",) * 3
    )


def spans(piece: Rendered) -> list[tuple[int, list[int]]]:
    """Of each tile: its number, and its tokens with the one before and the one after."""
    found = []
    for tile in range(1, piece.image_ids.max(initial=0) + 1):
        at = np.flatnonzero(piece.image_ids == tile)
        assert (np.diff(at) == 1).all()
        found.append((tile, piece.input_ids[at[0] - 1 : at[-1] + 2].tolist()))
    return found


@settings(max_examples=300, deadline=None)
@given(
    samples(),
    st.sampled_from(["tiny", "idefics2", "mistral"]),
    st.booleans(),
    st.sampled_from(["all_text", "answers"]),
    st.integers(1, 4),
    st.integers(2, 120),
    st.one_of(st.none(), st.integers(1, 12)),
    st.one_of(st.none(), st.integers(1, 40)),
    st.sampled_from(f.POLICIES),
    st.randoms(use_true_random=False),
)
def test_every_piece_keeps_every_promise(
    layouts, sample, name, split, loss_on, count, tokens, images, patches, policy, rng
) -> None:
    t = layouts[name]
    try:
        whole = render(sample, t, count, loss_on, Variant(split=split))
    except Unusable:
        return
    sizes = [rng.randint(1, 9) for _ in range(len(whole.images) * whole.tiles)]
    budget = Budget(tokens=tokens, images=images, patches=patches)
    fitted = fit(whole, budget, sizes, t.bos_id, policy)

    given_tiles = iter(zip(sizes, np.repeat(whole.images, whole.tiles).tolist(), strict=True))
    for piece, patch_count in zip(fitted.pieces, fitted.patches, strict=True):
        tiles = len(piece.images) * piece.tiles
        assert len(piece) == len(piece.loss) == len(piece.image_ids) <= tokens
        assert tiles <= (images or tiles)
        assert patch_count <= (patches or patch_count)
        assert piece.input_ids[0] == t.bos_id
        assert piece.loss.any()
        assert not piece.loss[0]
        assert t.may_be_target[piece.input_ids[piece.loss]].all()
        assert ((piece.input_ids == t.image_id) == (piece.image_ids > 0)).all()
        complete = [t.image_start_id, *[t.image_id] * count, t.image_end_id]
        assert spans(piece) == [(n, complete) for n in range(1, tiles + 1)]
        if fitted.note in (None, f.CUT, f.SHORTENED):  # the others leave tiles out in the middle
            mine = [next(given_tiles) for _ in range(tiles)]
            assert [media for _, media in mine] == np.repeat(piece.images, piece.tiles).tolist()
            assert sum(n for n, _ in mine) == patch_count

    text = [[i for i in p.input_ids.tolist() if i not in t.ids.values()] for p in fitted.pieces]
    flat = [i for piece in text for i in piece]
    everything = [i for i in whole.input_ids.tolist() if i not in t.ids.values()]
    targets = int((whole.loss & ~np.isin(whole.input_ids, list(t.ids.values()))).sum())
    kept = sum(int((p.loss & ~np.isin(p.input_ids, list(t.ids.values()))).sum()) for p in fitted.pieces)
    if fitted.note is None:
        assert fitted.pieces == (whole,)
    else:
        assert fitted.note in f.NOTES
        assert bool(fitted.pieces) == (fitted.note not in (f.TOO_MUCH, f.TOO_LARGE))
        assert len(whole) > tokens or len(sizes) > (images or 99) or sum(sizes) > (patches or 9999)
    if fitted.note == f.CUT:
        assert flat == everything
    if fitted.note == f.SHORTENED:
        assert flat == everything[: len(flat)]
    if policy == "split" and not whole.anchored and fitted.pieces:
        assert kept == targets  # every target once, whatever pictures were too large


def document(segments: str, t: Tokenizer, count: int = 4) -> Rendered:
    """A document of `i` (a picture) and `t` (a text of five tokens and maybe a newline)."""
    made = [
        Segment(type="image", media=n) if c == "i" else Segment(type="text", text="-----")
        for n, c in enumerate(segments)
    ]
    media = tuple(Media(media_id=str(n)) for n in range(len(segments)))
    sample = Sample(
        id="s",
        kind="interleaved",
        source="x",
        segments=tuple(made),
        media=media,
        image_bytes=(b"",) * len(media),
    )
    return render(sample, t, count, "all_text")


def test_it_cuts_between_segments_rather_than_inside_a_text(bytes_tokenizer) -> None:
    whole = document("ttt", bytes_tokenizer)
    fitted = fit(whole, Budget(tokens=16), (), 1)
    assert [len(p) for p in fitted.pieces] == [13, 7]  # <bos> 6 6, <bos> 5 <eos>
    assert fitted.note == f.CUT
    # A text longer than a row is cut inside, the pieces as long as may be.
    assert [len(p) for p in fit(whole, Budget(tokens=5), (), 1).pieces] == [5, 3, 5, 3, 5, 3]


def test_an_eos_left_over_is_no_document(bytes_tokenizer) -> None:
    (piece,) = fit(document("t", bytes_tokenizer), Budget(tokens=6), (), 1).pieces
    assert piece.input_ids.tolist() == [1, *[19] * 5]


def test_an_answer_that_is_no_target_does_not_count_as_a_whole_answer(bytes_tokenizer, make) -> None:
    dialogue = make.dialogue(1)
    quiet = [replace(s, loss=0.0) if n == 2 else s for n, s in enumerate(dialogue.segments)]
    whole = render(replace(dialogue, segments=tuple(quiet)), bytes_tokenizer, 4, "answers")
    (piece,) = fit(whole, Budget(tokens=len(whole) - 4), (), 1, "shorten").pieces
    assert len(piece) == len(whole) - 4
    assert fit(whole, Budget(tokens=len(whole) - 4), (), 1, "split").pieces == ()


def test_budgets_of_images_and_patches_cut_too(bytes_tokenizer) -> None:
    whole = document("ititit", bytes_tokenizer)
    by_images = fit(whole, Budget(tokens=999, images=2), (), 1)
    assert [p.images for p in by_images.pieces] == [(0, 2), (4,)]
    by_patches = fit(whole, Budget(tokens=999, patches=10), (6, 5, 5), 1)
    assert [p.images for p in by_patches.pieces] == [(0,), (2, 4)]
    assert by_patches.patches == (6, 10)


def test_a_picture_too_large_for_any_row_is_left_out_and_its_text_stays(bytes_tokenizer) -> None:
    whole = document("titit", bytes_tokenizer)
    fitted = fit(whole, Budget(tokens=999, patches=10), (11, 10), 1)
    assert fitted.note == f.NO_PICTURE
    assert [p.images for p in fitted.pieces] == [(), (3,)]
    assert sum(int((p.input_ids == 19).sum()) for p in fitted.pieces) == 15  # "-" is 19
    # The span needs 6 tokens and <bos> one: a row of 6 holds text alone.
    assert all(p.images == () for p in fit(whole, Budget(tokens=6), (1, 1), 1).pieces)


def test_a_piece_without_targets_is_left_out_and_noted(bytes_tokenizer) -> None:
    whole = document("tit", bytes_tokenizer)
    fitted = fit(whole, Budget(tokens=7), (), 1)
    assert fitted.note == f.NO_TARGETS
    assert [p.images for p in fitted.pieces] == [(), ()]


def test_neighbours_that_share_a_token_both_have_it_when_they_are_parted(layouts) -> None:
    t = layouts["idefics2"]
    fake, image = t.ids["<fake_token_around_image>"], t.ids["<image>"]
    whole = document("tiit", t, count=2)
    assert whole.input_ids.tolist().count(fake) == 3
    first, second = fit(whole, Budget(tokens=999, images=1), (), t.bos_id).pieces
    assert first.input_ids.tolist()[-4:] == [fake, image, image, fake]
    assert second.input_ids.tolist()[:5] == [t.bos_id, fake, image, image, fake]
    assert second.image_ids.tolist()[:5] == [0, 0, 1, 1, 0]


def test_all_tiles_of_a_split_picture_stay_together(layouts, make) -> None:
    for t in layouts.values():
        whole = render(make.document(1, pictures=2), t, 3, "all_text", Variant(split=True))
        fitted = fit(whole, Budget(tokens=999, images=9), (1,) * 10, t.bos_id)
        assert [int(p.image_ids.max()) for p in fitted.pieces] == [5, 5]
        assert fit(whole, Budget(tokens=999, images=4), (1,) * 10, t.bos_id).note == f.NO_PICTURE


def test_a_dialogue_keeps_its_leading_whole_answers(layouts, make) -> None:
    for t in layouts.values():
        whole = render(make.dialogue(1, turns=4), t, 4, "answers")
        for policy in ("split", "shorten"):
            fitted = fit(whole, Budget(tokens=len(whole) - 3), (), t.bos_id, policy)
            (piece,) = fitted.pieces
            assert fitted.note == f.SHORTENED
            assert piece.input_ids[-1] == t.end_id
            assert piece.loss[-1]
            assert int((piece.input_ids[piece.loss] == t.end_id).sum()) == 3


def test_policies_differ_where_not_even_the_first_answer_fits(bytes_tokenizer, make) -> None:
    whole = render(make.dialogue(1), bytes_tokenizer, 4, "answers")
    start = int(whole.loss.argmax())
    budget = Budget(tokens=start + 3)
    assert fit(whole, budget, (), 1, "split").note == f.TOO_MUCH
    assert fit(whole, budget, (), 1, "drop").note == f.TOO_MUCH
    (piece,) = fit(whole, budget, (), 1, "shorten").pieces
    assert piece.input_ids.tolist() == whole.input_ids[: start + 3].tolist()
    assert piece.images == (0,)
    # Where the question alone fills the row there is nothing to learn from it.
    assert fit(whole, Budget(tokens=start), (), 1, "shorten").note == f.TOO_MUCH
    assert fit(whole, Budget(tokens=99, patches=1), (2,), 1, "shorten").note == f.TOO_LARGE


def test_what_fits_is_the_same_object_under_every_policy(bytes_tokenizer, make) -> None:
    whole = render(make.dialogue(1), bytes_tokenizer, 4, "answers")
    for policy in f.POLICIES:
        fitted = fit(whole, Budget(tokens=len(whole), images=1, patches=3), (3,), 1, policy)
        assert fitted.pieces == (whole,)
        assert (fitted.patches, fitted.note) == ((3,), None)


def test_misuse_says_what_is_wrong(bytes_tokenizer, make) -> None:
    whole = render(make.dialogue(1), bytes_tokenizer, 4, "answers")
    with pytest.raises(ConfigError, match="policy: 'truncate' is none of split, shorten, drop"):
        fit(whole, Budget(tokens=9), (), 1, "truncate")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 counts of patches for 1 tiles"):
        fit(whole, Budget(tokens=9, patches=9), (), 1)
    with pytest.raises(ConfigError, match="a row of one token"):
        fit(replace(whole, anchored=False), Budget(tokens=1), (), 1)
