"""What a user sees who got something wrong: exit code, one screen, the name of the thing, no traceback."""

import shutil
import subprocess
import sys

import pytest
from PIL import Image

from trainer.cli import main
from trainer.engine.attempts import Attempt, Lease


def assert_says(done, code, *parts):
    assert done.returncode == code, (done.returncode, done.stderr[-2000:])
    said = done.stderr
    assert "Traceback" not in said
    assert len(said.splitlines()) < 25
    for part in parts:
        assert str(part) in said, said


def train(fovea, run_dir, *more, stage="align", nproc=2):
    return fovea(
        "train",
        run_dir / "recipe.yaml",
        "--stage",
        stage,
        "--run",
        run_dir,
        "--nproc",
        nproc,
        *more,
    )


def test_a_misspelt_recipe_key(run_dir, fovea):
    file = run_dir / "recipe.yaml"
    file.write_text(file.read_text().replace("warmup_steps", "warmup_stepz"))
    line = 1 + file.read_text().splitlines().index("  warmup_stepz: 2")
    assert_says(
        train(fovea, run_dir), 2, f"recipe.yaml:{line}", "warmup_stepz", "did you mean 'warmup_steps'"
    )


def test_two_misspelt_keys_are_both_reported(run_dir, fovea):
    file = run_dir / "recipe.yaml"
    file.write_text(file.read_text().replace("warmup_steps", "warmup_stepz").replace("seed:", "sead:"))
    assert_says(train(fovea, run_dir), 2, "2 errors", "did you mean 'warmup_steps'", "did you mean 'seed'")


def test_a_missing_manifest(run_dir, fovea):
    (run_dir / "data" / "manifest.json").unlink()
    assert_says(train(fovea, run_dir), 4, run_dir / "data" / "manifest.json", "fovea data build")


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_shard(run_dir, fovea, how):
    shard = sorted((run_dir / "data" / "shards").glob("scenes_dense-train-*.arrow"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data if how == "flipped" else data[:-100])
    assert_says(train(fovea, run_dir), 4, shard.name, "altered" if how == "flipped" else "truncated")
    assert_says(fovea("data", "verify", run_dir / "data"), 4, shard.name)


def test_an_unknown_stage(run_dir, fovea):
    assert_says(train(fovea, run_dir, stage="aline"), 2, "'aline'", "did you mean 'align'", "align, instruct")


def test_a_global_batch_that_does_not_divide(run_dir, fovea):
    assert_says(train(fovea, run_dir, nproc=3), 2, "global_batch 4", "3 ranks", "1, 2")


def test_an_unknown_source_in_the_mixture(run_dir, fovea):
    file = run_dir / "recipe.yaml"
    file.write_text(file.read_text().replace("{scenes_alt: 1,", "{scenes_olt: 1,"))
    assert_says(train(fovea, run_dir), 2, "scenes_olt", "did you mean 'scenes_alt'")


def test_an_unknown_ds_config(run_dir, fovea):
    done = train(fovea, run_dir, "stages.align.ds_config=zero_3")
    assert_says(done, 2, "zero_3", "did you mean 'zero3'")


def test_a_file_in_place_of_the_run_directory(run_dir, fovea):
    file = run_dir / "recipe.yaml"
    assert_says(fovea("train", "tiny", "--stage", "align", "--run", file), 2, "a file stands there", file)


def test_a_second_process_on_the_same_stage(run_dir, fovea):
    lease = Lease.take(run_dir / "align", Attempt.here("recipe"))
    assert_says(train(fovea, run_dir), 3, "in use", run_dir / "align")
    lease.release(0)


def test_a_checkpoint_that_is_none(run_dir, fovea):
    assert_says(fovea("eval", run_dir / "align"), 2, "no checkpoint", "RUN/STAGE")
    assert_says(fovea("export", run_dir / "data", run_dir / "out"), 2, "no checkpoint")


@pytest.fixture
def documents(tmp_path):
    """A folder with one good captioned picture, and room for a bad one."""
    folder = tmp_path / "documents"
    folder.mkdir()
    Image.new("RGB", (200, 160), "teal").save(folder / "good.jpg")
    (folder / "captions.json").write_text(
        '[{"file": "good.jpg", "caption": "a teal wall"}, {"file": "bad.jpg", "caption": "something else"}]'
    )
    return folder


def test_a_truncated_image(documents, fovea, tmp_path):
    Image.effect_noise((200, 160), 60).save(documents / "bad.jpg")
    (documents / "bad.jpg").write_bytes((documents / "bad.jpg").read_bytes()[:-500])
    assert_says(fovea("data", "build", documents, "--out", tmp_path / "out"), 4, "bad.jpg", "truncated")


def test_an_html_page_saved_as_jpg(documents, fovea, tmp_path):
    (documents / "bad.jpg").write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    assert_says(fovea("data", "build", documents, "--out", tmp_path / "out"), 4, "bad.jpg", "HTML")


def test_a_pdf_that_is_none(documents, fovea, tmp_path):
    shutil.copy(documents / "good.jpg", documents / "bad.jpg")
    (documents / "paper.pdf").write_bytes(b"\x89PNG not a PDF")
    assert_says(fovea("data", "build", documents, "--out", tmp_path / "out"), 4, "paper.pdf", "%PDF-")


def test_bad_inputs_can_be_dropped_and_are_counted(documents, fovea, tmp_path):
    (documents / "bad.jpg").write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    done = fovea("data", "build", documents, "--out", tmp_path / "out", "--bad-inputs", "drop")
    assert done.returncode == 0, done.stderr
    stats = fovea("data", "stats", tmp_path / "out")
    assert "1" in stats.stdout
    assert fovea("data", "verify", tmp_path / "out").returncode == 0


def test_the_demo_on_a_folder_that_is_none(fovea, tmp_path):
    assert_says(fovea("demo", "--out", tmp_path / "o", "--data", tmp_path / "nowhere"), 2, "nowhere")


def test_help_is_quick_and_loads_no_torch(fovea):
    code = "import sys, trainer.cli; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = fovea("--help")
    assert done.returncode == 0
    for verb in ("demo", "data", "train", "eval", "score", "export", "report", "backbones"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare", "a", "b", "--json"], "is a directory: name a file"),
        (["report", "run", "--out"], "is a directory: name a file"),
        (["eval", "run/stage", "--out"], "is a directory: name a file for the held-out results"),
    ],
)
def test_a_directory_in_place_of_a_file_to_write_is_refused_before_any_work(words, says, tmp_path, capsys):
    try:
        code = main([*words, str(tmp_path)])
    except SystemExit as e:  # by the parser
        code = e.code
    assert code == 2
    assert says in capsys.readouterr().err
