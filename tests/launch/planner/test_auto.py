"""`--model auto`: the planner chooses, once for all ranks of a launch, in a process of its own."""

import sys
from types import SimpleNamespace

import pytest
from project import DS_CONFIGS

from astrobio.config import SIZES, ConfigError
from launch.ds_config.read import read_ds_config
from launch.planner import auto, job, plan
from launch.planner.hardware import load_hardware
from launch.zero.accelerator import prepare_accelerator

CONFIG = read_ds_config(DS_CONFIGS["zero3_offload"])


@pytest.fixture
def planned(monkeypatch) -> list[str]:
    """The presets that were planned, in order; all but the first fit."""
    prepare_accelerator()
    names = []

    def plan_of(name):
        names.append(name)
        host = SimpleNamespace(peak_bytes=2e9, limit_bytes=4e9)
        return SimpleNamespace(fits=len(names) > 1, sides={"host": host})

    monkeypatch.setattr(job, "make_job", lambda name, ds_config, machine, ranks: name)
    monkeypatch.setattr(plan, "plan", plan_of)
    return names


def test_the_largest_that_fits_is_taken(planned, tmp_path):
    name, reason = auto.choose(CONFIG, 2, tmp_path / "not" / "there")
    largest = SIZES.index(auto.LARGEST_ON_CPU)
    assert planned == [SIZES[largest], SIZES[largest - 1]] and name == planned[-1]
    assert "without a GPU" in reason and "2.0 of 4.0 GB of free host memory" in reason


def test_the_first_rank_decides_for_all(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(auto, "_ask", lambda *question: asked.append(question) or ("tiny", "because"))
    monkeypatch.setattr(auto.tempfile, "gettempdir", lambda: str(tmp_path))
    answers = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        answers.append(auto.choose_model(CONFIG, 2, tmp_path))
    assert answers == [("tiny", "because")] * 2 and len(asked) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="for one machine"):
        auto.choose_model(CONFIG, 4, tmp_path)


def test_a_process_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ConfigError, match="must give train_micro_batch_size_per_gpu"):
        auto.choose_model({"zero_optimization": {"stage": 3}}, 1, tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="its process ended with 1"):
        auto.choose_model(CONFIG, 1, tmp_path)


@pytest.mark.slow
def test_tiny_is_planned_for_real(tmp_path, monkeypatch):
    """On a machine without a GPU, by the profile that is measured of it."""
    prepare_accelerator()
    monkeypatch.setattr(auto, "LARGEST_ON_CPU", "tiny")
    name, reason = auto.choose(CONFIG, 2, tmp_path)
    if not load_hardware("this").is_cpu:
        pytest.skip("a GPU is here")
    assert name == "tiny" and "even that does not fit" not in reason
