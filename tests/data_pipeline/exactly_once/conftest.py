"""The inputs of the small build, and its dataset made without a break."""

import json
from pathlib import Path

import pytest

from data_pipeline.build.run import build
from exactly_once import recipe


@pytest.fixture
def inputs(tmp_path: Path, make) -> Path:
    """60 captioned pictures; every tenth caption and picture comes twice."""
    folder = tmp_path / "in"
    folder.mkdir()
    records = []
    for n in range(60):
        of = n - 1 if n % 10 == 9 else n
        (folder / f"{n}.png").write_bytes(make.png(32 + of, 32, color=(of * 4, 90, 250 - of)))
        records.append({"image": f"{n}.png", "caption": f"picture number {of} " + "and more " * 30})
    (folder / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture
def whole(inputs: Path, tmp_path: Path) -> Path:
    """The dataset of an unbroken build."""
    build(recipe(), tmp_path / "whole", root=inputs)
    return tmp_path / "whole"
