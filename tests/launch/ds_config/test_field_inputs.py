"""ds_configs of the kinds that others have, and DeepSpeed's features that do not work here: what is said of each, and
that it is true."""

import pytest
from changing import Z, config_of
from launching import last_line, try_all

from astrobio.config import ConfigError, load_preset
from launch.ds_config.check import check
from launch.ds_config.facts import model_facts
from launch.ds_config.read import read_ds_config

pytestmark = pytest.mark.usefixtures("accelerator")

CPU, NVME = {"device": "cpu"}, {"device": "nvme", "nvme_path": "auto"}
SPARE = {"bf16.enabled": False, "fp16.enabled": True, "fp16.initial_scale_power": 8}
ABSURD = {"initial_scale_power": 200, "loss_scale_window": 0, "min_loss_scale": 0, "hysteresis": 0}
ONE_OF_TORCHS = {"zero_allow_untested_optimizer": True, f"{Z}.stage": 2}

#: What is changed in `PLAIN`, and the keys of the problems; of those that break without the check, how they end.
REFUSED = {
    "a share of a step": ({"gradient_accumulation_steps": 0.5}, ["gradient_accumulation_steps"]),
    "contiguous activations": (
        {
            "activation_checkpointing": {
                "partition_activations": True,
                "contiguous_memory_optimization": True,
                "number_checkpoints": 100,
            }
        },
        ["activation_checkpointing.contiguous_memory_optimization"],
    ),
    "few contiguous activations": (
        {
            "activation_checkpointing": {
                "partition_activations": True,
                "contiguous_memory_optimization": True,
                "number_checkpoints": 1,
            }
        },
        ["activation_checkpointing.contiguous_memory_optimization"],
    ),
    "amsgrad on the host": (
        {"optimizer.params.amsgrad": True, f"{Z}.offload_optimizer": CPU},
        ["optimizer.params.amsgrad"],
    ),
    "amsgrad on the device": ({"optimizer.params.amsgrad": True}, ["optimizer.params.amsgrad"]),
    "blocks that end within a sector": ({f"{Z}.offload_optimizer": NVME, "aio.block_size": 10**6}, ["aio.block_size"]),
    "autocast to fp16": (
        {"bf16": None, "torch_autocast": {"enabled": True, "dtype": "float16"}},
        ["torch_autocast.dtype"],
    ),
    "autocast of no class": (
        {
            "bf16": None,
            "torch_autocast": {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": ["torch.nn.Lineer"],
            },
        },
        ["torch_autocast.lower_precision_safe_modules"],
    ),
    "tensor parallelism": ({"tensor_parallel.autotp_size": 2, f"{Z}.stage": 1}, ["tensor_parallel.autotp_size"]),
    "expert parallelism": (
        {"expert_parallel": {"enabled": True, "autoep_size": 2, "preset_model": "mixtral"}, f"{Z}.stage": 2},
        ["expert_parallel.enabled"],
    ),
    "hybrid engine": ({"hybrid_engine.enabled": True}, ["hybrid_engine.enabled"]),
    "fast writer": ({"checkpoint.writer.type": "FAST"}, ["checkpoint.writer.type"]),
    "modules by their size": (
        {f"{Z}.stage3_module_granularity_threshold": 10**4},
        [f"{Z}.stage3_module_granularity_threshold"],
    ),
    "absurd scaling that may be on": (
        {"bf16": None, "fp16": {"enabled": "auto", **ABSURD}},
        [f"fp16.{key}" for key in ABSURD],
    ),
    "absurd scaling": ({"bf16": None, "fp16": {"enabled": True, **ABSURD}}, [f"fp16.{key}" for key in ABSURD]),
    "a window of no steps": (
        {"bf16": None, "fp16": {"enabled": "auto", "loss_scale_window": 0}},
        ["fp16.loss_scale_window"],
    ),
    "half a loss scale": ({**SPARE, "fp16.min_loss_scale": 0.5}, ["fp16.min_loss_scale"]),
    "Lamb where bf16 is": (
        {
            "optimizer.type": "Lamb",
            "zero_allow_untested_optimizer": True,
            "fp16.enabled": "auto",
            "bf16.enabled": "auto",
            f"{Z}.stage": 2,
        },
        ["optimizer.type"],
    ),
    "Lion of 16 bits": (
        {
            "optimizer.type": "Lion",
            f"{Z}.stage": 2,
            f"{Z}.offload_optimizer": CPU,
            "bf16.bf16_master_weights_and_grads": True,
        },
        ["bf16.bf16_master_weights_and_grads"],
    ),
    "Lion of 16 bits at stage 3": (
        {**SPARE, "optimizer.type": "Lion", f"{Z}.offload_optimizer": CPU, "fp16.fp16_master_weights_and_grads": True},
        ["fp16.fp16_master_weights_and_grads"],
    ),
    "Lion in two places": (
        {"optimizer.type": "Lion", f"{Z}.offload_optimizer": {"device": "cpu", "ratio": 0.5}},
        [f"{Z}.offload_optimizer.ratio"],
    ),
    "a step after each micro-batch": (
        {"managed_gradient_accumulation": False, f"{Z}.overlap_comm": False},
        ["managed_gradient_accumulation"],
    ),
    "quantized weights": ({**SPARE, f"{Z}.zero_quantized_weights": True}, [f"{Z}.zero_quantized_weights"]),
    "quantized frozen weights": (
        {**SPARE, f"{Z}.zero_quantized_nontrainable_weights": True},
        [f"{Z}.zero_quantized_nontrainable_weights"],
    ),
    "SparseAdam": ({**ONE_OF_TORCHS, "optimizer": {"type": "SparseAdam", "params": {"lr": 0.01}}}, ["optimizer"]),
    "LBFGS": ({**ONE_OF_TORCHS, "optimizer": {"type": "LBFGS", "params": {"lr": 0.01}}}, ["optimizer"]),
    "super offload": (
        {f"{Z}.offload_optimizer": {"device": "cpu", "super_offload": True}},
        [f"{Z}.offload_optimizer.super_offload"],
    ),
    "ZenFlow at stage 2": ({f"{Z}.stage": 2, f"{Z}.offload_optimizer": CPU, f"{Z}.zenflow": {}}, [f"{Z}.zenflow"]),
    "ZenFlow at stage 3": (
        {
            f"{Z}.offload_optimizer": CPU,
            f"{Z}.zenflow": {"select_interval": 2, "update_interval": 1, "select_strategy": "step"},
        },
        [f"{Z}.zenflow"],
    ),
    "a wrapper that is not known": (
        {f"{Z}.stage": 1, "data_types.grad_accum_dtype": "fp32"},
        ["data_types.grad_accum_dtype"],
    ),
}
#: Wrong in what they train to, not in how they end; or refused for a device that is not here.
ENDS_WELL = {"autocast to fp16", "a step after each micro-batch"}
#: What is changed, and the keys of the remarks; these train.
TAKEN = {
    "stage 0": ({f"{Z}.stage": 0}, [f"{Z}.stage"]),
    "no ZeRO": ({Z: None}, [f"{Z}.stage"]),
    "Hugging Face's placeholders": (
        {
            "bf16.enabled": "auto",
            f"{Z}.stage3_gather_16bit_weights_on_model_save": "auto",
            f"{Z}.offload_optimizer": {"device": "auto"},
            f"{Z}.offload_param": {"device": "auto"},
        },
        [],
    ),
    "a leaf of no class": ({f"{Z}.leaf_module.classes": ["MixtralSparseMoeBlok"]}, [f"{Z}.leaf_module.classes"]),
    "all parameters stay": (
        {f"{Z}.offload_param": CPU, f"{Z}.offload_optimizer": CPU, f"{Z}.stage3_param_persistence_threshold": 10**9},
        [f"{Z}.stage3_param_persistence_threshold"],
    ),
}


