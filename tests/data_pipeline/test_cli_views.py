"""The verbs on a built dataset say what they did, and what was wrong with a command, in the user's words."""

import pytest

from data_pipeline.cli import main


@pytest.fixture
def built(tmp_path, make):
    make.dataset(tmp_path / "d", [make.caption(n) for n in range(6)])
    return str(tmp_path / "d")


def said(capsys, *argv: str) -> tuple[int, str]:
    code = main(["data", *argv])
    seen = capsys.readouterr()
    return code, seen.out + seen.err


def test_a_filter_says_what_it_leaves_out_and_takes_it_back(built, capsys):
    said(capsys, "score", built, "--scorer", "captions")
    code, text = said(capsys, "filter", built, "--keep", "caption_words>=1000")
    assert (code, "6 samples, 6 images; 0 training samples are shown" in text) == (0, True)
    code, text = said(capsys, "filter", built, "--clear", "caption_words")
    assert (code, "left out by filter-caption-words: 0 samples" in text) == (0, True)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["filter", "DIR"], "give either --keep RULE or --clear COLUMN"),
        (["filter", "DIR", "--clear", "clip"], "has no rule on column 'clip'"),
        (["score", "DIR", "--scorer", "clip"], "scorer 'clip' is given with what it reads, as in clip:PATH"),
        (["score", "DIR", "--scorer", "text:x"], "scorer 'text:x' takes no argument"),
        (["withdraw", "DIR"], "nothing is named to withdraw"),
        (["withdraw", "DIR", "--urls-from", "none.txt"], "none.txt cannot be read: No such file"),
        (
            ["decontaminate", "DIR", "--benchmark", "DIR", "--out", "p.html", "--ngram", "2"],
            "--ngram: Input should be greater than or equal to 4 (got 2)",
        ),
    ],
)
def test_a_wrong_command_is_answered_in_its_own_words(built, capsys, argv, expected):
    code, text = said(capsys, *(built if a == "DIR" else a for a in argv))
    assert code == 2
    assert expected in text
    assert "Traceback" not in text
    assert "pydantic" not in text


def test_what_matches_nothing_is_not_said_to_be_held(built, capsys):
    code, text = said(capsys, "withdraw", built, "--id", "nobody")
    assert code == 0
    assert "match nothing: nobody" in text
    assert "still hold it" not in text


def test_what_is_withdrawn_is_still_held(built, capsys):
    _, text = said(capsys, "withdraw", built, "--id", "cap1")
    assert "withdrawn: 1 samples" in text
    assert "The shards still hold it" in text


def test_a_word_list_that_is_not_there_is_a_fault_of_the_recipe(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nfilters: {common_words: none.txt}\n"
        "sources: [{name: s, kind: scenes, style: alt, count: 2}]\n"
    )
    code, text = said(capsys, "build", str(recipe), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "the word list" in text
    assert "none.txt cannot be read: No such file" in text


def test_a_build_says_which_limits_of_a_preset_were_not_judged(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nfilters: {preset: obelics}\nsources: [{name: s, kind: scenes, style: alt, count: 2}]\n"
    )
    code, text = said(capsys, "build", str(recipe), "--out", str(tmp_path / "out"))
    assert code == 4  # nothing is kept by these rules; the notes come all the same
    assert "source 's': max_flagged_words is not judged" in text
    assert "preset obelics is not whole" in text
