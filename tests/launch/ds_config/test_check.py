"""Mistakes in ds_configs, planted one by one, are each named; good configs and those of others come out right."""

import copy
import io
import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException
from deepspeed.runtime.config import DeepSpeedConfig
from project import DS_CONFIGS, ROOT
from public_configs import CLEAN, OUTDATED

from astrobio.config import ConfigError, LoraConfig, load_preset, set_dotted
from launch import memory
from launch.cli import main
from launch.ds_config import facts, machine, room
from launch.ds_config.auto import resolve
from launch.ds_config.check import check
from launch.ds_config.config import DsConfig, batch_sizes
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import ABSENT
from launch.ds_config.keys import _model_of, key_findings
from launch.ds_config.read import read_ds_config
from launch.ds_config.schema import Schema
from launch.planner.model import load_model
from launch.zero import ops
from launch.zero.accelerator import prepare_accelerator

Z = "zero_optimization"
#: A model of one repeated layer of seven matrices, most of it frozen.
MODEL = ModelFacts(parameters=10**9, trainable=10**7, largest=2 * 10**8, hidden_size=4096, layers=((10**6,) * 7,))
NVME = {
    f"{Z}.offload_param": {"device": "nvme", "nvme_path": "/swap", "buffer_count": 10, "buffer_size": "auto"},
    f"{Z}.offload_optimizer": {"device": "nvme", "nvme_path": "/swap"},
    f"{Z}.stage3_max_reuse_distance": 0,
}

