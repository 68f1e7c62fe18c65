"""The builders of datasets with copies, shared with the tests of deduplication."""

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "dedup" / "conftest.py"
_spec = importlib.util.spec_from_file_location("dedup_conftest", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
copies = _module.copies
