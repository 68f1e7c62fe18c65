"""Copies of pictures and pictures that come too often, in datasets where every copy is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipeline.build.dedup import clusters
from data_pipeline.build.dedup.clusters import Thumbnails, leaders, likeness
from data_pipeline.build.dedup.config import DedupConfig
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.run import exclusions
from data_pipeline.build.images.phash import mirrored_phash
from data_pipeline.view import exclude, samples


def run(directory: Path, manifest, **images) -> list[tuple[str, str | None, str]]:
    config = DedupConfig.model_validate({"documents": {"exact": False}, "images": images})
    found = exclusions(Corpus.of(directory, manifest), config, directory / "work")
    return [(e.id, e.media_id, e.reason) for e in found]


def test_of_equal_pairs_the_first_stays_and_other_captions_keep_the_picture(tmp_path, copies):
    image = copies.picture(1)
    samples_ = [
        copies.caption("a", copies.encoded(image), "A red boat"),
        copies.caption("b", copies.encoded(image, 80), "a  red BOAT"),
        copies.caption("c", copies.encoded(image, 60), "at sea"),
        copies.caption("d", copies.encoded(copies.picture(2)), "A red boat"),
    ]
    manifest = copies.dataset(tmp_path, [("train", samples_)])
    assert [e[0] for e in run(tmp_path, manifest, near={})] == ["b"]
    assert sorted(e[0] for e in run(tmp_path, manifest, near={"captions": "image"})) == ["b", "c"]
    assert run(tmp_path, manifest, near={"captions": None}) == []


def test_a_held_out_picture_leaves_training_whatever_its_text_and_wherever_it_comes_first(tmp_path, copies):
    image = copies.picture(1)
    manifest = copies.dataset(
        tmp_path,
        [
            ("train", [copies.document("doc", "Words", copies.encoded(image, 70), "more words")]),
            ("train", [copies.caption("pair", copies.encoded(ImageOps.mirror(image)), "other text")]),
            ("heldout", [copies.caption("held", copies.encoded(image), "text")]),
        ],
    )
    found = run(tmp_path, manifest, near={"captions": None, "dialogues": None})
    assert {(e[0], e[2]) for e in found} == {
        ("doc", "copy of a held-out image"),
        ("pair", "copy of a held-out image"),
    }
    exclude(tmp_path, "dedup", exclusions_of(tmp_path, manifest), {})
    seen = {s.id: s for s in samples(tmp_path)}
    assert set(seen) == {"doc", "held"}
    assert seen["doc"].image_bytes == (None,)


def exclusions_of(directory: Path, manifest) -> list:
    config = DedupConfig.model_validate({"documents": {"exact": False}, "images": {"near": {}}})
    return list(exclusions(Corpus.of(directory, manifest), config, directory / "work"))


def test_of_documents_the_later_image_or_the_later_sample_goes(tmp_path, copies):
    image, other = copies.picture(1), copies.encoded(copies.picture(2))
    manifest = copies.dataset(
        tmp_path,
        [
            (
                "train",
                [
                    copies.document("one", "First", copies.encoded(image)),
                    copies.document("two", "Second", copies.encoded(image, 75), other),
                ],
            )
        ],
    )
    assert run(tmp_path, manifest, near={}) == []
    (cut,) = run(tmp_path, manifest, near={"documents": "image"})
    assert cut[:2] == ("two", copies.media(copies.encoded(image, 75)).media_id)
    assert run(tmp_path, manifest, near={"documents": "sample"}) == [("two", None, "copy of an image")]


def test_an_image_of_too_many_places_goes_everywhere_by_address_by_bytes_and_by_look(tmp_path, copies):
    button = copies.picture(7)
    as_bytes = [copies.encoded(button, q) for q in (90, 80, 70, 60)]
    address = "https://example.org/button.png"
    others = [copies.encoded(copies.picture(n)) for n in range(20, 24)]
    docs = [
        copies.document(
            f"d{n}", f"Text {n}", others[n], as_bytes[n], urls={as_bytes[n]: address, others[n]: "a.png"}
        )
        for n in range(4)
    ]
    manifest = copies.dataset(tmp_path, [("train", docs)])
    ids = {(f"d{n}", copies.media(as_bytes[n]).media_id) for n in range(4)}
    assert {e[:2] for e in run(tmp_path, manifest, max_url_count=3)} == ids
    assert run(tmp_path, manifest, max_url_count=4) == []
    assert run(tmp_path, manifest, max_bytes_count=1) == []
    found = run(tmp_path, manifest, max_phash_count=3)
    assert {e[:2] for e in found} == ids
    assert {e[2] for e in found} == {"picture too frequent"}
    assert run(tmp_path, manifest, max_phash_count=4) == []
    same = [copies.document(f"s{n}", f"Text {n}", as_bytes[0]) for n in range(3)]
    manifest = copies.dataset(tmp_path, [("train", same)])
    assert len(run(tmp_path, manifest, max_bytes_count=2)) == 3
    assert run(tmp_path, manifest, max_bytes_count=3) == []


def test_equal_hashes_of_different_pictures_are_no_copies(tmp_path, copies, monkeypatch):
    """Two pictures that are given one hash: the thumbnails tell them apart, and only they do."""
    a = copies.caption("a", copies.encoded(copies.picture(1)), "same")
    b = copies.caption("b", copies.encoded(copies.picture(2)), "same")
    b = type(b)(
        **{**vars(b), "media": (type(b.media[0])(**{**vars(b.media[0]), "phash": a.media[0].phash}),)}
    )
    manifest = copies.dataset(tmp_path, [("train", [a, b])])
    assert run(tmp_path, manifest, near={}) == []
    assert [e[0] for e in run(tmp_path, manifest, near={"similarity": -1})] == ["b"]


def test_an_image_without_a_hash_is_decoded_and_a_broken_one_is_a_copy_of_nothing(tmp_path, copies):
    data = copies.encoded(copies.picture(1))
    broken = copies.caption("broken", data, "same", hashed=False)
    broken = type(broken)(**{**vars(broken), "image_bytes": (b"\xff\xd8\xff no picture",)})
    parts = [
        copies.caption("a", data, "same", hashed=False),
        copies.caption("b", copies.encoded(copies.picture(1), 85), "same", hashed=False),
        broken,
    ]
    manifest = copies.dataset(tmp_path, [("train", parts)])
    assert [e[0] for e in run(tmp_path, manifest, near={})] == ["b"]


def test_leaders_are_those_of_a_naive_comparison_in_any_batch_size(tmp_path, copies, monkeypatch):
    """Every image follows the earliest leader that it is a copy of: checked pair by pair."""
    rng = np.random.default_rng(3)
    images = []
    for _ in range(60):
        image = copies.picture(int(rng.integers(0, 12)))
        if rng.random() < 0.3:
            image = ImageOps.mirror(image)
        if rng.random() < 0.3:
            image = image.resize((80, 60), Image.Resampling.BILINEAR)
        images.append(copies.encoded(image, int(rng.integers(30, 95))))
    parts = [copies.caption(f"c{n:02d}", data, "x") for n, data in enumerate(images)]
    manifest = copies.dataset(tmp_path, [("train", parts)], rows=7)
    config = DedupConfig.model_validate({"images": {"near": {}}}).images.near
    corpus = Corpus.of(tmp_path, manifest)
    thumbnails = Thumbnails(corpus)
    hashes = [s.media[0].phash for s in parts]
    expected: list[int] = []
    for i, h in enumerate(hashes):
        for j in range(i):
            far = min((h ^ hashes[j]).bit_count(), (mirrored_phash(h) ^ hashes[j]).bit_count())
            near = far <= config.distance
            alike = likeness(far, thumbnails[i], thumbnails[j], distance=config.distance, mirror=True)
            same = parts[i].media[0].media_id == parts[j].media[0].media_id
            if expected[j] == j and near and (same or alike >= config.similarity):
                expected.append(j)
                break
        else:
            expected.append(i)
    assert len(set(expected)) < 30
    for size in (1024, 10, 1):
        monkeypatch.setattr(clusters, "_BATCH", size)
        assert leaders(corpus, config, tmp_path / f"w{size}").tolist() == expected


@pytest.mark.parametrize(("size", "copy"), [((34, 28), False), ((170, 140), True)])
def test_of_small_pictures_only_half_the_bits_may_differ(tmp_path, copies, size, copy):
    """One pair whose hashes differ in 6 to 10 bits: copies where the picture is large enough for the hash."""
    first = copies.picture(1, size)
    for share in np.arange(0.05, 0.5, 0.01):
        other = Image.blend(first, copies.picture(2, size), share)
        parts = [copies.caption(n, copies.encoded(i), "text") for n, i in (("a", first), ("b", other))]
        far = (parts[0].media[0].phash ^ parts[1].media[0].phash).bit_count()
        if 6 <= far <= 10:
            break
    else:
        pytest.fail("no share gives such a pair")
    manifest = copies.dataset(tmp_path, [("train", parts)])
    assert [e[0] for e in run(tmp_path, manifest, near={})] == (["b"] if copy else [])
    again = [copies.caption(n, copies.encoded(first), "text") for n in "cd"]  # the same bytes twice
    manifest = copies.dataset(tmp_path, [("train", again)])
    assert [e[0] for e in run(tmp_path, manifest, near={})] == ["d"]
    mild = [
        copies.caption("e", copies.encoded(first), "text"),
        copies.caption("f", copies.encoded(first, 90), "text"),
    ]
    manifest = copies.dataset(tmp_path, [("train", mild)])
    assert [e[0] for e in run(tmp_path, manifest, near={})] == ["f"]


@pytest.mark.parametrize("mirror", [True, False])
def test_mirrored_copies_count_only_where_asked_for(tmp_path, copies, mirror):
    image = copies.picture(4)
    parts = [
        copies.caption("a", copies.encoded(image), "same"),
        copies.caption("b", copies.encoded(ImageOps.mirror(image)), "same"),
    ]
    manifest = copies.dataset(tmp_path, [("train", parts)])
    assert bool(run(tmp_path, manifest, near={"mirror": mirror})) is mirror


@pytest.mark.parametrize("size", [1024, 1])
def test_a_row_of_pictures_each_near_the_next_does_not_become_one(tmp_path, copies, monkeypatch, size):
    """b is a copy of a; c is near b alone, and b leads nothing: c stays, in one batch and across batches."""
    monkeypatch.setattr(clusters, "_BATCH", size)
    parts = []
    for key, phash in (("a", 0), ("b", 2**10 - 1), ("c", 2**20 - 1)):
        made = copies.caption(key, copies.encoded(copies.picture(ord(key))), "same")
        (found,) = made.media
        parts.append(dataclasses.replace(made, media=(dataclasses.replace(found, phash=phash),)))
    manifest = copies.dataset(tmp_path, [("train", parts)])
    assert [e[0] for e in run(tmp_path, manifest, near={"similarity": -1})] == ["b"]


@pytest.mark.parametrize("rule", ["image", "sample"])
def test_a_picture_twice_in_one_document_is_no_copy_between_documents(tmp_path, copies, rule):
    image = copies.picture(1)
    twice = copies.document("twice", "a", copies.encoded(image), "b", copies.encoded(image, 80))
    manifest = copies.dataset(tmp_path, [("train", [twice])])
    assert run(tmp_path, manifest, near={"documents": rule}) == []