#: (what is changed in zero3_offload.json, the key that must be named, words of the message)
MISTAKES = [
    # names
    ({"gradient_cliping": 1.0}, "gradient_cliping", "did you mean 'gradient_clipping'"),
    ({"offload_optimizer": {"device": "cpu"}}, "offload_optimizer", "it belongs in zero_optimization"),
    ({"load_universal_checkpoint": True}, "load_universal_checkpoint", "checkpoint.load_universal"),
    ({"sparse_gradients": True}, "sparse_gradients", "removed from DeepSpeed"),
    ({"elasticity": {"enabled": True}}, "elasticity", "removed from DeepSpeed"),
    ({f"{Z}.mics_shard_size": 8}, f"{Z}.mics_shard_size", "removed from DeepSpeed"),
    (
        {f"{Z}.stage3_param_persitence_threshold": 1},
        f"{Z}.stage3_param_persitence_threshold",
        "did you mean 'stage3_param_persistence_threshold'",
    ),
    ({f"{Z}.offload_param.pin_mem": True}, f"{Z}.offload_param.pin_mem", "did you mean 'pin_memory'"),
    ({f"{Z}.leaf_module.class": ["A"]}, f"{Z}.leaf_module.class", "did you mean 'classes'"),
    ({f"{Z}.zenflow.topk": 0.1}, f"{Z}.zenflow.topk", "topk_ratio"),
    ({"fp16.inital_scale_power": 8}, "fp16.inital_scale_power", "did you mean 'initial_scale_power'"),
    ({"bf16.check_overflow": True}, "bf16.check_overflow", "check_grad_overflow"),
    ({"aio.thread_count": 2}, "aio.thread_count", "intra_op_parallelism"),
    (
        {"activation_checkpointing.partitioned_activations": True},
        "activation_checkpointing.partitioned_activations",
        "partition_activations",
    ),
    ({"checkpoint.tag_validaton": "Fail"}, "checkpoint.tag_validaton", "did you mean 'tag_validation'"),
    ({"checkpoint.writer.io_buffer": 1}, "checkpoint.writer.io_buffer", "io_buffer_size"),
    ({"data_types.grad_dtype": "fp32"}, "data_types.grad_dtype", "did you mean 'grad_accum_dtype'"),
    ({"tensorboard.output": "x"}, "tensorboard.output", "did you mean 'output_path'"),
    ({"flops_profiler.step": 1}, "flops_profiler.step", "profile_step"),
    ({"compile.deep_compile": True}, "compile.deep_compile", "did you mean 'deepcompile'"),
    ({"autotuning.tuner": "random"}, "autotuning.tuner", "did you mean 'tuner_type'"),
    (
        {"data_efficiency.data_sampling.curriculum_learning.metrics": {}},
        "data_efficiency.data_sampling.curriculum_learning.metrics",
        "curriculum_metrics",
    ),
    (
        {"data_efficiency.data_routing.random_ltd.layers": 1},
        "data_efficiency.data_routing.random_ltd.layers",
        "random_ltd_layer_num",
    ),
    ({"hybrid_engine.max_tokens": 9}, "hybrid_engine.max_tokens", "max_out_tokens"),
    ({"timers.throughput.enable": True}, "timers.throughput.enable", "did you mean 'enabled'"),
    ({"comms_logger.prof": True}, "comms_logger.prof", "did you mean 'prof_ops'"),
    ({"torch_autocast.type": "bf16"}, "torch_autocast.type", "did you mean 'dtype'"),
    ({"optimizer.params.learning_rate": 1}, "optimizer.params.learning_rate", "no such parameter"),
    ({"optimizer.params.max_grad_norm": 1.0}, "optimizer.params.max_grad_norm", "gradient_clipping: 1.0"),
    ({"scheduler.params.cycle_maxlr": 1}, "scheduler.params.cycle_maxlr", "did you mean 'cycle_max_lr'"),
    # types
    ({"train_batch_size": "64"}, "train_batch_size", "is text: write 64 without quotes"),
    ({f"{Z}.reduce_bucket_size": "1e8"}, f"{Z}.reduce_bucket_size", "write 100000000 without quotes"),
    ({f"{Z}.stage": True}, f"{Z}.stage", "must be a number, is true or false"),
    ({f"{Z}.overlap_comm": "true"}, f"{Z}.overlap_comm", "must be true or false, is text"),
    ({Z: True}, Z, 'must be an object, is true or false: write {"stage": 1}'),
    ({"gradient_accumulation_steps": 32.0}, "gradient_accumulation_steps", "write 32"),
    ({f"{Z}.sub_group_size": 0.5}, f"{Z}.sub_group_size", "must be a whole number, is a fraction"),
    ({"optimizer.params.lr": "1e-4"}, "optimizer.params.lr", "must be a number"),
    ({"scheduler.params.cycle_min_lr": "0"}, "scheduler.params.cycle_min_lr", "must be a number"),
    # ranges and choices
    ({f"{Z}.stage": 4}, f"{Z}.stage", "input should be 0, 1, 2 or 3"),
    ({f"{Z}.reduce_bucket_size": 0}, f"{Z}.reduce_bucket_size", "more than 0"),
    ({f"{Z}.offload_param.device": "gpu"}, f"{Z}.offload_param.device", "'none', 'cpu' or 'nvme'"),
    ({f"{Z}.offload_optimizer.ratio": 1.5}, f"{Z}.offload_optimizer.ratio", "at most 1"),
    ({f"{Z}.legacy_stage1": True}, f"{Z}.legacy_stage1", "refuses"),
    ({"gradient_clipping": -1}, "gradient_clipping", "at least 0"),
    ({"communication_data_type": "fp8"}, "communication_data_type", "'fp16', 'bf16' or 'fp32'"),
    ({"data_types.grad_accum_dtype": "fp64"}, "data_types.grad_accum_dtype", "'fp16'"),
    ({"checkpoint.tag_validation": "maybe"}, "checkpoint.tag_validation", "'Ignore'"),
    ({"aio.queue_depth": 0}, "aio.queue_depth", "more than 0"),
    ({"fp16.loss_scale": -1}, "fp16.loss_scale", "must be >= 0"),
    ({"fp16.loss_scale_window": 0}, "fp16.loss_scale_window", "must be > 0"),
    ({"fp16.initial_scale_power": 200}, "fp16.initial_scale_power", "fp32 ends at 2^127"),
    ({"fp16.initial_scale_power": 2, "fp16.min_loss_scale": 128}, "fp16.min_loss_scale", "above the first loss scale"),
    ({"fp16.hysteresis": 0}, "fp16.hysteresis", "at least 1"),
    ({"optimizer.params.betas": [0.9, 1.0]}, "optimizer.params.betas", "from 0 to below 1"),
    ({"optimizer.type": "AdamWW"}, "optimizer.type", "did you mean 'AdamW'"),
    ({"optimizer.type": "OneBitAdam"}, "optimizer.type", "removed from DeepSpeed"),
    ({"optimizer.type": "SGD", "optimizer.params": {"lr": 0.1}}, "optimizer.type", "zero_allow_untested_optimizer"),
    ({"scheduler.type": "CosineAnnealing"}, "scheduler.type", "no such scheduler"),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}},
        "scheduler.params.warmup_num_steps",
        "at least 1",
    ),
    ({"scheduler": {"type": "WarmupDecayLR", "params": {}}}, "scheduler.params.total_num_steps", "needs it"),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cubic"}}},
        "scheduler.params.warmup_type",
        "log and linear",
    ),
    ({"scheduler.params.cycle_min_lr": 1.0}, "scheduler.params.cycle_min_lr", "is more than cycle_max_lr"),
    # what does not go together
    ({"bf16.enabled": True}, "fp16.enabled and bf16.enabled", "one of them"),
    ({"train_batch_size": 10}, "train_batch_size", "1 × gradient_accumulation_steps 32 × 2 ranks = 64"),
    ({"train_micro_batch_size_per_gpu": None}, "train_batch_size", "must give"),
    ({f"{Z}.stage": 2}, f"{Z}.offload_param.device", "set stage to 3"),
    (
        {f"{Z}.stage": 1, f"{Z}.offload_optimizer": NVME[f"{Z}.offload_optimizer"]},
        f"{Z}.offload_optimizer.device",
        "in host memory without a word",
    ),
    ({f"{Z}.offload_param.device": "nvme"}, f"{Z}.offload_param.nvme_path", "missing"),
    ({f"{Z}.offload_optimizer": {"pin_memory": True}}, f"{Z}.offload_optimizer.device", "nothing is offloaded"),
    ({**NVME, f"{Z}.offload_optimizer.buffer_count": 2}, f"{Z}.offload_optimizer.buffer_count", "give at least 4"),
    ({**NVME, "checkpoint.load_universal": True}, "checkpoint.load_universal", "into NVMe"),
    ({"checkpoint.writer.decoupled": True}, "checkpoint.writer.decoupled", "#8500"),
    ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op", "stage 3"),
    ({"prescale_gradients": True}, "prescale_gradients", "reduce_scatter"),
    ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor", "all but 1.0"),
    ({"optimizer": {"type": "Muon", "params": {"lr": 1e-3}}}, f"{Z}.reduce_scatter", "with Muon at stage 3"),
    ({f"{Z}.zero_hpz_partition_size": 3}, f"{Z}.zero_hpz_partition_size", "does not divide the 2 ranks"),
    ({"sequence_parallel_size": 2, "data_parallel_size": 2}, "data_parallel_size", "is not the 2 ranks"),
    ({f"{Z}.compute_grad_norm": False, f"{Z}.stage": 2}, f"{Z}.compute_grad_norm", "gradient_clipping"),
    (
        {"activation_checkpointing.contiguous_memory_optimization": True},
        "activation_checkpointing.contiguous_memory_optimization",
        "the stack's parts differ: set it to false",
    ),
    ({"bf16.bf16_optimizer_states": True}, "bf16.bf16_optimizer_states", "bf16_master_weights_and_grads"),
    ({"data_types.param_dtype": "bf16"}, "data_types.param_dtype", "refuses it beside fp16"),
    (
        {f"{Z}.offload_optimizer.super_offload": True, f"{Z}.stage": 2},
        f"{Z}.offload_optimizer.super_offload",
        "stage 3",
    ),
    ({f"{Z}.zenflow": {}}, f"{Z}.zenflow", "leave it out"),
    ({f"{Z}.stage3_module_granularity_threshold": 10**4}, f"{Z}.stage3_module_granularity_threshold", "leaf_module"),
    ({"tensor_parallel.autotp_size": 2}, "tensor_parallel.autotp_size", "leave tensor_parallel out"),
    ({"expert_parallel.enabled": True}, "expert_parallel.enabled", "leave expert_parallel out"),
    ({"hybrid_engine.enabled": True}, "hybrid_engine.enabled", "leave hybrid_engine out"),
    ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation", "after every micro-batch"),
    ({"aio.block_size": 10**6}, "aio.block_size", "write 999936"),
    ({"optimizer.params.amsgrad": True}, "optimizer.params.amsgrad", "set it to false"),
    ({"optimizer": {"type": "LBFGS", "params": {}}, "zero_allow_untested_optimizer": True}, "optimizer", "closure"),
    (
        {"optimizer": {"type": "Lion", "params": {}}, f"{Z}.offload_optimizer.ratio": 0.5},
        f"{Z}.offload_optimizer.ratio",
        "no Lion",
    ),
    (
        {
            "fp16.enabled": False,
            "bf16.enabled": True,
            f"{Z}.stage": 1,
            f"{Z}.offload_optimizer.device": "none",
            "data_types.grad_accum_dtype": "fp32",
        },
        "data_types.grad_accum_dtype",
        "BF16_Optimizer",
    ),
    (
        {"fp16.enabled": False, "torch_autocast": {"enabled": True, "dtype": "float16"}},
        "torch_autocast.dtype",
        "before it takes the loss scale off",
    ),
    (
        {
            "fp16.enabled": False,
            "torch_autocast": {"enabled": True, "lower_precision_safe_modules": ["torch.nn.Lineer"]},
        },
        "torch_autocast.lower_precision_safe_modules",
        "no such class",
    ),
    ({"gradient_accumulation_steps": 0.5}, "gradient_accumulation_steps", "write 1"),
    ({f"{Z}.{Z}": {"stage": 3}}, f"{Z}.{Z}", f"put what is in it into {Z} itself"),
    ({"comet.enabled": True}, "comet.enabled", "pip install comet_ml"),
    ({"steps_per_print": "auto"}, "steps_per_print", "give one"),
    # with the model
    ({**NVME, f"{Z}.offload_param.buffer_size": 10**6}, f"{Z}.offload_param.buffer_size", "100,000,000"),
    ({**NVME, f"{Z}.stage3_max_reuse_distance": 10**9}, f"{Z}.stage3_max_reuse_distance", "second step"),
    ({**NVME, f"{Z}.offload_param.buffer_count": 5}, f"{Z}.offload_param.buffer_count", "give at least 7"),
]


