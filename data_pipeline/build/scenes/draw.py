"""Scenes: pictures of exactly two coloured shapes, the demo's own source of images that can be described.

A scene is a pure function of (seed, index). Both objects lie wholly inside their own quadrant, with a gap
around the centre, so that "top left" is never a matter of taste.
"""

import io
import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

VERSION = "1"
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 87, 200),
    "yellow": (240, 200, 20),
    "purple": (148, 60, 190),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "diamond")
PLACES = ("top left", "bottom left", "top right", "bottom right")  # left objects first: canonical order
_QUADRANTS = {"top left": (0, 0), "bottom left": (0, 1), "top right": (1, 0), "bottom right": (1, 1)}
_SIZES = (0.26, 0.34)  # of a side; a quadrant without its margins is 0.40 wide
_MARGIN = 0.04
_SPAN = 0.42
_SHARED = 0.2  # probability that the objects share their colour; as much for the shape
# Noise of 0..7 grey levels, in coarse squares, so that no two scenes share their bytes.
_NOISE = bytes(v // 32 for v in range(256))


@dataclass(frozen=True)
class Thing:
    """One object. `box` is (x0, y0, x1, y1) as fractions of the picture."""

    shape: str
    colour: str
    place: str
    box: tuple[float, float, float, float]

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Two things, the left one first; where both are on one side, the upper one first."""

    things: tuple[Thing, Thing]
    background: tuple[int, int, int]
    noise: bytes

    @classmethod
    def at(cls, seed: int, index: int) -> "Scene":
        rng = random.Random(f"scene:{seed}:{index}")
        first = (rng.choice(SHAPES), rng.choice(list(COLOURS)))
        shape, colour = rng.choice([s for s in SHAPES if s != first[0]]), first[1]
        if (share := rng.random()) >= _SHARED:
            colour = rng.choice([c for c in COLOURS if c != first[1]])
            if share < 2 * _SHARED:
                shape = first[0]
        places = sorted(rng.sample(PLACES, 2), key=PLACES.index)
        kinds = [first, (shape, colour)]
        rng.shuffle(kinds)
        things = [Thing(s, c, p, _box(rng, p)) for (s, c), p in zip(kinds, places, strict=True)]
        background = (rng.randint(228, 248), rng.randint(228, 248), rng.randint(228, 248))
        return cls((things[0], things[1]), background, rng.randbytes(256))

    def png(self, size: int = 64) -> bytes:
        picture = Image.new("RGB", (size, size), self.background)
        noise = Image.frombytes("L", (16, 16), self.noise.translate(_NOISE)).resize(
            (size, size), Image.Resampling.NEAREST
        )
        picture = ImageChops.add(picture, Image.merge("RGB", (noise, noise, noise)))
        draw = ImageDraw.Draw(picture)
        for thing in self.things:
            _draw(draw, thing, size)
        out = io.BytesIO()
        picture.save(out, "PNG", compress_level=1)
        return out.getvalue()

    def describe(self) -> str:
        """The canonical description: all that is there, always in the same order."""
        a, b = self.things
        return f"a {a} at the {a.place} and a {b} at the {b.place}"

    def objects(self) -> list[dict[str, object]]:
        return [{"shape": t.shape, "colour": t.colour, "box": list(t.box)} for t in self.things]


def _box(rng: random.Random, place: str) -> tuple[float, float, float, float]:
    side = rng.choice(_SIZES)
    column, row = _QUADRANTS[place]
    x0 = _MARGIN + column * (1 - 2 * _MARGIN - _SPAN) + rng.random() * (_SPAN - side)
    y0 = _MARGIN + row * (1 - 2 * _MARGIN - _SPAN) + rng.random() * (_SPAN - side)
    return (round(x0, 4), round(y0, 4), round(x0 + side, 4), round(y0 + side, 4))


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, size: int) -> None:
    x0, y0, x1, y1 = (round(v * size) for v in thing.box)
    fill = COLOURS[thing.colour]
    match thing.shape:
        case "circle":
            draw.ellipse((x0, y0, x1, y1), fill)
        case "square":
            # Inset, so that no shape gives itself away by its area.
            inset = round((x1 - x0) * 0.06)
            draw.rectangle((x0 + inset, y0 + inset, x1 - inset, y1 - inset), fill)
        case "triangle":
            draw.polygon([((x0 + x1) // 2, y0), (x1, y1), (x0, y1)], fill)
        case "diamond":
            middle = ((x0 + x1) // 2, (y0 + y1) // 2)
            draw.polygon([(middle[0], y0), (x1, middle[1]), (middle[0], y1), (x0, middle[1])], fill)
