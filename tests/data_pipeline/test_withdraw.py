"""What is withdrawn is seen by nobody, whatever else a dataset goes through; what is unknown is said."""

import dataclasses
import fcntl
import time

import pytest

from data_pipeline.build.exporters.export import export
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.build.withdraw import describe, normal_url, withdraw
from data_pipeline.errors import ConfigError, DataError, PreflightError
from data_pipeline.manifest import read_manifest
from data_pipeline.view import Exclusion, exclude, samples


def at(sample, url, media=()):
    found = tuple(dataclasses.replace(m, url=u) for m, u in zip(sample.media, media, strict=True))
    return dataclasses.replace(sample, url=url, media=found)


@pytest.fixture
def web(tmp_path, make):
    """Six documents of two images: pages of three hosts, images of others."""
    pages = [
        "http://a.org/1",
        "https://a.org/2#x",
        "https://www.b.com/x/1",
        "https://b.com/x/2",
        "http://c.net",
        None,
    ]
    rows = [
        at(make.document(n, pictures=2), url, (f"https://cdn.net/{n}.png", f"http://img.b.com/{n}.png"))
        for n, url in enumerate(pages)
    ]
    make.dataset(tmp_path, rows)
    return tmp_path


def shown(directory):
    return {s.id: sum(b is not None for b in s.image_bytes) for s in samples(directory)}


def test_by_id_page_and_picture(web):
    found = withdraw(web, ids=["doc5"], urls=["https://A.org:443/1"], media_ids=["d3.1"])
    assert (found.samples, found.images) == (2, 1)
    assert shown(web) == {"doc1": 2, "doc2": 2, "doc3": 1, "doc4": 2}
    assert not any(found.unknown.values())


def test_by_the_address_of_an_image(web):
    found = withdraw(web, urls=["http://cdn.net/2.png"])
    assert (found.samples, found.images) == (0, 1)
    assert shown(web)["doc2"] == 1


def test_by_the_beginning_of_an_address(web):
    found = withdraw(
        web, urls=["http://b.com/x/*", "https://a.org/*", "https://a.org/1*", "https://zzz.org/*"]
    )
    assert set(shown(web)) == {"doc2", "doc4", "doc5"}
    assert found.unknown["urls"] == ("https://zzz.org/*",)


def test_by_domain_with_all_below_it_and_nothing_beside(web):
    found = withdraw(web, domains=["b.com", "net", "rg", "org.a"])
    assert found.unknown["domains"] == ("org.a", "rg")
    assert shown(web) == {"doc0": 0, "doc1": 0, "doc5": 0}


def test_what_is_unknown_is_said_and_the_rest_is_done(web):
    found = withdraw(web, ids=["doc0", "nobody"], urls=["https://a.org/3"], media_ids=["m"], generators=["g"])
    assert found.unknown == {
        "ids": ("nobody",),
        "urls": ("https://a.org/3",),
        "domains": (),
        "generators": ("g",),
        "media_ids": ("m",),
    }
    assert describe(found)[0].startswith("withdrawn: 1 samples")
    assert "  1 ids match nothing: nobody" in describe(found)
    assert "doc0" not in shown(web)


def test_nothing_and_everything_are_refused(web):
    with pytest.raises(ConfigError, match="nothing is named"):
        withdraw(web)
    with pytest.raises(ConfigError, match="would withdraw everything"):
        withdraw(web, urls=["*"])
    with pytest.raises(DataError, match="no manifest"):
        withdraw(web / "other", ids=["x"])
    assert not (web / "other").exists()


def test_withdrawals_add_up_and_say_what_was_asked(web):
    withdraw(web, ids=["doc0"], reason="opted out")
    found = withdraw(web, ids=["doc1", "doc0"], reason="court order")
    assert found.samples == 1
    assert not {"doc0", "doc1"} & shown(web).keys()
    (record,) = found.manifest.exclusions
    assert record.reasons["docs"]["samples"] == {"opted out": 1, "court order": 1}
    assert record.made == {
        "withdrawals": [{"reason": "opted out", "ids": 1}, {"reason": "court order", "ids": 2}]
    }


def test_what_another_step_excluded_is_withdrawn_for_good(web):
    exclude(web, "dedup", [Exclusion("doc0", None, "copy"), Exclusion("doc1", "d1.0", "copy")], {})
    withdraw(web, urls=["http://a.org/*"])
    exclude(web, "dedup", [], {})
    assert set(shown(web)) == {"doc2", "doc3", "doc4", "doc5"}