@pytest.fixture(autouse=True, scope="module")
def accelerator():
    prepare_accelerator()


def changed(changes, name="zero3_offload"):
    config = json.loads(DS_CONFIGS[name].read_text())
    for key, value in changes.items():
        set_dotted(config, key, value)
    return config


@pytest.mark.parametrize(
    ("changes", "key", "words"), MISTAKES, ids=[f"{i}-{key}" for i, (_, key, _) in enumerate(MISTAKES)]
)
def test_a_planted_mistake_is_named(changes, key, words):
    found = check(changed(changes), world_size=2, facts=MODEL, machine=False)
    told = [str(finding) for finding in found if finding.problem and finding.key == key]
    assert told and words in told[0], [str(finding) for finding in found]


def test_all_mistakes_of_a_file_are_named_at_once():
    found = check(
        changed(
            {
                "gradient_cliping": 1,
                "fp16.enabld": True,
                f"{Z}.stage": "3",
                "train_batch_size": 7,
                "optimizer.type": "AdamWW",
            }
        ),
        world_size=2,
        machine=False,
    )
    assert {finding.key for finding in found if finding.problem} >= {
        "gradient_cliping",
        "fp16.enabld",
        f"{Z}.stage",
        "train_batch_size",
        "optimizer.type",
    }


