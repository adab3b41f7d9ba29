"""The shipped ds_configs, and those that others have published, come out right."""

import json

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from mistakes import MODEL, Z
from project import DS_CONFIGS, ROOT
from public_configs import CLEAN, OUTDATED

from launch.ds_config.auto import resolve
from launch.ds_config.check import check
from launch.ds_config.config import DsConfig, batch_sizes
from launch.ds_config.keys import key_findings
from launch.ds_config.read import read_ds_config

pytestmark = pytest.mark.usefixtures("accelerator")


@pytest.mark.parametrize("path", DS_CONFIGS.values(), ids=DS_CONFIGS)
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_shipped_configs_are_clean(path, ranks):
    assert not check(json.loads(path.read_text()), world_size=ranks, facts=MODEL, machine=False)


@pytest.mark.parametrize("path", DS_CONFIGS.values(), ids=DS_CONFIGS)
def test_shipped_configs_have_no_unknown_key(path):
    config = resolve(
        read_ds_config(path), world_size=2, nvme_folder=path.parent, total_steps=10, largest_parameter=5000
    ).raw
    assert batch_sizes(config, 2) == (1, 32)
    assert config["gradient_clipping"] == 1.0
    assert config["optimizer"] == {
        "type": "AdamW",
        "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 1e-5},
    }
    assert config["scheduler"]["type"] == "OneCycle" and "activation_checkpointing" in config


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
