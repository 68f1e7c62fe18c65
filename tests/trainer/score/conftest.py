"""Files of predictions and references, written where a test may change them."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    def _write(predictions, references):
        paths = tmp_path / "predictions.json", tmp_path / "references.json"
        for path, page in zip(paths, (predictions, references), strict=True):
            path.write_text(page if isinstance(page, str) else json.dumps(page))
        return paths

    return _write