@pytest.mark.parametrize("path", DS_CONFIGS.values(), ids=DS_CONFIGS)
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_shipped_configs_are_clean(path, ranks):
    assert not check(json.loads(path.read_text()), world_size=ranks, facts=MODEL, machine=False)


@pytest.mark.parametrize("name", CLEAN)
def test_configs_of_others_are_clean_or_truly_remarked_upon(name):
    config, remarks = CLEAN[name]
    found = check(config, world_size=2, machine=False)
    assert not [str(finding) for finding in found if finding.problem]
    assert {finding.key for finding in found} == remarks
    resolved = resolve(config, world_size=2, nvme_folder=ROOT, total_steps=100, largest_parameter=10**6, hidden_size=64)
    assert not [finding for finding in key_findings(resolved.raw) if finding.problem]
    assert "auto" not in json.dumps(resolved.raw)


@pytest.mark.parametrize("name", OUTDATED)
def test_what_is_outdated_in_configs_of_others_is_named(name):
    config, problems = OUTDATED[name]
    assert {finding.key for finding in check(config, world_size=2, machine=False) if finding.problem} == problems


def test_deepspeed_takes_what_is_resolved():
    """Its own parser, on the configs of others: nothing that passed the check is refused there."""
    for config, _ in CLEAN.values():
        resolved = resolve(
            config, world_size=1, nvme_folder=ROOT, total_steps=100, largest_parameter=10**6, hidden_size=64
        )
        DeepSpeedConfig(resolved.raw)


def test_auto_becomes_what_the_integration_of_hugging_face_makes_of_it():
    config, _ = CLEAN["llava_zero3_offload"]
    found = resolve(config, world_size=2, nvme_folder=ROOT, total_steps=1000, largest_parameter=10**6, hidden_size=64)
    assert found.precision == "bf16"
    found = found.raw
    zero = found[Z]
    assert (
        zero["reduce_bucket_size"],
        zero["stage3_prefetch_bucket_size"],
        zero["stage3_param_persistence_threshold"],
    ) == (4096, 3686, 640)
    assert found["scheduler"]["params"] == {"warmup_min_lr": 0, "warmup_max_lr": 1e-4, "warmup_num_steps": 30}
    assert batch_sizes(found, 2) == (1, 32) and found["train_batch_size"] == 64
    assert (found["bf16"]["enabled"], found["fp16"]["enabled"]) == (True, False)
    assert DsConfig.parse(config).precision == "bf16"


