"""Real prose: paragraphs of books."""

import re

import pytest


@pytest.fixture
def books(request):
    """Paragraphs of the HTML books, tags taken off by a regular expression."""
    folder = request.config.rootpath.parent / "shared/realdata/html_gutenberg"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    paragraphs = []
    for path in sorted(folder.glob("*/*.htm"))[:4]:
        html = path.read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"<p[^>]*>(.*?)</p>", html, flags=re.DOTALL | re.IGNORECASE)
        paragraphs += [re.sub(r"<[^>]*>", "", p).strip() for p in found[:150]]
    return [p for p in paragraphs if p]
