"""The dataset in every format: in a folder, by file: and behind a server."""

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data_pipeline import manifest as m
from data_pipeline.sample import Media, Sample, Segment
from shards import Ranges, build


@pytest.fixture(scope="module")
def written(make) -> list[Sample]:
    """Every kind, with what is awkward: ids that are no file names, absent pictures, columns above 16 KiB."""
    found = [make.document(n, paragraphs=4, pictures=n % 4) for n in range(60)]
    found += [replace(make.caption(n), source="docs") for n in range(20)]
    found += [replace(make.dialogue(n), source="docs") for n in range(10)]
    found[3] = replace(found[3], id="a/b.c d", url="https://example.org/3", scores={"clip": 0.25})
    found[5] = replace(found[5], image_bytes=(None,), media=(Media(media_id="x", error="not fetched"),))
    found[6] = replace(found[6], segments=(*found[6].segments, Segment(type="text", text="word " * 9000)))
    found[7] = replace(found[7], media=tuple(replace(x, width=24, height=16) for x in found[7].media))
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory, written) -> tuple[Path, m.Manifest]:
    """The samples in all three formats, as a build writes them, in three shards."""
    directory = tmp_path_factory.mktemp("built")
    return directory, build(directory, written)


@pytest.fixture
def server(built) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Ranges, directory=str(built[0]))
    ) as running:
        running.asked, running.ranges, running.failures, running.sizes = [], True, [], True
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(params=["folder", "file", "http"])
def root(request, built) -> str | Path:
    match request.param:
        case "folder":
            return built[0]
        case "file":
            return f"file://{built[0]}"
    return request.getfixturevalue("server").url