def test_a_key_that_is_there_twice(tmp_path):
    path = tmp_path / "twice.json"
    path.write_text('{"fp16": {"enabled": true, "enabled": false}}')
    with pytest.raises(ConfigError, match="'enabled' is there twice"):
        read_ds_config(path)


def test_remarks_leave_the_status_at_0(tmp_path, capsys):
    path = tmp_path / "remarks.json"
    path.write_text(json.dumps(changed({"aio.queue_depth": 4, "fp16.initial_scale_power": 32})))
    assert main(["check", "--ds_config", str(path), "--ranks", "2"]) == 0
    out = capsys.readouterr().out
    assert "remark: aio" in out and "about 16 steps will be skipped" in out


def test_a_hugging_face_folder_is_a_model_too(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "vocab_size": 256,
            }
        )
    )
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(changed({**NVME, f"{Z}.offload_param.buffer_size": 100}, "zero3_nvme")))
    assert main(["check", "--ds_config", str(path), "--model", str(tmp_path), "--ranks", "2"]) == 2
    assert "must hold a rank's part of the largest parameter: 16,384" in capsys.readouterr().err


def test_what_matches_nothing_in_the_model_is_remarked_upon():
    stack = load_model("tiny")
    stack.language.lora = LoraConfig(rank=4, target_modules=["q_proj", "nonexistent"])
    config = changed({f"{Z}.leaf_module.classes": ["Blok"], f"{Z}.stage3_param_persistence_threshold": 10**9})
    found = check(config, world_size=2, facts=facts.model_facts(stack), machine=False)
    assert {(finding.key, finding.value) for finding in found if not finding.problem} == {
        (f"{Z}.leaf_module.classes", "Blok"),
        ("model.language.lora.target_modules", "nonexistent"),
        ("model.language.init_from", ABSENT),
        (f"{Z}.stage3_param_persistence_threshold", 10**9),
    }


def test_random_weights_that_do_not_train_are_remarked_upon():
    """Of `17b_frozen`, for one, which only says what is frozen."""

    def remarked(changes):
        network = replace(MODEL, frozen_at_random=tuple(load_preset("tiny", changes).frozen_at_random))
        found = check(changed({}), world_size=2, facts=network, machine=False)
        return {finding.key for finding in found if not finding.problem and finding.key.endswith("init_from")}

    assert remarked({"freeze": ["language", "climate"]}) == {"model.language.init_from", "model.climate.init_from"}
    assert remarked({"freeze": ["climate"], "climate.init_from": "somewhere"}) == set()
    assert remarked({"language.lora": {"rank": 2}}) == {"model.language.init_from"}
    assert remarked({}) == set()
    assert load_preset("17b_frozen").frozen_at_random == ["language", "climate"]


def test_a_balance_loss_needs_layers_that_keep_their_graph():
    """Under DeepSpeed's reentrant checkpoints the experts' scores would be without a gradient."""
    stack = load_preset(
        "tiny",
        {
            "language.model_type": "mixtral",
            "language.config.num_local_experts": 4,
            "language.config.output_router_logits": True,
        },
    )
    for block, keys in (({"partition_activations": False}, ["activation_checkpointing"]), (None, [])):
        config = changed({})
        config.pop("activation_checkpointing", None)
        if block is not None:
            config["activation_checkpointing"] = block
        found = check(config, world_size=2, facts=facts.model_facts(stack), machine=False)
        assert [finding.key for finding in found if finding.problem] == keys


def test_json_is_all_there_is_on_stdout(tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(changed({f"{Z}.stage": 7})))
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "check", "--ds_config", path, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert done.returncode == 2 and not found["ok"]
    assert found["problems"][0]["key"] == f"{Z}.stage" and found["problems"][0]["value"] == 7


def test_facts_are_counted_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    counted = facts.model_facts(load_preset("17b_frozen"))
    assert 17.2e9 < counted.parameters < 17.3e9 and counted.frozen and counted.hidden_size == 4352
    assert counted.largest == 4352 * 32000 and counted.tensors_in_a_layer(100_000) >= 7
    assert facts.model_facts(load_preset("17b_frozen")) == counted
    assert len(list(tmp_path.rglob("*.json"))) == 1
    other = facts.model_facts(load_preset("17b_frozen", {"language.config.num_hidden_layers": 55}))
    assert other.parameters < counted.parameters, "the facts of another model were remembered"


