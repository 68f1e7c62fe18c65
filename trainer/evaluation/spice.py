"""SPICE of captions (Anderson et al. 2016, arXiv 1607.08822), by the Java program that pycocoevalcap ships.

The parser that it works with is not shipped: pycocoevalcap would download it, and here it is put in place.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data_pipeline.errors import DataError, PreflightError

PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
"""Of stanford-corenlp-full-2015-12-09.zip."""


def spice(hyps: Sequence[Sequence[str]], refs: Sequence[Sequence[Sequence[str]]]) -> float:
    """The mean F-score of tokenised captions, each with its references.

    Raises PreflightError where the program cannot run, DataError where it fails.
    """
    home = _home()
    with tempfile.TemporaryDirectory() as work:
        asked, answered = Path(work, "asked.json"), Path(work, "answered.json")
        page = [
            {"image_id": n, "test": " ".join(hyp), "refs": [" ".join(ref) for ref in of_one]}
            for n, (hyp, of_one) in enumerate(zip(hyps, refs, strict=True))
        ]
        asked.write_text(json.dumps(page), encoding="utf-8")
        command = ["java", "-Xmx8G", "-jar", "spice-1.0.jar", str(asked), "-out", str(answered), "-silent"]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
        if done.returncode or not answered.exists():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DataError(
                f"SPICE's program ended with {done.returncode}: {last}\n  It asks for 8 GB of memory."
            )
        found = json.loads(answered.read_text(encoding="utf-8"))
    scores = [float(item["scores"]["All"]["f"]) for item in found]
    if len(scores) != len(hyps):
        raise DataError(f"SPICE's program scored {len(scores)} of {len(hyps)} captions")
    return sum(scores) / len(scores)


def _home() -> Path:
    """Where the program stands, with all that it needs."""
    if shutil.which("java") is None:
        raise PreflightError("--spice: there is no java on the PATH")
    package = find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package else None
    if not places:
        raise PreflightError("--spice: pycocoevalcap is not installed: pip install 'fovea-vlm[captions]'")
    home = Path(next(iter(places))) / "spice"
    if missing := [name for name in PARSER if not (home / "lib" / name).is_file()]:
        raise PreflightError(
            f"--spice: {home / 'lib'} has no {' and no '.join(missing)}.\n"
            "  Both are in stanford-corenlp-full-2015-12-09.zip, CoreNLP 3.6.0: copy them there."
        )
    return home
