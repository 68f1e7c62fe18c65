"""Recorded sizes are those of the samples as they are rendered, whoever measures, and are measured once."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream import measure
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.measure import sizes_of
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.sizes import Sizes
from data_pipeline.stream.source import Source


@pytest.fixture
def rendering(tokenizer) -> Rendering:
    return Rendering(
        tokenizer=tokenizer,
        image=ImageSpec(longest_edge=16, patch=8),
        image_tokens=4,
        loss_on="all_text",
        budget=Budget(tokens=48),
        splitting=0.5,
    )


def source(directory: Path, name: str) -> Source:
    return Datasets.read([directory]).source(name, "train")


def recorded(sizes: Sizes) -> list[list[tuple[list[tuple[int, int, int]], str | None]]]:
    """Of each sample, of each variant: its pieces, and why some are missing."""
    every = np.arange(len(sizes))
    captions = sizes.captions(every)
    return [
        [
            (
                [tuple(p) for p in found.pieces.tolist()],
                sizes.reasons[found.reasons[0] - 1] if found.reasons[0] else None,
            )
            for v in range(captions[i] * sizes.modes)
            if (found := sizes.find(np.array([i]), np.array([v])))
        ]
        for i in every
    ]


def test_sizes_are_those_of_the_pieces_with_their_real_pixels(dataset, rendering, tmp_path) -> None:
    for name in ("caps", "docs", "chats"):
        of = source(dataset[0], name)
        for i, variants in enumerate(recorded(sizes_of(of, rendering, tmp_path))):
            sample = of[i]
            assert len(variants) == rendering.captions(sample) * 2
            for v, (pieces, note) in enumerate(variants):
                fitted = rendering.pieces(sample, v)
                assert note == fitted.note
                assert pieces == [
                    (len(p), len(p.images) * p.tiles, sum(r * c for r, c in rendering.grids(sample, p)))
                    for p in fitted.pieces
                ]
                assert sum(images for _, images, _ in pieces) % (5 if v % 2 else 1) == 0


def test_processes_measure_what_one_measures(make, rendering, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(measure, "_SAMPLES", 7)
    monkeypatch.setattr(measure, "_SOME_WORK", 0)
    make.dataset(tmp_path / "data", [make.caption(n) for n in range(60)])
    of = source(tmp_path / "data", "caps")
    alone = sizes_of(of, rendering, tmp_path / "alone")
    seen = []
    several = sizes_of(of, rendering, tmp_path / "several", workers=2, report=lambda *n: seen.append(n))
    assert recorded(several) == recorded(alone)
    (one,), (other,) = ([*(tmp_path / d).glob("*.sizes")] for d in ("alone", "several"))
    assert one.read_bytes() == other.read_bytes()
    assert seen[-1] == (60, 60)
    assert seen == sorted(seen)


def test_what_was_measured_is_not_measured_again(dataset, rendering, tmp_path, monkeypatch) -> None:
    sizes_of(source(dataset[0], "docs"), rendering, tmp_path)
    monkeypatch.setattr(measure, "_measure", None)
    again = sizes_of(source(dataset[0], "docs"), rendering, tmp_path)
    assert len(again) == 11


@pytest.mark.parametrize(
    "change",
    [
        {"loss_on": "answers"},
        {"budget": Budget(tokens=47)},
        {"overlong": "drop"},
        {"image_tokens": 9},
        {"image": ImageSpec(longest_edge=24, patch=8)},
        {"splitting": 0.0},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_settings_get_sizes_of_their_own(dataset, rendering, tmp_path, change: dict) -> None:
    of = source(dataset[0], "docs")
    sizes_of(of, rendering, tmp_path)
    sizes_of(of, replace(rendering, **change), tmp_path)
    assert len([*tmp_path.glob("docs-*.sizes")]) == 2


def test_how_often_pictures_are_split_and_turns_shuffled_changes_no_size(rendering) -> None:
    assert replace(rendering, splitting=0.1, shuffle_turns=True).key == rendering.key


def test_a_killed_measuring_leaves_nothing_that_is_taken_for_sizes(
    dataset, rendering, tmp_path, monkeypatch
) -> None:
    of = source(dataset[0], "docs")

    def dies(*_: object) -> object:
        yield from ()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measure, "_measure", dies)
        with pytest.raises(KeyboardInterrupt):
            sizes_of(of, rendering, tmp_path / "sizes")
    assert not [*(tmp_path / "sizes").glob("*.sizes")]
    assert len(sizes_of(of, rendering, tmp_path / "sizes")) == 11


def _ask(directory: Path, rendering: Rendering, sizes: Path, counted: Path) -> None:
    original = measure._measure

    def counting(*args: object) -> object:
        with counted.open("a") as f:
            f.write("measured\n")
        return original(*args)

    measure._measure = counting
    sizes_of(source(directory, "caps"), rendering, sizes)


def test_ranks_that_ask_at_once_measure_once(dataset, rendering, tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    asked = [
        context.Process(target=_ask, args=(dataset[0], rendering, tmp_path / "sizes", tmp_path / "counted"))
        for _ in range(4)
    ]
    for process in asked:
        process.start()
    for process in asked:
        process.join(60)
    assert [p.exitcode for p in asked] == [0, 0, 0, 0]
    assert (tmp_path / "counted").read_text() == "measured\n"


def test_a_picture_without_a_size_is_unusable_where_patches_have_a_budget(
    dataset, rendering, tmp_path
) -> None:
    bounded = replace(rendering, budget=Budget(tokens=48, patches=10))
    sizes = sizes_of(source(dataset[0], "caps"), bounded, tmp_path)
    assert sizes.usable == 0
    assert sizes.reasons == ("picture without a recorded size",)