# The machine


def told(findings):
    return [str(finding) for finding in findings]


def test_nvme_paths_are_tried(tmp_path, monkeypatch):
    config = changed(NVME)
    for block in ("offload_param", "offload_optimizer"):
        config[Z][block]["nvme_path"] = str(tmp_path / "not/yet/there")
    assert not [f for f in machine.machine_findings(config, 2) if f.problem]
    assert not list(tmp_path.iterdir()), "a check made a folder"
    huge = ModelFacts(10**13, 10**13, 10**9, 64, ())
    assert any("are free there" in line for line in told(room.disk_findings(config, huge)))
    monkeypatch.setattr(room, "file_system", lambda path: "nfs4")
    assert any("network file system" in line for line in told(machine.machine_findings(config, 2)))
    monkeypatch.setattr(room, "file_system", lambda path: "tmpfs")
    assert any("is in memory (tmpfs)" in line for line in told(machine.machine_findings(config, 2)))


def test_libaio_is_found_where_stderr_is_no_file(capsys):
    """DeepSpeed's own answer is then that there is none, as in a notebook."""
    with pytest.raises(io.UnsupportedOperation):
        sys.stderr.fileno()
    config = json.loads(DS_CONFIGS["zero3_nvme"].read_text())
    assert not [finding for finding in machine.machine_findings(config, 2) if finding.key == "libaio"]


def test_file_systems_are_told_apart(tmp_path):
    assert room.file_system(Path("/proc/self")) == "proc"
    assert room.file_system(tmp_path) not in ("unknown", "proc")


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        (
            "0::/job\n",
            {"job/memory.current": "5", "job/memory.max": "max", "memory.current": "9", "memory.max": "100"},
            (9, 100),
        ),
        (
            "0::/job\n",
            {"job/memory.current": "5", "job/memory.max": "50", "job/memory.stat": "anon 3\ninactive_file 2"},
            (3, 50),
        ),
        (
            "4:memory:/a/b\n0::/\n",
            {
                "memory/a/b/memory.usage_in_bytes": "7",
                "memory/a/b/memory.limit_in_bytes": str(2**63),
                "memory/a/memory.usage_in_bytes": "8",
                "memory/a/memory.limit_in_bytes": "70",
            },
            (8, 70),
        ),
        (
            "4:memory:/on/the/host\n",
            {"memory/memory.usage_in_bytes": "3", "memory/memory.limit_in_bytes": "30"},
            (3, 30),
        ),
    ],
)
def test_limits_of_control_groups_of_both_versions(tmp_path, lines, files, expected):
    root = tmp_path / "cgroup"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    (tmp_path / "proc").write_text(lines)
    found = memory.cgroup_memory(tmp_path / "proc", root)
    assert (found.used, found.limit) == expected


def test_host_memory_that_cannot_be_enough(monkeypatch):
    monkeypatch.setattr(room, "memory_limit", lambda: (8 << 30, "the cgroup's limit"))
    large = ModelFacts(10**9, 10**9, 10**8, 64, ())
    found = told(f for f in machine.machine_findings(changed({}), 2, large) if f.problem)
    assert any("host memory" in line and "18.0 GB" in line and "cgroup" in line for line in found)
    small = ModelFacts(10**8, 10**8, 10**7, 64, ())
    assert not [f for f in machine.machine_findings(changed({}), 2, small) if f.problem]


@pytest.mark.parametrize(
    "preset, gigabytes",
    [("17b", {"parameter": 1.39, "optimizer": 1.0}), ("tiny", {"parameter": 0.0, "optimizer": 0.0})],
)
def test_swap_buffers_that_may_not_be_locked(preset, gigabytes, monkeypatch):
    """DeepSpeed would abort, after building. 17b: ten buffers of half an embedding in fp16, five of a sub-group of
    5e7 in fp32."""
    of, config = facts.model_facts(load_preset(preset)), read_ds_config(DS_CONFIGS["zero3_nvme"], {})
    limit = 64 << 20
    monkeypatch.setattr(room, "locked_limit", lambda: limit)
    monkeypatch.setattr(room, "_may_lock_all", lambda: False)
    found = [f for f in check(config, world_size=2, facts=of) if f.key == "ulimit -l"]
    if preset == "17b":
        [finding] = found
        assert finding.problem and "memlock=-1" in finding.cure and "0.067 GB" in str(finding)
        for part, size in gigabytes.items():
            assert f"{size:.2f} {part} swap buffers" in finding.limit
    else:
        assert not found
    assert not [f for f in machine.machine_findings(changed({}), 2, of) if f.key == "ulimit -l"], "nothing is swapped"
    monkeypatch.setattr(room, "_may_lock_all", lambda: True)
    assert not [f for f in machine.machine_findings(config, 2, of) if f.key == "ulimit -l"]


