"""Scenes: a pure function of seed and index, told truly, and no question that gives its answer away."""

import io
import random
from collections import Counter

import pytest
from PIL import Image

from data_pipeline.build.scenes.documents import write_documents
from data_pipeline.build.scenes.draw import COLOURS, Scene
from data_pipeline.build.scenes.text import QUESTION_TYPES, ask, fact

SCENES = [Scene.at(0, i) for i in range(1500)]


def test_a_scene_depends_on_seed_and_index_alone():
    assert Scene.at(3, 5).png() == Scene.at(3, 5).png()
    assert len({Scene.at(s, i).png() for s in range(3) for i in range(30)}) == 90


def test_each_thing_lies_wholly_inside_the_quadrant_it_is_said_to_be_in():
    for scene in SCENES:
        places = [t.place for t in scene.things]
        assert places[0] != places[1]
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            vertical, horizontal = thing.place.split()
            assert (x1 < 0.5) if horizontal == "left" else (x0 > 0.5)
            assert (y1 < 0.5) if vertical == "top" else (y0 > 0.5)
            assert min(thing.box) > 0
            assert max(thing.box) < 1


def test_what_the_objects_say_is_what_the_pixels_show():
    for scene in SCENES[:100]:
        image = Image.open(io.BytesIO(scene.png()))
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            centre = image.getpixel((round((x0 + x1) * 32), round((y0 * 0.4 + y1 * 0.6) * 64)))
            assert centre == COLOURS[thing.colour]


def middle(thing):
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def place(thing):
    x, y = middle(thing)
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def related(things, words):
    """The answer to "is the RED shape left of|above the BLUE one", from the boxes."""
    (first,) = (middle(t) for t in things if t.colour == words[2])
    (second,) = (middle(t) for t in things if t.colour == words[-2])
    axis = 1 if "above" in words else 0
    assert abs(first[axis] - second[axis]) > 0.1
    return "yes" if first[axis] < second[axis] else "no"


def test_every_answer_follows_from_the_scene():
    """Judged from shapes, colours and boxes alone."""
    for i, scene in enumerate(SCENES):
        things = scene.things
        for q in ask(scene, random.Random(i), 6):
            words = q.text.rstrip("?").split()
            match q.type:
                case "colour":
                    assert [t.colour for t in things if q.text.endswith(f"{place(t)}?")] == [q.answer]
                case "shape":
                    assert [t.shape for t in things if t.colour == words[-1]] == [q.answer]
                case "count":
                    assert q.answer == str(sum(t.colour == words[2] for t in things))
                case "where":
                    assert [place(t) for t in things if t.colour == words[3]] == [q.answer]
                case "exists":
                    assert q.answer == ("yes" if words[3] in [t.colour for t in things] else "no")
                case "relation":
                    assert q.answer == related(things, words)


def test_a_blind_guess_at_yes_or_no_is_right_half_of_the_time():
    answers = {kind: Counter() for kind in QUESTION_TYPES}
    for i, scene in enumerate(SCENES):
        for q in ask(scene, random.Random(f"b{i}"), 6):
            answers[q.type][q.answer] += 1
    for kind in ("exists", "relation"):
        yes = answers[kind]["yes"] / answers[kind].total()
        assert yes == pytest.approx(0.5, abs=0.04)
    assert max(answers["count"].values()) / answers["count"].total() < 0.6
    assert max(answers["colour"].values()) / answers["colour"].total() < 0.25


def test_facts_are_short_questions_with_an_answer():
    facts = [fact(random.Random(i)) for i in range(300)]
    assert all(f.answer and f.text.endswith("?") for f in facts)
    assert len({f.type for f in facts}) == 5


def test_documents_about_scenes_are_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        write_documents(tmp_path / name, pages=2, pdfs=1, seed=4)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 5
    for f in files:
        if f.suffix != ".pdf":  # pdfium writes a random file identifier
            assert (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes()