def found_in(changes):
    return check(config_of(changes), world_size=1, facts=model_facts(load_preset("tiny")))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_train_is_refused_by_name(name):
    changes, keys = REFUSED[name]
    problems = {finding.key: finding for finding in found_in(changes) if finding.problem}
    assert set(problems) == set(keys)
    assert all(finding.cure for finding in problems.values())


@pytest.mark.parametrize("name", TAKEN)
def test_what_trains_is_remarked_upon(name):
    changes, keys = TAKEN[name]
    found = [finding for finding in found_in(changes) if finding.key != "scheduler"]
    assert not [str(finding) for finding in found if finding.problem]
    assert [finding.key for finding in found] == keys


def test_hjson_is_read_as_deepspeed_reads_it(tmp_path):
    path = tmp_path / "offload.json"
    path.write_text('{\n  // everything\n  "bf16": {"enabled": true},\n  "zero_optimization": {"stage": 3,},\n}\n')
    assert read_ds_config(path) == {"bf16": {"enabled": True}, Z: {"stage": 3}}


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "compute_environment: LOCAL_MACHINE\n"
            "deepspeed_config:\n  deepspeed_config_file: ds/z3.json\n  zero_stage: 3\n",
            "a configuration of accelerate: give the file that it names, ds/z3.json",
        ),
        ("compute_environment: LOCAL_MACHINE\ndeepspeed_config:\n  zero_stage: 3\n", "names of accelerate's own"),
        ("train_micro_batch_size_per_gpu: 1\nzero_optimization:\n  stage: 3\n", "is YAML, and DeepSpeed reads JSON"),
    ],
)
def test_files_of_others_are_recognised(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_ds_config(path)


def test_autos_are_judged_for_the_cards_that_are_asked_about():
    """Both precisions "auto": bf16 where the cards compute it, fp16 on older ones."""
    config = config_of(
        {
            "fp16.enabled": "auto",
            "bf16.enabled": "auto",
            "optimizer.type": "Lamb",
            "zero_allow_untested_optimizer": True,
            f"{Z}.stage": 2,
        }
    )
    for has_bf16, problems in ((True, ["optimizer.type"]), (False, [])):
        found = check(config, world_size=2, machine=False, has_bf16=has_bf16)
        assert [finding.key for finding in found if finding.problem] == problems


@pytest.mark.slow
def test_what_is_refused_breaks_and_what_is_taken_trains(tmp_path, sample_dataset, capsys):
    """Without the check, or the refusals would be opinions. A mistake that DeepSpeed names itself counts as well."""
    refused = {name: config_of(changes) for name, (changes, _) in REFUSED.items()}
    taken = {name: config_of(changes) for name, (changes, _) in TAKEN.items()}
    broken = try_all(tmp_path / "refused", refused, sample_dataset, "unchecked")
    trained = try_all(tmp_path / "taken", taken, sample_dataset)
    with capsys.disabled():
        print()
        for folder, ends in (("refused", broken), ("taken", trained)):
            for number, (name, end) in enumerate(ends.items()):
                print(f"{folder:8s} {name:32s} {end!s:10s} {last_line(tmp_path / folder, number)[:120]}")
    assert {name for name, end in broken.items() if end == 0} == ENDS_WELL
    assert set(trained.values()) == {0}