def test_who_may_lock_all_memory(tmp_path):
    status = tmp_path / "status"
    for capabilities, allowed in (("0000000000004000", True), ("00000000a80425fb", False), ("000001ffffffffff", True)):
        status.write_text(f"Name:\tpython\nCapEff:\t{capabilities}\n")
        assert room._may_lock_all(status) is allowed
    assert room._may_lock_all(tmp_path / "absent") is False


@pytest.mark.parametrize(
    "config, changes, needs",
    [
        ("zero3", {}, "optimizer.type = AdamW on the card"),
        ("zero3_offload", {}, None),
        ("zero3_offload_nvme", {}, None),
        ("zero3_offload_nvme", {"aio.use_gds": True}, "aio.use_gds"),
    ],
)
def test_a_missing_cuda_toolkit(config, changes, needs, monkeypatch):
    """Against a card's answers; that there is no toolkit is true of this machine."""
    card = SimpleNamespace(
        device_name=lambda: "cuda",
        device_count=lambda: 2,
        is_bf16_supported=lambda: True,
        total_memory=lambda: 24 << 30,
    )
    monkeypatch.setattr(machine, "get_accelerator", lambda: card)
    monkeypatch.setattr(machine, "CUDA_HOME", None)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    raw = read_ds_config(DS_CONFIGS[config], changes)
    found = [f for f in machine.machine_findings(raw, 2) if f.key == "nvcc"]
    if needs is None:
        assert not found
        return
    [finding] = found
    assert finding.problem and needs in str(finding) and "CUDA_HOME" in finding.cure
    assert ("torch_adam" in finding.cure) is (config == "zero3")
    raw["optimizer"]["params"]["torch_adam"] = True
    assert bool([f for f in machine.machine_findings(raw, 2) if f.key == "nvcc"]) is bool(changes)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("expected str, not NoneType"),
        MissingCUDAException("no CUDA_HOME"),
        CUDAMismatchException("12.8 and 13.0"),
    ],
)
def test_a_part_that_cannot_be_compiled_is_named(error, monkeypatch):
    def load(verbose):
        raise error

    builder = SimpleNamespace(name="async_io", load=load)
    monkeypatch.setattr(ops, "get_accelerator", lambda: SimpleNamespace(create_op_builder=lambda name: builder))
    with pytest.raises(ConfigError, match="async_io cannot be compiled"):
        ops.build(["AsyncIOBuilder"])


def test_missing_compiler_and_libaio(monkeypatch):
    monkeypatch.setattr(deepspeed.ops.op_builder.AsyncIOBuilder, "is_compatible", lambda self, verbose=False: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    found = told(machine.machine_findings(changed(NVME), 2))
    assert any("g++" in line for line in found) and any("apt-get install libaio-dev" in line for line in found)


@pytest.mark.parametrize(
    ("built", "driver", "words"),
    [
        ("12.8", 11040, "is older than the CUDA 12.8"),
        ("12.8", None, "would compute on the CPU"),
        ("12.8", 12080, None),
        (None, None, None),
    ],
)
def test_the_driver_against_torch(built, driver, words, tmp_path):
    found = told(machine.cuda_findings(built, driver, tmp_path / "absent"))
    assert words in found[0] if words else not found


def test_torch_without_cuda_beside_a_card(tmp_path):
    (tmp_path / "version").touch()
    assert "built without CUDA" in str(machine.cuda_findings(None, None, tmp_path / "version")[0])


def test_buckets_that_a_card_cannot_hold():
    found = machine.bucket_findings({"stage": 3, "reduce_bucket_size": 1e10, "allgather_bucket_size": 5e8}, 24 << 30, 2)
    assert [finding.key for finding in found] == [f"{Z}.reduce_bucket_size"]
    assert "40.0 GB" in str(found[0]) and "25.8" in str(found[0])


# Values nobody thought of


def every_key(model, above=""):
    """Dotted keys of all blocks that have names of their own."""
    for key, field in model.model_fields.items():
        dotted = f"{above}.{field.alias or key}" if above else key
        yield dotted
        inner = _model_of(field.annotation)
        if inner is not None:
            yield from every_key(inner, dotted)


@pytest.mark.parametrize("value", [None, [], {}, "x", "auto", 1.5, True, -1, 0, 10**30], ids=repr)
def test_what_passes_the_check_deepspeed_takes(value, monkeypatch):
    """Each key in turn with an odd value: the check never breaks off, and what passes it DeepSpeed's parser takes."""
    logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)
    missed = []
    for key in every_key(Schema):
        config = changed({})
        set_dotted(config, key, value)
        if [finding for finding in check(config, world_size=1, facts=MODEL, machine=False) if finding.problem]:
            continue
        resolved = resolve(
            config, world_size=1, nvme_folder=ROOT, total_steps=100, largest_parameter=10**6, hidden_size=64
        )
        try:
            DeepSpeedConfig(resolved.raw)
        except Exception as error:
            missed.append(f"{key}: {type(error).__name__}: {str(error)[:150]}")
    assert not missed, "\n".join(missed)


