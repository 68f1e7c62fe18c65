"""Killed, repeated, run twice, changed: a build ends with every sample once, or refuses and harms nothing."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import yaml

from data_pipeline.build import recipe as recipes
from data_pipeline.build.directory import locked
from data_pipeline.build.executor import Job, LocalExecutor
from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.recipe import BuildRecipe, load_build, recipe_fingerprint
from data_pipeline.build.run import build
from data_pipeline.build.sources import listing, open_reader
from data_pipeline.build.steps import ReadSources
from data_pipeline.build.verify import verify
from data_pipeline.build.write.shards import WriteShards
from data_pipeline.errors import DataError
from data_pipeline.manifest import read_manifest
from data_pipeline.view import read_exclusions, samples

PHOTOS = {"name": "photos", "kind": "captions", "path": "captions.jsonl"}
SCENES = {"name": "scenes", "kind": "scenes", "style": "dense", "count": 900}


def page(**changes) -> dict:
    return {"name": "once", "tasks": 4, "shard_samples": 5, "heldout": 0.2, "sources": [PHOTOS], **changes}


def recipe(**changes) -> BuildRecipe:
    return BuildRecipe.model_validate(page(**changes))


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


def content(directory: Path) -> dict[str, bytes]:
    """Every file but datatrove's logs."""
    found = (p for p in directory.rglob("*") if p.is_file())
    return {n.as_posix(): p.read_bytes() for p in found if (n := p.relative_to(directory)).parts[0] != "logs"}


def sound(directory: Path) -> None:
    verify(directory)
    assert balanced(funnel(read_manifest(directory))) == []


def command(inputs: Path, out: Path, *more: str, **changes) -> list[str]:
    (inputs / "recipe.yaml").write_text(yaml.safe_dump(page(**changes)))
    words = ["data", "build", inputs / "recipe.yaml", "--out", out, *more]
    return [sys.executable, "-m", "data_pipeline.cli", *map(str, words)]


def half_built(inputs: Path, out: Path, **changes) -> None:
    """What a build leaves that ended after its first two tasks: their records and no manifest."""
    build(recipe(**changes), out, root=inputs)
    for name in ("manifest.json", "manifest/00002.json", "manifest/00003.json"):
        (out / name).unlink()


# --- another number of workers or tasks, another recipe -------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_a_build_may_go_on_with_another_number_of_workers(workers, inputs, whole, tmp_path):
    half_built(inputs, tmp_path / "out")
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/manifest").iterdir()}
    build(recipe(), tmp_path / "out", root=inputs, workers=workers)
    assert content(tmp_path / "out") == content(whole)
    assert first == {p: p.stat().st_mtime_ns for p in first}, "what was done is not done again"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": 2}, "tasks: 4 there, 2 here"),
        ({"tasks": 5}, "tasks: 4 there, 5 here"),
        ({"heldout": 0.5}, "heldout: 0.2 there, 0.5 here"),
        ({"images": {"min_side": 40}}, "images.min_side: 16 there, 40 here"),
        (
            {"sources": [{**PHOTOS, "license": "CC0-1.0"}]},
            'sources.photos.license: null there, "CC0-1.0" here',
        ),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_or_number_of_tasks_is_refused_with_the_difference_and_nothing_is_lost(
    changes, told, finished, inputs, whole, tmp_path
):
    out = whole if finished else tmp_path / "half"
    if not finished:
        half_built(inputs, out)
    before = content(out)
    with pytest.raises(DataError, match="made of another recipe") as refused:
        build(recipe(**changes, dedup={"documents": {}}), out, root=inputs)
    assert str(refused.value).splitlines()[1:-1] == [f"  {told}"]
    assert refused.value.exit_code == 4
    assert content(out) == before
    build(recipe(), out, root=inputs)
    sound(out)


def test_a_dataset_of_another_version_of_the_schema_is_refused_as_such(inputs, whole, monkeypatch):
    monkeypatch.setattr(recipes, "SCHEMA_VERSION", 0)
    with pytest.raises(DataError, match=r"made of another version of Fovea\.\n  Choose another --out"):
        build(recipe(), whole, root=inputs)


