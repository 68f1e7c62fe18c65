"""Every sound text and picture of random inputs is written exactly once, whatever the recipe."""

import json
import random
from pathlib import Path

import pytest

from data_pipeline.build.run import build
from data_pipeline.view import samples
from exactly_once import PHOTOS, recipe, sound


def random_inputs(folder: Path, rng: random.Random, make) -> tuple[set[str], set[bytes]]:
    """Captions, documents and pages; each text holds one word that comes nowhere else, each picture one
    colour. Some are spoilt. Returns the words and the pictures of those that are sound."""
    words: set[str] = set()
    pictures: set[bytes] = set()
    number = iter(range(10**6))

    def word(sound: bool = True) -> str:
        made = f"token{next(number)}x{rng.randrange(16**8):08x}"
        if sound:
            words.add(made)
        return made

    def picture(place: Path, sound: bool = True) -> str:
        n = next(number)
        data = make.png(40, 40 + n % 9, color=(n % 256, n // 256, 7))
        (place / f"{n}.png").write_bytes(data if sound else data[: rng.choice((0, 9, len(data) // 2))])
        if sound:
            pictures.add(data)
        return f"{n}.png"

    captions = []
    for _ in range(rng.randrange(1, 60)):
        sound = rng.random() < 0.85
        captions.append({"image": picture(folder, sound), "caption": f"a caption, {word(sound)}"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(c) + "\n" for c in captions))
    rows = []
    for _ in range(rng.randrange(1, 25)):
        sequence = [
            {"text": " ".join(["filling"] * rng.randrange(5, 60)) + f" {word()}"}
            if rng.random() < 0.6
            else {"image": picture(folder, rng.random() < 0.8)}
            for _ in range(rng.randrange(1, 9))
        ]
        rows.append(json.dumps({"sequence": [*sequence, {"text": f"the end of a document, {word()}"}]}))
        if rng.random() < 0.1:
            rows.append(rng.choice(("{not json", "[]", '{"sequence": 3}', "null")))
    (folder / "interleaved.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "web").mkdir()
    for n in range(rng.randrange(1, 12)):
        body = "".join(
            f"<p>a paragraph, {word()}</p><img src='{picture(folder / 'web', rng.random() < 0.8)}'>"
            for _ in range(rng.randrange(1, 6))
        )
        (folder / "web" / f"{n}.html").write_text(f"<html><body>{body}</body></html>")
    return words, pictures


@pytest.mark.parametrize("seed", range(6))
def test_every_sound_text_and_picture_of_random_inputs_is_written_exactly_once(seed, tmp_path, make):
    rng = random.Random(seed)
    folder = tmp_path / "in"
    folder.mkdir()
    words, pictures = random_inputs(folder, rng, make)
    cut = {"max_chars": rng.choice((80, 300, 5000)), "max_images": rng.randrange(1, 5), "min_chars": 0}
    sources = [
        PHOTOS,
        {"name": "docs", "kind": "interleaved", "path": "interleaved.jsonl", **cut},
        {"name": "pages", "kind": "html", "path": "web", **cut},
    ]
    asked = recipe(
        sources=rng.sample(sources, 3),
        tasks=rng.randrange(1, 6),
        shard_samples=rng.randrange(1, 20),
        shard_bytes=rng.choice((2000, 2**20)),
        heldout=rng.choice((0, 0.3)),
        formats=rng.choice((["arrow"], ["arrow", "parquet"], ["webdataset", "arrow"])),
        bad_inputs="drop",
    )
    out = tmp_path / "out"
    build(asked, out, root=folder)
    sound(out)
    written = list(samples(out))
    assert len({s.id for s in written}) == len(written)
    found = [w for s in written for w in s.text.split() if w.startswith("token")]
    assert sorted(found) == sorted(words)
    assert sorted(b for s in written for b in s.image_bytes) == sorted(pictures)
