"""What is said and asked about scenes: alt texts, questions with one answer, facts without a picture."""

import random
from dataclasses import dataclass

from data_pipeline.build.scenes.draw import COLOURS, SHAPES, Scene, Thing

QUESTION_TYPES = ("colour", "shape", "count", "relation", "where", "exists")
_JUNK = ("img", "photo", "pic", "untitled", "copy", "final", "DSC", "thumbnail", "image", "stock")
_SIDES = {"triangle": "three", "square": "four", "diamond": "four", "circle": "none"}
_MIXTURES = {("red", "blue"): "purple", ("yellow", "blue"): "green"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LIKE = {"red": "a ripe tomato", "green": "fresh grass", "blue": "a clear sky", "yellow": "a lemon",
         "purple": "an aubergine", "black": "coal"}  # fmt: skip


@dataclass(frozen=True)
class Question:
    type: str
    text: str
    answer: str


def alt_text(scene: Scene, rng: random.Random) -> str:
    """Alt text as the web has it: short, partial, with junk in it."""
    named = list(scene.things)
    rng.shuffle(named)
    words = [str(t) for t in named[: rng.choice((1, 1, 2))]]
    text = " and ".join(words)
    junk = f"{rng.choice(_JUNK)} {rng.randint(0, 9999):04d}"
    return rng.choice((text, f"{text} {junk}", f"{junk} {text}", f"{text} {rng.choice(_JUNK)}"))


def ask(scene: Scene, rng: random.Random, n: int) -> list[Question]:
    """`n` questions of different types, each with exactly one right answer in the picture."""
    makers = {
        "colour": _colour,
        "shape": _shape,
        "count": _count,
        "relation": _relation,
        "where": _where,
        "exists": _exists,
    }
    order = list(QUESTION_TYPES)
    rng.shuffle(order)
    found = (makers[kind](scene, rng) for kind in order)
    return [q for q in found if q is not None][:n]


def _by_colour(scene: Scene) -> list[Thing]:
    """The things that their colour alone identifies: both, or none where they share it."""
    a, b = scene.things
    return [] if a.colour == b.colour else [a, b]


def _colour(scene: Scene, rng: random.Random) -> Question:
    thing = rng.choice(scene.things)
    return Question("colour", f"what colour is the shape at the {thing.place}?", thing.colour)


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    if not (things := _by_colour(scene)):
        return None
    thing = rng.choice(things)
    return Question("shape", f"what shape is {thing.colour}?", thing.shape)


def _count(scene: Scene, rng: random.Random) -> Question:
    present = [t.colour for t in scene.things]
    # As many zeros as ones; twos where the scene has them.
    absent = rng.choice([c for c in COLOURS if c not in present])
    colour = rng.choice(present) if rng.random() < 0.5 else absent
    return Question("count", f"how many {colour} shapes are there?", str(present.count(colour)))


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    if not (pair := _by_colour(scene)):
        return None
    rng.shuffle(pair)  # which is asked for first is a coin: yes as often as no
    word = "above" if _one_side(scene) else "left of"
    answer = "yes" if pair[0] is scene.things[0] else "no"
    return Question("relation", f"is the {pair[0].colour} shape {word} the {pair[1].colour} one?", answer)


def _where(scene: Scene, rng: random.Random) -> Question | None:
    if not (things := _by_colour(scene)):
        return None
    thing = rng.choice(things)
    return Question("where", f"where is the {thing.colour} shape?", thing.place)


def _exists(scene: Scene, rng: random.Random) -> Question:
    present = [t.colour for t in scene.things]
    if rng.random() < 0.5:
        return Question("exists", f"is there a {rng.choice(present)} shape?", "yes")
    return Question(
        "exists", f"is there a {rng.choice([c for c in COLOURS if c not in present])} shape?", "no"
    )


def _one_side(scene: Scene) -> bool:
    """Both things stand on the left, or both on the right."""
    a, b = scene.things
    return a.place.split()[1] == b.place.split()[1]


def fact(rng: random.Random) -> Question:
    """A question about shapes and colours that needs no picture."""
    colour, other = rng.sample(list(COLOURS), 2)
    shape, second = rng.sample(SHAPES, 2)
    a, b = rng.randint(1, 5), rng.randint(1, 5)
    (x, y), mixed = rng.choice(list(_MIXTURES.items()))
    word, category = rng.choice(((colour, "colour"), (shape, "shape")))
    return rng.choice(
        (
            Question("sides", f"how many straight sides does a {shape} have?", _SIDES[shape]),
            Question("mixture", f"what colour do you get from {x} and {y} paint?", mixed),
            Question(
                "sum",
                f"i draw {_NUMBERS[a]} {colour} {shape}s and {_NUMBERS[b]} {other} {second}s. "
                "how many shapes do i draw?",
                _NUMBERS[a + b],
            ),
            Question("like", f"what colour is {_LIKE[colour]}?", colour),
            Question("kind", f"is {word} a colour or a shape?", category),
        )
    )
