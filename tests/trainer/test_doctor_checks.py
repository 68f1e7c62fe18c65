"""The checks of `fovea doctor`, each on something that is truly broken."""

import json
import os
import resource
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

import captioned_squares
from trainer.config import load_recipe
from trainer.doctor import devices, disk, host, need, recipe, slurm, software, storage
from trainer.doctor.crew import Crew
from trainer.doctor.finding import Finding, found_by
from trainer.doctor.storage import Shared
from trainer.engine.attempts import Attempt, Lease
from trainer.sizes import sizes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """A run directory with a recipe, a dataset of one source, and a tokenizer."""
    return captioned_squares.lay_out(tmp_path)


@pytest.fixture
def small(run):
    return load_recipe(run / "recipe.yaml")


def bad(findings):
    return [f for f in findings if f.status in ("warn", "fail")]


def only(findings) -> Finding:
    (found,) = findings if not isinstance(findings, Finding) else [findings]
    return found


def test_a_python_outside_of_what_the_package_asks_for_fails():
    assert software.python().status == "ok"
    found = software.python("3.10.9", ">=3.11,<3.13")
    assert (found.status, found.said) == ("fail", "3.10.9, Fovea needs >=3.11,<3.13")


def test_packages_that_are_missing_or_too_old_fail_and_optional_ones_count_where_they_are_there():
    assert only(software.packages()).status == "ok"
    asked = ["numpy>=99", "no-such-package>=1", "wandb-no-such>=1; extra == 'x'", "pyarrow>=98; extra == 'x'"]
    wrong, old = software.packages([*asked, "pillow>=98; python_version < '3'"])
    assert wrong.status == "fail"
    assert "numpy " in wrong.said
    assert "no-such-package missing (needs >=1)" in wrong.said
    assert "pillow" not in wrong.said
    assert (old.status, old.said.split()[0]) == ("warn", "pyarrow")


def test_without_a_compiler_no_operator_can_be_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = software.deepspeed_operators()
    assert found.status == "warn"
    assert "no C++ compiler and no ninja" in found.said
    assert "cpu_adam" in found.said


def test_shared_memory_must_hold_the_batches_of_all_workers(small, tmp_path):
    assert host.shared_memory(small, 2, tmp_path).status == "ok"
    greedy = load_recipe(tmp_path / "recipe.yaml", ["data.workers=2", "data.prefetch_gib=102400"])
    found = host.shared_memory(greedy, 2, tmp_path)
    assert found.status == "fail"
    assert "2 ranks with 2 workers each need 200 TiB" in found.said
    assert host.shared_memory(None, 1, tmp_path / "none").status == "fail"


def test_a_rank_bound_to_one_core_is_warned_of_its_workers(small, run):
    assert host.cores(small, 1, 1).status == "ok"
    busy = load_recipe(run / "recipe.yaml", ["data.workers=4096"])
    assert host.cores(busy, 1, 1).status == "warn"
    assert host.cores(busy, 1).status == "warn"
    every = os.cpu_count()
    assert f"{every / 2:.3g} of {every} for each rank" in host.cores(small, 2, every).said


