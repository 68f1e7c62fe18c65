"""What two datasets differ in, against what was changed on purpose and against a naive comparison."""

import dataclasses
import random

from data_pipeline.build.diff import _COLUMNS, describe, diff
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.sample import SCHEMA
from data_pipeline.view import Exclusion, exclude


def test_a_dataset_does_not_differ_from_itself(tmp_path, make, samples):
    make.dataset(tmp_path / "a", samples)
    make.dataset(tmp_path / "b", samples)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.same
    assert describe(found)[0] == "the same samples, and the same of them excluded"
    assert found.counts == {
        "caps": {"train": (17, 17)},
        "chats": {"train": (9, 9)},
        "docs": {"train": (11, 11)},
    }


def test_another_division_into_shards_is_no_difference(tmp_path, make, samples):
    make.dataset(tmp_path / "a", samples, per_shard=7)
    make.dataset(tmp_path / "b", samples[::-1], per_shard=4)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.same
    assert (found.images_removed, found.images_added) == (0, 0)


def test_every_kind_of_change_is_found_and_named(tmp_path, make, samples):
    changed = list(samples)
    changed[0] = dataclasses.replace(samples[0], license="CC0", scores={"a": 0.5})
    changed[1] = dataclasses.replace(samples[1], image_bytes=(make.png(30, 30),))
    changed[2] = dataclasses.replace(samples[2], segments=samples[2].segments[:2], license="CC0")
    del changed[5]
    changed.append(make.caption(99))
    make.dataset(tmp_path / "a", samples)
    make.dataset(tmp_path / "b", changed)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert (found.only_a, found.only_b, found.changed) == (1, 1, 3)
    assert found.columns == {"license": 2, "segments": 1, "scores": 1, "images": 1}
    assert found.examples == {
        "only_a": [samples[5].id],
        "only_b": ["cap99"],
        "changed": sorted(s.id for s in samples[:3]),
    }
    assert (found.images_removed, found.images_added) == (1, 1)
    assert "samples: 1 only in A, 1 only in B, 3 in both but different" in describe(found)


def test_it_agrees_with_a_naive_comparison(tmp_path, make):
    draw = random.Random(3)
    pool = [make.document(n, pictures=n % 3) for n in range(120)]
    a, b = draw.sample(pool, 80), draw.sample(pool, 80)
    b = [dataclasses.replace(s, lang=draw.choice(["en", "de"])) if draw.random() < 0.3 else s for s in b]
    make.dataset(tmp_path / "a", a)
    make.dataset(tmp_path / "b", b)
    of_a, of_b = {s.id: s for s in a}, {s.id: s for s in b}
    pictures = [{m.media_id for s in side for m in s.media} for side in (a, b)]
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.only_a == len(of_a.keys() - of_b.keys())
    assert found.only_b == len(of_b.keys() - of_a.keys())
    assert found.changed == sum(of_a[k] != of_b[k] for k in of_a.keys() & of_b.keys()) > 3
    assert found.images_removed == len(pictures[0] - pictures[1]) > 3
    assert found.images_added == len(pictures[1] - pictures[0]) > 3


def test_a_picture_that_an_equal_shard_still_shows_is_not_removed(tmp_path, make):
    one, other, more = make.caption(1), make.caption(2), make.caption(3)
    other = dataclasses.replace(other, media=one.media, image_bytes=one.image_bytes)
    make.dataset(tmp_path / "a", [one, other], per_shard=1)
    make.dataset(tmp_path / "b", [one, more], per_shard=1)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert (found.images_removed, found.images_added) == (0, 1)


def test_exclusions_show_in_their_own_lines_and_in_the_counts(tmp_path, make, samples):
    for name in "ab":
        make.dataset(tmp_path / name, samples)
    exclude(tmp_path / "a", "x", [Exclusion("cap1", None, "r"), Exclusion("cap2", None, "r")], {})
    exclude(tmp_path / "b", "y", [Exclusion("cap2", None, "r"), Exclusion("doc2", "d2.0", "r")], {})
    found = diff(tmp_path / "a", tmp_path / "b")
    assert not found.same
    assert (found.excluded_samples, found.excluded_images) == ((1, 0), (0, 1))
    assert found.counts["caps"]["train"] == (15, 16)
    assert "excluded samples: 1 only in A, 0 only in B" in describe(found)
    assert "caps train: 15 -> 16 (+1)" in describe(found)


def test_keys_of_the_recipe_are_compared_by_the_names_of_sources(tmp_path):
    def made(out, count, **keys):
        sources = [{"name": "qa", "kind": "scenes", "style": "questions", "count": count}]
        build(BuildRecipe(name="t", tasks=1, sources=sources, **keys), tmp_path / out)

    made("a", 4)
    made("b", 6, heldout=0.5)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.recipe == {"heldout": (0.1, 0.5), "sources.qa.count": (4, 6)}
    assert found.only_a == 0
    assert found.only_b == 4
    assert set(found.columns) <= {"split"}, "some pictures are held out now"


def test_every_column_is_compared():
    assert set(_COLUMNS) == {*SCHEMA.names, "split"} - {"id"}