# Cures

VALUE = r"\[.*\]|\{.*\}|\"[^\"]*\"|-?\d[\d.e+-]*|true|false|mean"


def cured(config: dict, finding) -> dict | None:
    """The config with the cure applied, where that is a value; None where it is advice."""
    config, cure = copy.deepcopy(config), finding.cure
    *above, last = finding.key.split(".")
    block = config
    for part in above:
        block = block.get(part)
        if not isinstance(block, dict):
            return None
    if cure.startswith("leave it out"):
        block.pop(last, None)
    elif found := re.match(r"leave (?P<key>[\w.]+) out", cure):
        *parents, name = found["key"].split(".")
        for part in parents:
            config[part].pop(name, None)
        config.pop(found["key"], None)
    elif found := re.match(r"did you mean '(?P<word>\w+)'", cure):
        if "unknown key" in finding.limit or "no such parameter" in finding.limit:
            block[found["word"]] = block.pop(last)
        else:
            block[last] = found["word"]
    elif found := re.match(r"set (?P<key>it|[\w.]+) to (?P<value>true|false|\d+|cpu)", cure):
        name = {"it": finding.key, "stage": f"{Z}.stage", "device": f"{Z}.offload_optimizer.device"}.get(
            found["key"], found["key"]
        )
        set_dotted(config, name, "cpu" if found["value"] == "cpu" else json.loads(found["value"]))
    elif (found := re.match(rf"(?:write|give at least) (?P<value>{VALUE})", cure)) and "true or false" not in cure:
        block[last] = "mean" if found["value"] == "mean" else json.loads(found["value"])
    elif found := re.match(rf"(?P<value>{VALUE}) is (?:usual|the default)", cure):
        block[last] = json.loads(found["value"])
    else:
        return None
    return config


def uncured(config: dict) -> list[str]:
    """The problems whose cures lead back to a problem that was there before, or on and on."""
    left = []
    for finding in check(config, world_size=2, facts=MODEL, machine=False):
        better, seen = config, []
        while finding is not None and finding.problem and (better := cured(better, finding)) is not None:
            seen.append((finding.limit, finding.cure))
            finding = next(
                (
                    other
                    for other in check(better, world_size=2, facts=MODEL, machine=False)
                    if other.problem and other.key == finding.key
                ),
                None,
            )
            if finding is not None and ((finding.limit, finding.cure) in seen or len(seen) > 3):
                left.append(f"{seen} -> {finding}")
                break
    return left


def test_cures_that_are_values_cure():
    applied = [
        finding
        for changes, _, _ in MISTAKES
        for finding in check(changed(changes), world_size=2, facts=MODEL, machine=False)
        if finding.problem and cured(changed(changes), finding) is not None
    ]
    assert len(applied) > 60
    assert not [line for changes, _, _ in MISTAKES for line in uncured(changed(changes))]


@pytest.mark.parametrize("value", [0.5, 1.5, 0, -1, 1e9 + 0.5, "3", "0.5", "many", True, None, [], {}])
def test_cures_of_any_value_in_any_place_cure(value):
    """A value of that kind in place of every number and switch of a shipped config."""
    for name in ("zero3_offload", "zero3_nvme"):
        for key in leaves(changed({}, name)):
            assert not uncured(changed({key: value}, name)), key


def leaves(block: dict, above: str = "") -> list[str]:
    return [
        leaf
        for key, value in block.items()
        for leaf in (leaves(value, f"{above}{key}.") if isinstance(value, dict) else [f"{above}{key}"])
    ]
