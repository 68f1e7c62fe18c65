"""Where a written text differs from the original caption in colours, numbers and objects. English only.

It compares two texts, not text and image: a faulty original makes a true text look false. It sees plain
phrases such as "two red cars", no syntax: "the car beside the red wall" says nothing about the car here.
"""

import re
from collections import defaultdict

_WORD = re.compile(r"[a-z]+|\d+")
_COLOURS = {
    **{
        c: c
        for c in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
    },
    **{"gray": "grey", "grey": "grey", "violet": "purple", "golden": "gold", "gold": "gold"},
    **{"silver": "silver", "beige": "beige", "turquoise": "turquoise", "teal": "turquoise"},
}
_NUMBERS = {
    w: n
    for n, w in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905
}
_BETWEEN = {
    "small", "large", "big", "little", "tall", "short", "long", "old", "new", "young", "bright", "dark",
    "light", "wooden", "metal", "shiny", "of", "the", "and", "other",
}  # fmt: skip
_NO_NOUN = _BETWEEN | {
    "a", "an", "in", "on", "at", "to", "with", "is", "are", "was", "were", "by", "from", "for", "it", "its",
    "that", "this", "which", "or", "as", "has", "have", "there", "color", "colour", "one",
}  # fmt: skip
# The classes of COCO (arXiv 1405.0312), each with its commonest other names, after CHAIR.
_OBJECTS = """
    person people man men woman women boy girl child children kid player lady guy, bicycle bike, car
    automobile sedan, motorcycle motorbike, airplane plane aeroplane jet, bus, train locomotive,
    truck lorry, boat ship, bench, bird, cat kitten, dog puppy, horse pony, sheep lamb, cow cattle
    bull, elephant, bear, zebra, giraffe, backpack rucksack, umbrella parasol, handbag purse, tie,
    suitcase luggage, frisbee, skis ski, snowboard, kite, skateboard, surfboard, bottle, glass, cup
    mug, fork, knife, spoon, bowl, banana, apple, sandwich, broccoli, carrot, pizza, donut doughnut,
    cake, chair, couch sofa, bed, table, toilet, television tv, laptop, mouse, keyboard, phone
    cellphone smartphone, microwave, oven stove, toaster, sink, refrigerator fridge, book, clock,
    vase, scissors, tree, flower, house, building
"""
_OBJECT_OF = {word: row.split()[0] for row in _OBJECTS.split(",") for word in row.split()}


def contradictions(text: str, original: str) -> int:
    """Nouns that both texts give a colour, or a number, and not the same one."""
    mine, theirs = _attributes(text), _attributes(original)
    return sum(
        bool(mine[key]) and bool(theirs[key]) and not mine[key] & theirs[key] for key in mine.keys() & theirs
    )


def unsupported(text: str, original: str) -> float:
    """Share of the text's objects that the original does not name: CHAIR (arXiv 1809.02156) with a caption
    in place of the image's annotation, so an upper bound: a short caption leaves much out. 0 without objects.
    """
    mine = _objects(text)
    return len(mine - _objects(original)) / len(mine) if mine else 0.0


def _tokens(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _singular(word: str) -> str:
    if word in _OBJECT_OF or len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    for end, instead in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss")):
        if word.endswith(end):
            return word.removesuffix(end) + instead
    return word.removesuffix("s")


def _objects(text: str) -> set[str]:
    return {_OBJECT_OF[w] for w in map(_singular, _tokens(text)) if w in _OBJECT_OF}


def _attributes(text: str) -> dict[tuple[str, str], set[str]]:
    """(`colour` or `number`, noun) -> the values that stand before the noun."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    tokens = _tokens(text)
    for i, token in enumerate(tokens):
        kind, value = _attribute(token)
        if kind and (noun := _noun_after(tokens, i)):
            found[kind, noun].add(value)
    return dict(found)


def _attribute(token: str) -> tuple[str, str]:
    if token in _COLOURS:
        return "colour", _COLOURS[token]
    if token in _NUMBERS:
        return "number", str(_NUMBERS[token])
    if token.isdigit() and len(token) <= 3:
        return "number", str(int(token))
    return "", ""


def _noun_after(tokens: list[str], i: int) -> str | None:
    """The word after number or colour, over other attributes: of `two large red cars` the car."""
    for word in tokens[i + 1 : i + 4]:
        if word in _BETWEEN or _attribute(word)[0]:
            continue
        return None if word in _NO_NOUN else _OBJECT_OF.get(_singular(word), _singular(word))
    return None
