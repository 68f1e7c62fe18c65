"""A build keeps a few examples of what it dropped, in every task, and the report shows them."""

import json

from data_pipeline.build.look.examples import read_examples
from data_pipeline.build.look.report import write_report
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.manifest import read_manifest


def test_every_reason_for_which_something_was_dropped_has_an_example(built):
    manifest = read_manifest(built)
    found = read_examples(built, len(manifest.tasks))
    listed = set()
    for path in (built / "dropped").glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            listed.add((line["source"], line["part"], line["class"]))
    assert {(e.source, e.part, e.reason) for e in found} == listed
    assert ("documents-html", "image", "image too elongated") in listed
    cut = next(e for e in found if e.part == "image" and e.reason == "image too elongated")
    assert cut.images[0].jpeg is not None
    whole = next(e for e in found if e.part == "sample" and e.reason == "image too elongated")
    assert whole.images[0].jpeg is not None
    assert whole.text.endswith("too long")
    write_report(built)
    verify(built)
    assert "400x20, images.max_aspect" in (built / "report.html").read_text()


def test_examples_are_the_same_whatever_the_run(inputs, built, tmp_path):
    build(inputs, tmp_path / "again", bad_inputs="drop", overrides=["heldout=0.3"])
    for path in (built / "examples").iterdir():
        assert path.read_bytes() == (tmp_path / "again/examples" / path.name).read_bytes()
        assert f"examples/{path.name}" in {k for t in read_manifest(built).tasks for k in t.files}