def synthetic(sample, parents, generator="llava", version="1.6"):
    made = {
        "generator": generator,
        "generator_version": version,
        "prompt_id": "p",
        "seed": 1,
        "params_json": "{}",
        "parent_ids": parents,
    }
    return dataclasses.replace(sample, synthetic=made)


@pytest.fixture
def family(tmp_path, make):
    """cap0 -> chat0 -> chat1 -> chat2; chat3 of another version, chat4 of another generator."""
    rows = [
        make.caption(0),
        synthetic(make.dialogue(0), ["cap0"], "other"),
        synthetic(make.dialogue(1), ["chat0"], "other"),
        synthetic(make.dialogue(2), ["x", "chat1"], "third"),
        synthetic(make.dialogue(3), [], version="1.5"),
        synthetic(make.dialogue(4), []),
    ]
    make.dataset(tmp_path, rows)
    return tmp_path


def test_of_a_generator_that_wrote_nothing_those_that_did_are_named(family):
    said = describe(withdraw(family, generators=["lava"]))
    assert "  1 generators match nothing: lava" in said
    assert said[-1] == "  models that wrote samples: llava, other, third"
    assert "models that wrote" not in "".join(describe(withdraw(family, generators=["llava"])))


def test_a_generator_goes_with_all_its_versions_or_one(family):
    assert set(shown(family)) - set(_after(family, generators=["llava:1.5"])) == {"chat3"}
    assert set(_after(family, generators=["llava"])) == {"cap0", "chat0", "chat1", "chat2"}


def test_what_was_made_from_the_withdrawn_goes_too(family):
    assert set(_after(family, generators=["other"])) == {"cap0", "chat3", "chat4"}


def test_a_parent_that_lies_in_another_dataset_takes_its_children_along(family):
    found = withdraw(family, ids=["x", "y"])
    assert "chat2" not in shown(family)
    assert (found.samples, found.unknown["ids"]) == (1, ("y",))
    assert set(_after(family, ids=["cap0"])) == {"chat3", "chat4"}


def _after(directory, **named):
    withdraw(directory, **named)
    return shown(directory)


def test_long_lists_are_looked_up_not_searched(web):
    urls = [f"https://site{n % 1000}.org/page/{n}" for n in range(100_000)]
    starts = [f"https://start{n}.org/*" for n in range(30_000)]
    begin = time.process_time()
    found = withdraw(web, urls=[*urls, *starts, "http://a.org/1"])
    assert time.process_time() - begin < 150
    assert len(found.unknown["urls"]) == 130_000
    assert found.samples == 1


def test_a_withdrawal_waits_for_no_build_but_refuses(web):
    with (web / ".lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(PreflightError, match="at work"):
            withdraw(web, ids=["doc0"])
    assert "doc0" in shown(web)


def test_the_shards_stay_and_a_copy_deletes_for_good(tmp_path):
    sources = [{"name": "qa", "kind": "scenes", "style": "questions", "count": 10}]
    recipe = BuildRecipe(name="t", tasks=1, sources=sources)
    before = build(recipe, tmp_path / "data")
    gone = next(samples(tmp_path / "data"))
    found = withdraw(tmp_path / "data", media_ids=[gone.media[0].media_id])
    assert found.samples == 2, "both questions about the picture"
    assert found.manifest.shards() == before.shards()
    verify(tmp_path / "data")
    assert build(recipe, tmp_path / "data").exclusions == found.manifest.exclusions, "a rebuild keeps them"
    export(tmp_path / "data", tmp_path / "copy", "fovea")
    assert verify(tmp_path / "copy").samples == 18
    assert all(gone.image_bytes[0] not in p.read_bytes() for p in (tmp_path / "copy/shards").iterdir())
    assert read_manifest(tmp_path / "copy").funnel["qa"].dropped == {"excluded: opted out": 2}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTP://X.org", "https://x.org:443/"),
        ("http://x.org:80/a?b#c", "https://x.org/a?b"),
        ("http://x.org./a", "http://x.org/a"),
    ],
)
def test_addresses_that_mean_the_same_are_the_same(one, other):
    assert normal_url(one) == normal_url(other)


@pytest.mark.parametrize("name", ["books/a.html", "http://[", "data:x", "ftp://x.org/A", "//x"])
def test_other_names_stay_as_they_are(name):
    assert normal_url(name) == name
