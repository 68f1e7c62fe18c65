"""What the tests of the shipped recipes share: a build by the command line, proved, and made inputs."""

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.cli import main
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.sample import Sample
from data_pipeline.view import View, samples


class Built:
    """A finished dataset: what it shows, what was dropped, what was excluded."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)

    def samples(self, source: str) -> list[Sample]:
        return list(samples(self.directory, source=source))

    def dropped(self, source: str) -> tuple[dict[str, int], dict[str, int]]:
        """By reason: samples, and images that left alone or with them."""
        counts = self.manifest.funnel[source]
        return counts.dropped, counts.images_dropped

    def excluded(self) -> Counter[str]:
        view = View.open(self.directory, self.manifest)
        return Counter([*view.samples.values(), *(r for of in view.images.values() for r in of.values())])


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def shard_times(directory: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in directory.glob("shards/*")}


@pytest.fixture
def fovea_build(tmp_path):
    """Builds by the command line twice, proves the dataset, and that the repeat changed nothing."""

    def run(recipe: str, inputs: Path, *arguments: str, code: int = 0) -> Built:
        out = tmp_path / f"built-{recipe}"
        command = ["data", "build", recipe, "--inputs", str(inputs), "--out", str(out), *arguments]
        assert main(command) == code
        once, times = contents(out), shard_times(out)
        assert main(command) == code
        assert contents(out) == once
        assert shard_times(out) == times
        assert main(["data", "verify", str(out)]) == 0
        assert (out / "report.html").stat().st_size > 1000
        built = Built(out)
        assert balanced(funnel(built.manifest)) == []
        return built

    return run


_PLAIN = """river mountain garden teacher engine letter window harbour village painter winter summer library
farmer bridge valley kitchen doctor island market forest captain museum theatre railway tower meadow lantern
orchard writer cottage shepherd harvest cathedral blacksmith carriage fountain merchant parchment quiet famous
early northern broken narrow distant heavy built taken brought given held won sold told walked carried"""
_FUNCTION = "the of and in that was is for with as they were by from this which have had not but"


def prose(seed: int, sentences: int = 12) -> list[str]:
    """Paragraphs of English words, every second one a function word; no two seeds share a run of five."""
    rng = random.Random(seed)

    def sentence() -> str:
        pairs = ((rng.choice(_FUNCTION.split()), rng.choice(_PLAIN.split())) for _ in range(6))
        return " ".join(word for pair in pairs for word in pair).capitalize() + "."

    said = [sentence() for _ in range(sentences)]
    return [" ".join(said[i : i + 3]) for i in range(0, sentences, 3)]


def picture(seed: int, width: int = 240, height: int = 200, fmt: str = "PNG") -> bytes:
    """Coarse coloured noise: hashes of two seeds are far apart."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC).save(out, fmt)
    return out.getvalue()


class Make:
    prose = staticmethod(prose)
    picture = staticmethod(picture)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make