def test_another_deduplication_keeps_the_shards_and_finds_its_exclusions_anew(inputs, whole, tmp_path):
    times = {p: p.stat().st_mtime_ns for p in (whole / "shards").iterdir()}
    near = {"images": {"near": {}}}
    changed = build(recipe(dedup=near), whole, root=inputs)
    assert times == {p: p.stat().st_mtime_ns for p in (whole / "shards").iterdir()}
    found = list(read_exclusions(whole, changed.exclusions[0]))
    assert len(found) == 6
    sound(whole)
    build(recipe(dedup=near), tmp_path / "fresh", root=inputs)
    assert content(whole) == content(tmp_path / "fresh")
    back = build(recipe(), whole, root=inputs)
    assert back.exclusions == ()
    assert times == {p: p.stat().st_mtime_ns for p in (whole / "shards").iterdir()}


# --- twice at the same time ------------------------------------------------------------------------------


def test_the_second_of_two_builds_is_refused_with_4_and_harms_nothing(inputs, tmp_path):
    half_built(inputs, tmp_path / "out")
    before = content(tmp_path / "out")
    with locked(tmp_path / "out"):
        ran = subprocess.run(command(inputs, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert ran.returncode == 4
    assert "another build is at work" in ran.stderr
    assert content(tmp_path / "out") == before


@pytest.mark.slow
def test_of_three_builds_started_at_once_those_that_run_make_one_dataset(inputs, whole, tmp_path):
    words = command(inputs, tmp_path / "out")
    racing = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [p.communicate(timeout=120)[1] for p in racing]
    codes = [p.returncode for p in racing]
    assert 0 in codes
    assert all(c == 0 or (c == 4 and "another build" in s) for c, s in zip(codes, said, strict=True)), said
    assert content(tmp_path / "out") == content(whole)


LOCK_AND_DIE = """
import os, signal, sys
from pathlib import Path
from data_pipeline.build import recipe as recipes
from data_pipeline.build.directory import locked
with locked(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_build_that_was_killed_stops_nobody(inputs, whole, tmp_path):
    died = subprocess.run([sys.executable, "-c", LOCK_AND_DIE, tmp_path / "out"], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / "out/.lock").exists()
    build(recipe(), tmp_path / "out", root=inputs)
    assert content(tmp_path / "out") == content(whole)


def job_of(inputs: Path, out: Path) -> Job:
    """All tasks of a build as an executor gets them, done or not: what a requeued array does."""
    asked = recipe()
    readers = {s.name: open_reader(s, asked, root=inputs, directory=out, endpoints={}) for s in asked.sources}
    fingerprint = recipe_fingerprint(asked) + listing(readers, versions=False)
    steps = [ReadSources(readers), WriteShards(out, asked, fingerprint, ("read",))]
    return Job(name="twice", pipeline=steps, tasks=asked.tasks, logs=out / "logs", is_done=never)


def never(rank: int) -> bool:
    return False


def run_at(moment: float, inputs: Path, out: Path) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
    LocalExecutor().run(job_of(inputs, out))


def test_the_same_task_run_twice_at_once_leaves_one_record_and_the_same_bytes(inputs, tmp_path):
    run_at(0, inputs, tmp_path / "one")
    context = multiprocessing.get_context("fork")
    moment = time.monotonic() + 0.3
    both = [context.Process(target=run_at, args=(moment, inputs, tmp_path / "two")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [p.exitcode for p in both] == [0, 0]
    assert content(tmp_path / "two") == content(tmp_path / "one")


# --- killed at any time ----------------------------------------------------------------------------------


def workers_of(child: subprocess.Popen) -> list[psutil.Process]:
    """Its grandchildren: its own children are the servers of multiprocessing."""
    if child.poll() is not None:
        return []
    try:
        below = psutil.Process(child.pid).children(recursive=True)
        return [p for p in below if p.ppid() != child.pid]
    except psutil.NoSuchProcess:
        return []


def wait_for(child: subprocess.Popen, happened: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not happened() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["a worker", "the whole group"])
def test_kills_at_random_times_end_in_the_same_dataset(victim, inputs, tmp_path):
    rng = random.Random(victim)
    out = tmp_path / "out"
    longer = {"tasks": 6, "shard_samples": 30, "sources": [SCENES, PHOTOS]}
    words = command(inputs, out, "--workers", "2", **longer)
    killed = 0
    for _ in range(4):
        child = subprocess.Popen(
            words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        moment = rng.choice((".lock", "build.json", "shards", "manifest", "dropped"))
        wait_for(child, lambda moment=moment: (out / moment).exists())
        if victim == "a worker":
            wait_for(child, lambda child=child: workers_of(child))
        time.sleep(rng.uniform(0, 0.2))
        if victim == "a worker":
            workers = workers_of(child)
            for worker in rng.sample(workers, min(1, len(workers))):
                worker.kill()
            killed += bool(workers)
            assert child.wait(60) in (0, 75), "the build says that it is to be repeated"
        else:
            killed += child.poll() is None
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(60)
        if (out / "manifest.json").exists():
            break
    assert killed > 1
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    build(recipe(**longer), tmp_path / "whole", root=inputs)
    assert content(out) == content(tmp_path / "whole")
    sound(out)


# --- inputs that change ----------------------------------------------------------------------------------


def swap_caption(inputs: Path, a: str = "picture number 3 ", b: str = "PICTURE NUMBER 3 ") -> None:
    """Another caption of the same length: only the time of the file tells."""
    file = inputs / "captions.jsonl"
    file.write_text(file.read_text().replace(a, b))


def test_inputs_that_changed_after_a_kill_are_read_again(inputs, tmp_path):
    half_built(inputs, tmp_path / "out")
    swap_caption(inputs)
    build(recipe(), tmp_path / "out", root=inputs)
    build(recipe(), tmp_path / "fresh", root=inputs)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert any("PICTURE NUMBER 3 " in s.text for s in samples(tmp_path / "out"))


def test_a_lost_shard_is_not_made_again_of_other_inputs_than_the_rest(inputs, whole, tmp_path):
    swap_caption(inputs)
    next((whole / "shards").glob("*-00003-000.arrow")).unlink()
    build(recipe(), whole, root=inputs)
    build(recipe(), tmp_path / "fresh", root=inputs)
    assert content(whole) == content(tmp_path / "fresh")


class Touching(LocalExecutor):
    """Runs the tasks, and meanwhile somebody writes to the inputs."""

    def run(self, job, after=lambda done: None):
        super().run(job, after)
        swap_caption(Path(job.pipeline[0].readers["photos"].tree.root))


def test_inputs_that_change_during_a_build_end_it_and_the_repeat_reads_them_again(inputs, tmp_path):
    with pytest.raises(DataError, match=r"changed while the build read them: captions.jsonl\n"):
        build(recipe(), tmp_path / "out", root=inputs, executor=Touching())
    assert not (tmp_path / "out/manifest.json").exists()
    build(recipe(), tmp_path / "out", root=inputs)
    build(recipe(), tmp_path / "fresh", root=inputs)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


# --- what datatrove does by itself (data is lost or doubled), not so here ---------------------------------


DIE_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.run import build

def deadly(self, data, rank=0, world_size=1, whole=CheckImages.run):
    for n, doc in enumerate(whole(self, data, rank, world_size)):
        if rank == 1 and n == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        yield doc

CheckImages.run = deadly
build(sys.argv[1], sys.argv[2])
"""


def test_a_task_that_died_half_way_leaves_no_half_file_and_goes_on_where_it_stood(inputs, whole, tmp_path):
    out = tmp_path / "out"
    (inputs / "recipe.yaml").write_text(yaml.safe_dump(page()))
    died = subprocess.run([sys.executable, "-c", DIE_IN_THE_MIDDLE, inputs / "recipe.yaml", out], check=False)
    assert died.returncode == -signal.SIGKILL
    assert sorted(p.name for p in (out / "manifest").glob("*.json")) == ["00000.json"]
    finals = [p for p in (out / "shards").iterdir() if ".tmp-" not in p.name]
    assert any("-00001-" in p.name for p in finals), "the task had finished shards"
    before = content(whole)
    assert all(p.read_bytes() == before[f"shards/{p.name}"] for p in finals)
    with pytest.raises(DataError, match="no manifest"):
        read_manifest(out)
    done = (out / "manifest/00000.json").stat().st_mtime_ns
    build(load_build(inputs / "recipe.yaml")[0], out, root=inputs)
    assert (out / "manifest/00000.json").stat().st_mtime_ns == done
    assert content(out) == content(whole)


def test_one_large_file_is_divided_among_all_tasks_and_no_line_is_read_twice(inputs, whole):
    manifest = read_manifest(whole)
    written = [sum(s.samples for s in t.shards if s.format == "arrow") for t in manifest.tasks]
    assert len(written) == 4
    assert all(written)
    assert sum(written) == 60
    assert len({s.id for s in samples(whole)}) == 60


def document(folder: Path, rows: list[dict], **changes) -> list:
    (folder / "interleaved.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = {"name": "docs", "kind": "interleaved", "path": "interleaved.jsonl"}
    formats = ["arrow", "webdataset", "parquet"]
    asked = recipe(sources=[source], formats=formats, tasks=1, heldout=0, **changes)
    build(asked, folder / "built", root=folder)
    sound(folder / "built")
    return list(samples(folder / "built"))


def test_a_document_of_images_alone_is_kept(tmp_path, make):
    (tmp_path / "a.png").write_bytes(make.png(40, 40))
    found = document(tmp_path, [{"sequence": [{"image": "a.png"}]}])
    assert [[s.type for s in f.segments] for f in found] == [["image"]]


def test_a_first_document_without_images_takes_none_from_the_others(tmp_path, make):
    data = make.png(40, 40)
    (tmp_path / "a.png").write_bytes(data)
    words = {"text": "words that are long enough to be kept"}
    found = document(tmp_path, [{"sequence": [words]}, {"sequence": [words, {"image": "a.png"}]}])
    assert [f.image_bytes for f in found] == [(), (data,)]
    for shard in (tmp_path / "built/shards").glob("*.arrow"):
        with pa.memory_map(str(shard)) as f:
            stored = pa.ipc.open_file(f).read_all().column("images").to_pylist()
        assert [[i["bytes"] for i in row] for row in stored] == [[], [data]]


def test_new_keys_nulls_and_other_types_in_late_rows_are_no_failure(tmp_path):
    def row(n, **more):
        return {"sequence": [{"text": f"words of document {n} that are long enough"}], **more}

    rows = [row(n, score=1, tag="x") for n in range(70)]
    rows += [row(70, score=None, tag=["x"]), row(71, new={"deep": 1}), row(72, score="high")]
    found = document(tmp_path, rows)
    assert len(found) == 73
    assert {k for f in found[70:] for k in json.loads(f.general_metadata)} == {"score", "tag", "new"}


OFFLINE = """
import sys

def forbid(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        raise RuntimeError(f"the network: {event} {args}")

sys.addaudithook(forbid)
if sys.argv[1] == "control":
    import urllib.request
    urllib.request.urlopen("http://127.0.0.1:9/")
from data_pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_build_with_languages_repetition_and_minhash_asks_the_network_for_nothing(inputs, tmp_path):
    sources = [PHOTOS, {"name": "pages", "kind": "html", "path": "web"}]
    (inputs / "web").mkdir()
    text = "<p>The words of this page are plain English, and it has a second sentence too.</p>"
    for n in range(3):
        (inputs / f"web/{n}.html").write_text(f"<html><body>{text}<img src='../{n}.png'></body></html>")
    (inputs / "recipe.yaml").write_text(
        yaml.safe_dump(
            page(
                tasks=1,
                sources=sources,
                filters={"languages": ["en"], "repetition": {}, "personal_data": ["email", "ip", "phone"]},
                dedup={"documents": {"minhash": {}}, "images": {"near": {}}},
                bad_inputs="drop",
            )
        )
    )
    words = ["data", "build", inputs / "recipe.yaml", "--out", tmp_path / "out"]
    ran = subprocess.run([sys.executable, "-c", OFFLINE, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    control = subprocess.run([sys.executable, "-c", OFFLINE, "control"], capture_output=True, check=False)
    assert b"the network: socket." in control.stderr, "the guard does not see the network"
    sound(tmp_path / "out")


# --- every sample once, whatever the recipe --------------------------------------------------------------


def random_inputs(folder: Path, rng: random.Random, make) -> tuple[set[str], set[bytes]]:
    """Captions, documents and pages; each text holds one word that comes nowhere else, each picture one
    colour. Some are spoilt. Returns the words and the pictures of those that are sound."""
    words: set[str] = set()
    pictures: set[bytes] = set()
    number = iter(range(10**6))

    def word(sound: bool = True) -> str:
        made = f"token{next(number)}x{rng.randrange(16**8):08x}"
        if sound:
            words.add(made)
        return made

    def picture(place: Path, sound: bool = True) -> str:
        n = next(number)
        data = make.png(40, 40 + n % 9, color=(n % 256, n // 256, 7))
        (place / f"{n}.png").write_bytes(data if sound else data[: rng.choice((0, 9, len(data) // 2))])
        if sound:
            pictures.add(data)
        return f"{n}.png"

    captions = []
    for _ in range(rng.randrange(1, 60)):
        sound = rng.random() < 0.85
        captions.append({"image": picture(folder, sound), "caption": f"a caption, {word(sound)}"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(c) + "\n" for c in captions))
    rows = []
    for _ in range(rng.randrange(1, 25)):
        sequence = [
            {"text": " ".join(["filling"] * rng.randrange(5, 60)) + f" {word()}"}
            if rng.random() < 0.6
            else {"image": picture(folder, rng.random() < 0.8)}
            for _ in range(rng.randrange(1, 9))
        ]
        rows.append(json.dumps({"sequence": [*sequence, {"text": f"the end of a document, {word()}"}]}))
        if rng.random() < 0.1:
            rows.append(rng.choice(("{not json", "[]", '{"sequence": 3}', "null")))
    (folder / "interleaved.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "web").mkdir()
    for n in range(rng.randrange(1, 12)):
        body = "".join(
            f"<p>a paragraph, {word()}</p><img src='{picture(folder / 'web', rng.random() < 0.8)}'>"
            for _ in range(rng.randrange(1, 6))
        )
        (folder / "web" / f"{n}.html").write_text(f"<html><body>{body}</body></html>")
    return words, pictures


@pytest.mark.parametrize("seed", range(6))
def test_every_sound_text_and_picture_of_random_inputs_is_written_exactly_once(seed, tmp_path, make):
    rng = random.Random(seed)
    folder = tmp_path / "in"
    folder.mkdir()
    words, pictures = random_inputs(folder, rng, make)
    cut = {"max_chars": rng.choice((80, 300, 5000)), "max_images": rng.randrange(1, 5), "min_chars": 0}
    sources = [
        PHOTOS,
        {"name": "docs", "kind": "interleaved", "path": "interleaved.jsonl", **cut},
        {"name": "pages", "kind": "html", "path": "web", **cut},
    ]
    asked = recipe(
        sources=rng.sample(sources, 3),
        tasks=rng.randrange(1, 6),
        shard_samples=rng.randrange(1, 20),
        shard_bytes=rng.choice((2000, 2**20)),
        heldout=rng.choice((0, 0.3)),
        formats=rng.choice((["arrow"], ["arrow", "parquet"], ["webdataset", "arrow"])),
        bad_inputs="drop",
    )
    out = tmp_path / "out"
    build(asked, out, root=folder)
    sound(out)
    written = list(samples(out))
    assert len({s.id for s in written}) == len(written)
    found = [w for s in written for w in s.text.split() if w.startswith("token")]
    assert sorted(found) == sorted(words)
    assert sorted(b for s in written for b in s.image_bytes) == sorted(pictures)
