"""A wrong build recipe ends with exit code 2 before anything is read, and says where and what."""

import pytest

from data_pipeline.cli import main

# What is written, and what the message must say.
SOURCE = "  - {name: a, kind: captions, path: images}"
WRONG: dict[str, tuple[str, list[str]]] = {
    "an unknown preset": (
        "name: x\nfilters:\n  preset: obelix\nsources:\n" + SOURCE,
        [":3: filters.preset", "'obelics'", "'obelix'"],
    ),
    "a negative threshold": (
        "name: x\nfilters:\n  document: {min_words: -1}\nsources:\n" + SOURCE,
        [":3: filters.document.min_words", "greater than or equal to 0", "-1"],
    ),
    "a share above one": (
        "name: x\nfilters:\n  paragraph:\n    max_special: 40\nsources:\n" + SOURCE,
        [":4: filters.paragraph.max_special", "less than or equal to 1"],
    ),
    "two errors at once": (
        "name: x\nheldout: 1.5\nimages: {min_sied: 3}\nsources:\n" + SOURCE,
        ["2 errors", ":2: heldout", ":3: images.min_sied", "did you mean 'min_side'?"],
    ),
    "a protocol that runs commands": (
        "name: x\nsources:\n  - {name: a, kind: captions, path: 'pipe://touch x'}",
        ["source 'a'", "'pipe://touch x'", "allowed are paths and file,"],
    ),
    "a protocol chained into another": (
        "name: x\nsources:\n  - {name: a, kind: captions, path: 'zip://x::file:///etc/y.zip'}",
        ["source 'a'", "is no place to read from"],
    ),
    "a protocol of remote files": (
        "name: x\nsources:\n  - {name: a, kind: html, path: 'ftp://127.0.0.1/pub'}",
        ["source 'a'", "'ftp://127.0.0.1/pub'", "https"],
    ),
    "a word list that is missing": (
        "name: x\nfilters:\n  flagged_words: no_words.txt\n  document: {max_flagged_words: 0.1}\nsources:\n"
        + SOURCE,
        ["word list", "no_words.txt"],
    ),
    "a distance out of range": (
        "name: x\ndedup:\n  images:\n    near: {distance: 40}\nsources:\n" + SOURCE,
        [":4: dedup.images.near.distance", "less than or equal to 15"],
    ),
    "a fetch key of another name": (
        "name: x\nfetch:\n  per_host_rates: 3\nsources:\n" + SOURCE,
        [":3: fetch.per_host_rates", "did you mean 'per_host_rate'?"],
    ),
    "a robot without the name": (
        "name: x\nfetch:\n  user_agent: Mozilla/5.0\nsources:\n" + SOURCE,
        [":3: fetch.user_agent", "Mozilla/5.0"],
    ),
    "networks that a recipe may not open": (
        "name: x\nfetch:\n  allow: [10.0.0.0/8]\nsources:\n" + SOURCE,
        [":3: fetch.allow", "unknown key 'allow'"],
    ),
    "a kind of source that is none": (
        "name: x\nsources:\n  - {name: a, kind: wark, path: images}",
        [":3: sources.a", "wark", "'warc'"],
    ),
    "a layout of another kind": (
        "name: x\nsources:\n  - {name: a, kind: captions, path: images, layout: obelics}",
        ["source 'a'", "layout 'obelics'", "captions"],
    ),
    "two sources of one name": ("name: x\nsources:\n" + SOURCE + "\n" + SOURCE, ["come twice: a"]),
    "no source": ("name: x\nsources: []", [":2: sources", "at least 1"]),
    "a synthetic source that nobody writes": (
        "name: x\nsources:\n  - {name: a, kind: synthetic, path: d, task: caption}",
        [":3: sources.a", "endpoint", "checkpoint"],
    ),
    "a key of an endpoint in the address": (
        "name: x\nsources:\n  - {name: a, kind: synthetic, path: d, task: qa, endpoint: 'http://k:s3cr3t@h/v1'}",
        [":3: sources.a", "no credentials"],
    ),
    "a path that is not there": (
        "name: x\nsources:\n  - {name: a, kind: pdf, path: nowhere}",
        ["source 'a'", "nothing at", "nowhere", "--inputs"],
    ),
    "a page that is a list": ("- name: x", ["a recipe is a mapping"]),
    "a page that is no YAML": ("name: [x", ["not YAML", "line 1"]),
    "a tag that would run": ("name: !!python/object/apply:os.system ['touch x']", ["not YAML"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_recipe_ends_with_exit_code_2_and_says_where_and_what(tmp_path, capsys, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    page, parts = WRONG[wrong]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/captions.jsonl").write_text("")
    (tmp_path / "r.yaml").write_text(page)
    assert main(["data", "build", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    for part in parts:
        assert part in err, err
    assert "s3cr3t" not in out + err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 12
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "x").exists()
