"""What `compressed_optimizer` cannot be combined with, and what `check` says of it."""

import pytest
from project import DS_CONFIGS

from astrobio.config import set_dotted
from launch.ds_config.check import check
from launch.ds_config.config import Compression, DsConfig
from launch.ds_config.read import read_ds_config

COMPRESSED = [name for name in DS_CONFIGS if "8bit" in name]


def problems(changes: dict, config: str = "zero3_resident_8bit") -> dict[str, str]:
    raw = read_ds_config(DS_CONFIGS[config], changes)
    return {finding.key: str(finding) for finding in check(raw, world_size=2, machine=False) if finding.problem}


@pytest.mark.parametrize("config", COMPRESSED)
def test_the_shipped_ones_are_sound(config):
    assert problems({}, config) == {}
    assert DsConfig.parse(read_ds_config(DS_CONFIGS[config], {})).compression == Compression(16, 256)


ENABLED = "compressed_optimizer.enabled"


@pytest.mark.parametrize(
    "changes, key, says",
    [
        ({"zero_optimization.stage": 2}, ENABLED, "set zero_optimization.stage to 3"),
        ({"zero_optimization.offload_optimizer.device": "none"}, ENABLED, "not one on the cards"),
        ({"fp16.enabled": False}, ENABLED, "enable bf16 or fp16"),
        ({"optimizer.type": "Lion", "optimizer.params": {"lr": 1e-4}}, ENABLED, "set optimizer.type to AdamW"),
        ({"optimizer.params.torch_adam": True}, ENABLED, "set optimizer.type to AdamW"),
        (
            {"zero_optimization.offload_optimizer.ratio": 0.5},
            "zero_optimization.offload_optimizer.ratio",
            "leave it out",
        ),
        ({"compressed_optimizer.block_size": 100}, "compressed_optimizer.block_size", "128"),
        ({"compressed_optimizer.remainder_bits": 4}, "compressed_optimizer.remainder_bits", "8"),
        ({"compressed_optimizer.blocksize": 128}, "compressed_optimizer.blocksize", "block_size"),
    ],
)
def test_what_it_does_not_serve_is_refused_with_the_cure(changes, key, says):
    found = problems(changes)
    assert key in found and says in found[key], found


def test_what_it_replaces_is_refused():
    raw = read_ds_config(DS_CONFIGS["zero3_resident_8bit"], {"fp16.enabled": False})
    raw["bf16"] = {"enabled": True}
    for key in ("bf16.bf16_optimizer_states", "bf16.bf16_master_weights_and_grads"):
        changed = {**raw, "bf16": dict(raw["bf16"])}
        set_dotted(changed, key, True)
        assert key in {finding.key for finding in check(changed, world_size=2, machine=False) if finding.problem}


def test_switched_off_it_is_as_if_it_were_not_there():
    raw = read_ds_config(DS_CONFIGS["zero3_resident_8bit"], {"compressed_optimizer.enabled": False})
    assert DsConfig.parse(raw).compression is None and problems({"compressed_optimizer.enabled": False}) == {}
