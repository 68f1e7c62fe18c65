"""Nothing of hostile inputs runs, leaves its place, takes too much or is lost from the books."""

import json
import os
import pickle
import shutil
from pathlib import Path

from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.verify import verify
from data_pipeline.view import samples
from hostile.images import ESCAPE, IMAGES, KEPT
from hostile.program import CONTROLS, CPU_SECONDS, PEAK, Program, fovea
from hostile.rows import rows
from hostile.tars import tars


def test_nothing_ran_and_nothing_was_written_outside(built):
    assert not built.canary.exists()
    assert sorted(p.name for p in built.directory.parent.iterdir()) == ["in", "out", "secret.jpg"]
    assert not Path("/tmp/c.jpg").exists()
    pickle.loads((built.directory.parent / "in/images/pickle.png").read_bytes()).close()
    assert built.canary.exists(), "what opened it would have run it"
    built.canary.unlink()


def test_what_came_in_went_out_or_was_counted(built):
    assert balanced(funnel(built.manifest)) == []
    for source, counts in built.manifest.funnel.items():
        assert counts.balanced
        listed = built.reasons(source)
        assert sum(counts.dropped.values()) == sum(map(len, listed.values())), source
    assert verify(built.directory).samples == len(built.samples)


def test_memory_and_time_stay_bounded(built):
    assert built.used["peak"] < PEAK
    assert built.used["cpu"] < CPU_SECONDS


def test_no_control_character_of_the_inputs_reaches_a_terminal(built, tmp_path):
    texts = [built.out, built.err]
    copy, listed = tmp_path / "copy", tmp_path / "opted_out.txt"
    shutil.copytree(built.directory, copy)
    listed.write_text(f"https://h.org/{ESCAPE}\nhttps://h.org/\x9b\n")
    code, out, err, _ = fovea("withdraw", copy, "--urls-from", listed, "--id", ESCAPE)
    assert (code, "1 ids match nothing" in out) == (0, True), err
    texts += [out, err]
    for verb in (("verify",), ("stats",), ("preview", "--out", tmp_path / "p.html", "--n", 400)):
        code, out, err, _ = fovea(verb[0], built.directory, *verb[1:])
        assert code == 0, err
        texts += [out, err]
    for text in texts:
        assert not CONTROLS.search(text), repr(text)
    for page in (tmp_path / "p.html", built.directory / "report.html"):
        assert "<script" not in page.read_text().lower()


def test_a_hostile_benchmark_is_searched_for_what_is_sound_in_it(built, tmp_path):
    bench, words = tmp_path / "bench", "the caption of frames-5000.gif"
    bench.mkdir()
    refused = {name: found for name, found in IMAGES.items() if found[1] != KEPT}
    for name, (data, _) in {**refused, **rows(), **tars(built.canary)}.items():
        (bench / name).write_bytes(pickle.dumps(Program(built.canary)) if name == "pickle.png" else data)
    (bench / "weights.npy").write_bytes(pickle.dumps(Program(built.canary)))
    (bench / "deep.json").write_bytes(b"[" * 200_000)
    (bench / os.fsdecode(b"no-utf8-\xff.png")).write_bytes(IMAGES["palette-alpha.png"][0])
    (bench / os.fsdecode(b"no-utf8-\xfe.json")).write_text(
        json.dumps([{"question": f"{words} \ud800 {ESCAPE}"}])
    )
    (bench / "link.json").symlink_to("/etc/hostname")
    os.mkfifo(bench / "pipe.jpg")
    copy = tmp_path / "copy"
    shutil.copytree(built.directory, copy)
    page = tmp_path / "pairs.html"
    options = ("--benchmark", bench, "--out", page, "--remove", "--ngram", 5)
    code, out, err, used = fovea("decontaminate", copy, *options)
    assert code == 0, err
    assert used["peak"] < PEAK
    assert not built.canary.exists()
    assert not CONTROLS.search(out + err)
    kept = {n for n, (_, reason) in IMAGES.items() if reason == KEPT}
    left = {s.media[0].url for s in samples(copy, source="images")}
    assert left == kept - {"palette-alpha.png", "frames-5000.gif"}, "one by its picture, one by its words"
    verify(copy)


def test_with_stop_the_same_inputs_are_listed_on_one_screen(built):
    code, out, err, _ = fovea("build", built.recipe, "--out", built.directory.with_name("stopped"))
    assert code == 4
    assert "Traceback" not in out + err
    assert "--bad-inputs drop" in err
    assert "a\\x1b]0;owned\\x07\\x1b[31m\\n.jpg" in err, "the name is spelled out"
    assert len(err.splitlines()) <= 24
    assert not CONTROLS.search(out + err)
    assert not (built.directory.with_name("stopped") / "manifest.json").exists()
