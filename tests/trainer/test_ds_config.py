"""DeepSpeed's JSON: what ships is taken by DeepSpeed, what cannot work is refused with reason and fix."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)

from data_pipeline.errors import ConfigError, PreflightError
from float16 import FP16, WITHOUT
from trainer.engine import ds_keys
from trainer.engine.ds_config import OWNED_BY_RECIPE, merge_ds_config, read_ds_config
from trainer.engine.initialize import require

SHIPPED = sorted(Path("ds_configs").glob("*.json"))
Z3 = {"stage": 3, "stage3_param_persistence_threshold": 0}
CPU = {"device": "cpu"}
NVME = {"device": "nvme", "nvme_path": "/x"}
READ = {"pipeline_read": True}


def merged(config):
    return merge_ds_config(config, micro_batch=2, accumulation=1, world_size=1, clip=1.0)


def keys_of(config, path=""):
    for key, value in config.items():
        yield from keys_of(value, f"{path}{key}.") if isinstance(value, dict) else [f"{path}{key}"]


@pytest.fixture
def read(tmp_path):
    def read(config, ranks=None):
        file = tmp_path / "mine.json"
        file.write_text(json.dumps(config))
        return read_ds_config(str(file), ranks)

    return read


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.stem)
def test_what_ships_is_taken_by_us_and_by_deepspeed(file):
    config = read_ds_config(file.stem, ranks=8)
    theirs = DeepSpeedConfig(merged(config))
    assert theirs.zero_optimization_stage == config["zero_optimization"]["stage"]


def test_the_readme_tells_of_every_file_and_of_every_key_in_them():
    text = Path("ds_configs/README.md").read_text()
    files, keys = text.split("## What each value is for")
    assert {p.stem for p in SHIPPED} == set(re.findall(r"^\| `([\w-]+)` \|", files, re.MULTILINE))
    told = set(re.findall(r"`([\w.]+)`", keys))
    for file in SHIPPED:
        for key in keys_of(json.loads(file.read_text())):
            assert {key, key.rpartition(".")[2], ".".join(key.split(".")[-2:])} & told, (file, key)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ds_keys.Zero, DeepSpeedZeroConfig),
        (ds_keys.Bf16, DeepSpeedBF16Config),
        (ds_keys.Fp16, DeepSpeedFP16Config),
        (ds_keys.OffloadParam, DeepSpeedZeroOffloadParamConfig),
        (ds_keys.OffloadOptimizer, DeepSpeedZeroOffloadOptimizerConfig),
    ],
)
def test_keys_that_are_taken_are_keys_of_deepspeed(ours, theirs):
    names = {field.alias or name for name, field in theirs.model_fields.items()}
    assert set(ours.model_fields) <= names
    assert set(ds_keys.Aio.model_fields) <= set(AIO_DEFAULT_DICT)


@pytest.mark.parametrize("key", OWNED_BY_RECIPE)
def test_a_key_that_the_recipe_owns_is_refused_with_who_says_it(key, read):
    *sections, last = key.split(".")
    config = {last: 1}
    for section in reversed(sections):
        config = {section: config}
    with pytest.raises(ConfigError, match=re.escape(f"{key} (a stage says it: {OWNED_BY_RECIPE[key]})")):
        read(config)


REFUSED = {
    "a misspelt key": ({"zero_optimisation": {}}, "did you mean 'zero_optimization'"),
    "a misspelt key inside": (
        {"zero_optimization": {"stage3_param_persistance_threshold": 1}},
        "zero_optimization.stage3_param_persistance_threshold: .* mean 'stage3_param_persistence_threshold'",
    ),
    "auto": ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "write the value"),
    "a stage that is none": ({"zero_optimization": {"stage": 4}}, r"zero_optimization.stage: .*got 4"),
    "two precisions": ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "one of them, or none"),
    "ZeRO 0 in bf16": ({"bf16": {"enabled": True}}, "set the stage to 1"),
    "ZeRO 0 in fp16": ({"fp16": {"enabled": True}}, "set the stage to 1"),
    "ZeRO 1 that adds up in float32": (
        {
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {"stage": 1},
        },
        "set the stage to 2",
    ),
    "ZeRO 0 that adds up in bf16": ({"data_types": {"grad_accum_dtype": "bf16"}}, "only fp32"),
    "offloaded weights that are whole": (
        {"zero_optimization": {"stage": 2, "offload_param": CPU}},
        "offload_param: only with stage 3",
    ),
    "an offloaded optimizer that is whole": (
        {"zero_optimization": {"stage": 0, "offload_optimizer": CPU}},
        "offload_optimizer: only with stage 1, 2 or 3",
    ),
    "a drive without a path": (
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
        "offload_optimizer: device nvme needs nvme_path",
    ),
    "a drive at stage 2": (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}},
        "only with stage 3",
    ),
    "weights on a drive": (
        {"zero_optimization": {**Z3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}},
        "offload_param: device nvme: .* in no checkpoint; set it to cpu",
    ),
    "one room for two parts": (
        {"zero_optimization": {**Z3, "offload_optimizer": {**NVME, **READ, "buffer_count": 7}}},
        "buffer_count 7: 8 are needed",
    ),
    "DeepSpeed's default for three parts": (
        {"zero_optimization": {**Z3, "offload_optimizer": {**NVME, **READ, "pipeline_write": True}}},
        "buffer_count 4: 12 are needed",
    ),
    "hpZ at stage 2": (
        {"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 2}},
        "only with stage 3",
    ),
    "quantised at stage 1": (
        {"zero_optimization": {"stage": 1, "zero_quantized_gradients": True}},
        "zero_quantized_gradients: only with stage 3",
    ),
    "master weights in bf16 alone": (
        {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}, "zero_optimization": Z3},
        "both or neither",
    ),
    "states in bf16 offloaded": (
        {
            "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
            "zero_optimization": {**Z3, "offload_optimizer": CPU},
        },
        "offload_optimizer.device none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_ranks_start(case, read):
    config, says = REFUSED[case]
    with pytest.raises(ConfigError, match=says):
        read(config)


def test_all_faults_come_at_once(read):
    with pytest.raises(ConfigError) as e:
        read({"zero_optimization": {"stage": 7, "overlap_com": True}, "bf16": {"enabled": "auto"}})
    assert len(str(e.value).splitlines()) == 4, e.value


def test_hpz_divides_the_ranks(read):
    config = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 4}}
    assert read(config) == read(config, ranks=8) == config
    with pytest.raises(ConfigError, match=r"does not divide 6 ranks.\n.*1, 2, 3, 6"):
        read(config, ranks=6)


def test_exponents_of_json_are_taken_where_deepspeed_takes_them(read):
    config = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 5e8}}
    assert read(config) == config


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused where there is no GPU")
@pytest.mark.parametrize("key", ["zero_quantized_weights", "zero_quantized_gradients"])
def test_quantisation_without_a_gpu_is_refused(key):
    with pytest.raises(PreflightError, match=f"{key} need a GPU"):
        require({"zero_optimization": {**Z3, key: True}})
    require({"zero_optimization": {**Z3, "zero_hpz_partition_size": 2}})


def test_a_drive_that_cannot_be_used_is_refused(tmp_path):
    says = "is no directory" if AsyncIOBuilder().is_compatible(verbose=False) else "libaio"
    drive = {"device": "nvme", "nvme_path": str(tmp_path / "missing")}
    with pytest.raises(PreflightError, match=says):
        require({"zero_optimization": {**Z3, "offload_optimizer": drive}})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stage_trains_with_the_files_that_ship(run_dir, fovea, metrics):
    losses = {}
    for name in ("zero3-large", "zero3-offload", "zero3-bf16-states", *(("zero3-fp16",) if FP16 else ())):
        done = fovea(
            "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2,
            "stages.align.steps=2", f"stages.align.ds_config={name}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses[name] = [m["loss"] for m in metrics(run_dir / "align")]
        shutil.rmtree(run_dir / "align")
    assert losses["zero3-large"] == losses["zero3-offload"]
    for name, of in losses.items():
        assert of == pytest.approx(losses["zero3-large"], abs=5e-3), name
    if not FP16:
        pytest.skip(f"all but zero3-fp16 passed: {WITHOUT}")


@pytest.mark.parametrize("supported", [True, False])
def test_float16_is_refused_where_the_device_has_none(supported, monkeypatch):
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: supported)
    page = read_ds_config("zero3-fp16")
    with nullcontext() if supported else pytest.raises(PreflightError, match=r"fp16.*\n.*a file in bf16"):
        require(page)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hpz_trains_a_stage_that_was_loaded_in_parts_as_without_it(run_dir, fovea, metrics):
    file = run_dir / "mine.json"
    page = json.loads(Path("ds_configs/zero3-hpz.json").read_text())
    page["zero_optimization"]["zero_hpz_partition_size"] = 2
    file.write_text(json.dumps(page))
    losses = []
    for config in (file, "zero3-large"):
        done = fovea(
            "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 4,
            "stages.align.micro_batch=1", "stages.align.steps=2", f"stages.align.ds_config={config}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses.append([m["loss"] for m in metrics(run_dir / "align")])
        shutil.rmtree(run_dir / "align")
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="refused where there is no GPU")
def test_a_stage_ends_with_code_3_where_a_file_that_ships_cannot_run(run_dir, fovea):
    file = run_dir / "mine.json"
    page = json.loads(Path("ds_configs/zero3-zeropp.json").read_text())
    page["zero_optimization"]["zero_hpz_partition_size"] = 2
    file.write_text(json.dumps(page))
    done = fovea(
        "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2,
        f"stages.align.ds_config={file}",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "need a GPU" in done.stderr
    assert "Traceback" not in done.stderr
