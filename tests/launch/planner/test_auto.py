"""`--model auto`: the planner chooses, once for all ranks of a launch."""

import os

import pytest

from astrobio.config import SIZES, ConfigError
from launch import ROOT
from launch.ds_config.read import read_ds_config
from launch.planner import auto
from launch.zero.accelerator import prepare_accelerator

CONFIG = read_ds_config(ROOT / "ds_configs/zero3_offload.json")


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The presets that were planned, in order; all but the first fit."""
    prepare_accelerator()
    names = []

    def plan(name, ds_config, machine, ranks):
        names.append(name)
        side = {"peak_bytes": 2e9, "limit_bytes": machine.host_memory_bytes}
        return {"fits": len(names) > 1, "gpu": None, "host": side, "nvme": {"peak_bytes": 0}}

    monkeypatch.setattr(auto, "plan", plan)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return names


def test_the_largest_that_fits_is_taken(asked, tmp_path):
    name, reason = auto.choose_model(CONFIG, 2, tmp_path / "not" / "there")
    largest = SIZES.index(auto.LARGEST_ON_CPU)
    assert asked == [SIZES[largest], SIZES[largest - 1]] and name == asked[-1]
    assert "without a GPU" in reason and "2.0 of" in reason


def test_the_first_rank_decides_for_all(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(auto.tempfile, "gettempdir", lambda: str(tmp_path))
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(auto.choose_model(CONFIG, 2, tmp_path))
    assert found[0] == found[1] and len(asked) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="for one machine"):
        auto.choose_model(CONFIG, 4, tmp_path)


@pytest.mark.slow
def test_tiny_is_planned_for_real(tmp_path, monkeypatch):
    """On a machine without a GPU, by the profile that is measured of it."""
    prepare_accelerator()
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(auto, "LARGEST_ON_CPU", "tiny")
    name, reason = auto.choose_model(CONFIG, 2, tmp_path)
    if not auto.load_hardware("this").is_cpu:
        pytest.skip("a GPU is here")
    assert name == "tiny" and "even that does not fit" not in reason, os.environ
