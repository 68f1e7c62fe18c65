"""METEOR of captions, by the Java program that pycocoevalcap ships: an extra, as it needs both.

Denkowski and Lavie 2014, "Meteor Universal". The score of a set comes from the counts of all its captions: it
is not the mean of the captions' scores.
"""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data_pipeline.errors import DataError

UNASKED = 1000
"""Images for which METEOR is computed without being asked for."""
_ENDED = "METEOR's program ended early; it asks for 2 GB of memory"

_SEPARATOR = " ||| "


def why_not(images: int, asked: bool = False) -> str | None:
    """Why METEOR is left out of the scores of so many images; None: it is not."""
    if shutil.which("java") is None:
        return "there is no java on the PATH"
    if not _jar():
        return "pycocoevalcap is not installed: pip install 'fovea-vlm[captions]'"
    if images > UNASKED and not asked:
        return f"it takes minutes for more than {UNASKED} images: ask for it with --meteor"
    return None


def meteor(hyps: Sequence[Sequence[str]], refs: Sequence[Sequence[Sequence[str]]]) -> float:
    """The score of a set of tokenised captions, each with its references. DataError: its program failed."""
    try:
        return _asked(hyps, refs)
    except BrokenPipeError:
        raise DataError(_ENDED) from None


def _asked(hyps: Sequence[Sequence[str]], refs: Sequence[Sequence[Sequence[str]]]) -> float:
    command = ["java", "-Xmx2G", "-jar", str(_jar()), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as java:
        assert java.stdin
        assert java.stdout
        questions, answers = java.stdin, java.stdout

        def ask(*parts: str, lines: int = 1) -> list[str]:
            questions.write(" ||| ".join(parts) + "\n")
            questions.flush()
            found = [answers.readline().strip() for _ in range(lines)]
            if not all(found):
                raise DataError(_ENDED)
            return found

        counts = [
            ask("SCORE", *map(_plain, references), _plain(hyp))[0]
            for hyp, references in zip(hyps, refs, strict=True)
        ]
        # A line for each caption, and the last one for the set.
        *_, whole = ask("EVAL", *counts, lines=len(hyps) + 1)
        questions.close()
    return float(whole)


def _jar() -> Path | None:
    package = find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package else None
    found = [Path(place) / "meteor" / "meteor-1.5.jar" for place in places or ()]
    return next((jar for jar in found if jar.exists()), None)


def _plain(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace("|||", "").replace("  ", " ")