def test_a_low_limit_of_open_files_is_a_warning(small):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
    try:
        low = host.open_files(small, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (low.status, low.said.partition(";")[0]) == ("warn", "ulimit -n is 400")
    assert host.open_files(small, 2, 1024).status == "ok"
    assert host.open_files(small, 1024, 1024).status == "warn"


def test_locked_memory_matters_where_there_is_infiniband(tmp_path):
    (tmp_path / "mlx5_0").touch()
    assert host.locked_memory(2**16, tmp_path).status == "warn"
    assert "mlx5_0" in host.locked_memory(2**16, tmp_path).said
    assert host.locked_memory(resource.RLIM_INFINITY, tmp_path).status == "ok"
    assert host.locked_memory(2**16, tmp_path / "none").status == "ok"


def test_scratch_must_be_written_to():
    assert only(host.scratch(Path("/proc"))).status == "fail"
    assert only(host.scratch()).status in ("ok", "warn")


SMI = """0, NVIDIA H200, 570.86.15, 143771, 143154, 0
1, NVIDIA H200, 570.86.15, 143771, 143154, 3
2, NVIDIA L4, 570.86.15, 23034, 22563, [N/A]
"""


def test_lines_of_nvidia_smi_are_read_and_uncorrected_errors_fail():
    there = devices.parse_gpus(SMI)
    assert [(g.index, g.free, g.ecc) for g in there] == [(0, 143154, 0), (1, 143154, 3), (2, 22563, None)]
    found = only(devices.ecc_errors(there))
    assert (found.status, found.said) == ("fail", "uncorrected memory errors: GPU 1: 3")
    assert only(devices.ecc_errors(there[::2])).status == "ok"
    with pytest.raises(ValueError):
        devices.parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver")


@pytest.mark.skipif(devices.torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_a_matter_of_what_the_recipe_asks_for(small, run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    nowhere = tmp_path / "nvidiactl"
    assert only(devices.gpus(0, 1, devices.needs_gpu(small), nowhere)).status == "ok"
    liger = load_recipe(run / "recipe.yaml", ["stages.align.kernels=liger"])
    found = only(devices.gpus(0, 1, devices.needs_gpu(liger), nowhere))
    assert (found.status, found.said) == ("warn", "none here; stage align takes Liger's kernels")
    nowhere.touch()  # a driver, and a torch that does not see its GPUs
    found = only(devices.gpus(0, 1, "", nowhere))
    assert found.status == "fail"
    assert "sees none" in found.said
    stage = only(recipe.stages(liger, 1))
    assert (stage.name, stage.status) == ("stage align", "fail")


def alone(directory: Path) -> Shared:
    return Shared(directory / ".doctor-test", Crew(0, 1, {0: "here"}), None, float("inf"), 1.0)


def test_a_directory_that_cannot_be_written_to_fails_and_one_that_can_is_left_as_it_was(tmp_path):
    found = only(storage.run_directory(alone(Path("/proc")), Path("/proc")))
    assert (found.name, found.status) == ("run directory", "fail")
    assert "/proc cannot be written to" in found.said
    names = [f.name for f in storage.run_directory(alone(tmp_path), tmp_path)]
    assert names == ["shared directory", "rename", "one owner", "write speed"]
    assert not list(tmp_path.iterdir())
    assert storage.probe_of(tmp_path / "not" / "there", "x").parent == tmp_path


def test_a_full_file_system_is_told_from_one_that_is_not_ours(tmp_path):
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "tmpfs", tmp_path], check=False
    )
    if mount.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        narrow = only(host.scratch(tmp_path))
        found = bad(storage.run_directory(alone(tmp_path), tmp_path))
        little, few = disk.free_space(tmp_path, None)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert [f.status for f in found] == ["fail"]
    assert "No space left" in found[0].said
    assert "make room" in found[0].fix
    assert [f.status for f in (narrow, little, few)] == ["warn"] * 3


def test_a_page_that_is_half_of_one_writing_is_not_whole(tmp_path):
    page = tmp_path / "page"
    page.write_bytes(b"1" * storage._PAGE)
    assert storage._is_whole(page)
    page.write_bytes(b"1" * (storage._PAGE // 2) + b"2" * (storage._PAGE // 2))
    assert not storage._is_whole(page)
    page.write_bytes(b"")
    assert not storage._is_whole(page)


def test_each_file_is_looked_for_from_other_nodes_and_a_rank_looks_for_few():
    assert storage.neighbours([0], 0) == []
    assert storage.neighbours([0, 2, 3], 2) == [3, 0]
    near = {r: storage.neighbours(range(1024), r) for r in range(1024)}
    assert max(map(len, near.values())) == 64
    looked = {(r, n) for n, those in near.items() for r in those}
    assert all(sum((r, n % 1024) in looked for n in range(r - 64, r)) == 64 for r in range(1024))


TWO = Crew(0, 2, {0: "n1", 1: "n2"})


def test_what_ranks_tell_of_a_directory_that_is_not_to_be_relied_upon_fails():
    assert storage.judge_reads({0: [50, 0], 1: [900, 0]}, TWO).status == "ok"
    torn = storage.judge_reads({0: [50, 0], 1: [900, 3]}, TWO)
    assert (torn.status, torn.where) == ("fail", ("n2",))
    assert storage.judge_owners({0: False, 1: True}, TWO).status == "ok"
    assert [storage.judge_owners(dict.fromkeys((0, 1), all_), TWO).status for all_ in (True, False)] == [
        "fail"
    ] * 2
    assert storage.judge_writes({0: [2**26, 1.0], 1: [2**26, 2.0]}, TWO).said.startswith(
        "64 MiB/s with fsync, 2 "
    )
    four = Crew(0, 4, {0: "n1", 1: "n1", 2: "n2", 3: "n2"})
    slow = storage.judge_writes({r: [2**26, 9.0 if r == 2 else 1.0] for r in range(4)}, four)
    assert (slow.status, slow.where) == ("warn", ("n2",))
    shared = replace(alone(Path("/run")), crew=TWO)
    seen = [storage.judge_sight(shared, *how).status for how in (([], 0.1), ([], 6.0), ([1], 10.0))]
    assert seen == ["ok", "warn", "fail"]


def test_the_second_who_links_to_a_name_does_not_own_it(tmp_path):
    for name in "ab":
        (tmp_path / name).touch()
    assert [storage._linked(tmp_path / n, tmp_path / "owner") for n in "ab"] == [True, False]


def test_free_space_is_held_against_the_checkpoints_to_come(small, run):
    assert need.bytes_of_checkpoints(small, run) is None
    for step, size in ((4, 1000), (8, 1500)):
        path = run / "align" / "checkpoints" / f"step_{step:06d}"
        path.mkdir(parents=True)
        (path / "rank_00000.safetensors").write_bytes(b"x" * size)
    # Two are kept, of which 2,500 bytes are there, and one more is written before the oldest goes.
    assert need.bytes_of_checkpoints(small, run) == 2 * 1500 - 2500 + 1500
    assert next(disk.free_space(run, 4500)).status == "ok"
    assert next(disk.free_space(run, 10**18)).status == "fail"


def test_before_a_first_checkpoint_the_expected_shape_says_how_large_it_is(run):
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    language = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    language |= {"vocab_size": 320, "intermediate_size": 64}
    expects = {"vision": vision | {"image_size": 32, "patch_size": 8}, "language": language, "layout": "tiny"}
    (run / "fp32.json").write_text('{"zero_optimization": {"stage": 3}}')

    def said(ds_config):
        words = [f"backbones.expects={json.dumps(expects)}", f"stages.align.ds_config={ds_config}"]
        return need.bytes_of_checkpoints(load_recipe(run / "recipe.yaml", words), run)

    shaped = load_recipe(run / "recipe.yaml", [f"backbones.expects={json.dumps(expects)}"])
    model = sizes(shaped)[0].modules
    trained = sum(m.trainable for m in model)
    frozen = sum(m.parameters for m in model) - trained
    assert 0 < trained < frozen
    # Three checkpoints: a weight and two moments of what is trained; and once what is frozen.
    assert said(run / "fp32.json") == 3 * 3 * 4 * trained + 4 * frozen
    assert said("zero3") == 3 * 3 * 4 * trained + 2 * frozen
    assert said("zero3-bf16-states") == 3 * 3 * 2 * trained + 2 * frozen


def faults(text, saves=None, requeued=True):
    return [f.said for f in slurm.script_faults("job.sh", text, saves, requeued)]


def test_the_scripts_that_ship_are_queued_again_and_told_in_time():
    shipped = [p.read_text() for p in sorted((ROOT / "slurm").glob("stage*.sh"))]
    assert len(shipped) == 4
    for text in shipped:
        assert faults(text, saves=140.0) == []
        assert faults(text, saves=160.0) == [
            "job.sh is told 300 s before its end, a checkpoint takes 160 s to save"
        ]
    assert slurm.soonest(shipped) == 300


def test_scripts_that_lose_work_are_told_why():
    assert "may not be queued again" in faults("#SBATCH --no-requeue --signal=USR1@60\n")[0]
    assert "may not be queued again" in faults("#SBATCH --signal=USR1@60\n", requeued=False)[0]
    assert "asks for no signal" in faults("#SBATCH --requeue\necho --signal=USR1@60\n")[0]
    alone = "#SBATCH --requeue\n#SBATCH --signal=B:USR1@60\n"
    assert "the script alone" in faults(alone)[0]
    assert faults(f"{alone}trap 'kill -USR1 $!' USR1\n") == []


def test_time_left_is_told_in_local_time():
    now = datetime(2026, 11, 22, 23, 30)
    job = {"TimeLimit": "1-00:00:00", "EndTime": "2026-11-23T12:00:00"}
    assert slurm.time_left(job, now).said == "12.5 hours of this job, of 1-00:00:00"
    assert slurm.time_left({"TimeLimit": "UNLIMITED", "EndTime": "Unknown"}, now).status == "ok"


def test_the_longest_save_is_read_from_the_attempts_and_held_against_kill_wait(small, run):
    assert slurm.saves_s(small, run) is None
    lease = Lease.take(run / "align", Attempt.here("r"))
    lease.saved(4, 42.0)
    lease.release(0)
    assert slurm.saves_s(small, run) == slurm.saves_s(None, run) == 42.0
    assert only(slurm.kill_wait({"KillWait": "30 sec"}, 42.0)).status == "warn"
    assert only(slurm.kill_wait({"KillWait": "60 sec"}, 42.0)).status == "ok"
    assert only(slurm.kill_wait({}, 42.0)).status == "skipped"


def test_a_sound_run_directory_passes_and_what_is_not_there_yet_is_skipped(small, run):
    assert [f.status for f in recipe.tokenizer(small, run)] == ["ok", "ok"]
    assert only(recipe.data(small, run, float("inf"))).said == "3 samples each of docs read and decoded"
    assert recipe.backbones(small, run).status == "skipped"
    empty = run / "elsewhere"
    assert only(recipe.tokenizer(small, empty)).status == "skipped"
    assert only(recipe.data(small, empty, float("inf"))).status == "skipped"


def test_stages_are_held_against_the_number_of_ranks_and_their_ds_config(small, run):
    assert only(recipe.stages(small, 2)).status == "ok"
    assert "does not divide over 3 ranks" in only(recipe.stages(small, 3)).said
    wrong = load_recipe(run / "recipe.yaml", ["stages.align.ds_config=zero9"])
    assert "zero9" in only(recipe.stages(wrong, 1)).said


def changed(path: Path, change) -> None:
    page = json.loads(path.read_text())
    change(page)
    path.write_text(json.dumps(page))


def test_a_tokenizer_whose_image_token_falls_into_pieces_fails(small, run):
    file = run / "backbones" / "tokenizer" / "tokenizer.json"
    changed(file, lambda page: page["added_tokens"].pop())
    found = only(found_by("tokenizer", lambda: recipe.tokenizer(small, run)))
    assert found.status == "fail"
    assert "<|image|>" in found.said


def test_a_tokenizer_that_loses_letters_fails(small, run):
    file = run / "backbones" / "tokenizer" / "tokenizer.json"
    changed(file, lambda page: page.update(normalizer={"type": "Lowercase"}))
    found = only(found_by("tokenizer", lambda: recipe.tokenizer(small, run)))
    assert found.status == "fail"
    assert "zwei äpfel" in found.said


def test_a_chat_template_that_writes_other_tokens_than_training_fails(small, run):
    (run / "backbones" / "tokenizer" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}\n{% endfor %}"
    )
    ours, template = recipe.tokenizer(small, run)
    assert (ours.status, template.name, template.status) == ("ok", "chat template", "fail")
    (run / "backbones" / "tokenizer" / "chat_template.jinja").write_text("{% for m in messages %}{{ m }}")
    _, template = recipe.tokenizer(small, run)
    assert "cannot be rendered: TemplateSyntaxError" in template.said


def test_a_shard_with_one_byte_changed_is_named(small, run):
    shard = sorted((run / "data").rglob("*.arrow"))[-1]  # holds the last sample
    with shard.open("r+b") as f:
        f.seek(shard.stat().st_size // 2)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))
    found = only(recipe.data(small, run, float("inf")))
    assert (found.name, found.status) == ("data docs", "fail")
    assert f"shard {shard} was altered" in found.said


def test_a_picture_that_cannot_be_decoded_is_named_with_its_shard(small, run):
    shutil.rmtree(run / "data")
    captioned_squares.dataset(run / "data", 5, b"no picture")
    found = list(recipe.data(small, run, float("inf")))
    assert {f.status for f in found} == {"warn"}
    assert "sample 4 (row 4 of " in found[-1].said


def test_sources_for_which_no_time_is_left_are_named(small, run):
    found = only(recipe.data(small, run, until=0.0))
    assert "no time for docs" in found.said
