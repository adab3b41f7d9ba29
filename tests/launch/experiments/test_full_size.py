"""The full-size run, at a small size: what it measures, and that it leaves no swap files behind."""

import json
import os
import shutil
import signal
import time
from collections import namedtuple

import pytest
from launching import finish, start
from project import DS_CONFIGS, ROOT

from astrobio.config import ConfigError
from launch.ds_config.config import Aio
from launch.experiments import full_size
from launch.options import parse_arguments
from launch.preflight import preflight
from launch.zero.accelerator import prepare_accelerator

OPTIONS = (
    "--ds_config",
    "ds_configs/zero3_nvme.json",
    "--model",
    "tiny",
    "--max_steps",
    "2",
    "--set",
    "ds_config.gradient_accumulation_steps=1",
    "ds_config.fp16.enabled=false",
    "ds_config.bf16.enabled=true",
    'model.freeze=["language"]',
    "model.modality_dropout=0",
)


def launch(data, run, *changes):
    return start(ROOT / "launch/experiments/full_size.py", "--data", data, "--run", run, *OPTIONS, *changes, ranks=1)


@pytest.mark.slow
@pytest.mark.nvme
def test_a_run_measures_each_phase_and_cleans_up(sample_dataset, tmp_path):
    done = finish(
        launch(
            sample_dataset,
            tmp_path,
            "model.language.config.hidden_size=512",
            "model.language.config.intermediate_size=2048",
        )
    )
    assert done.status == 0, done.output[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["finite"] and report["updates"] == 2 and len(report["losses"]) == 5
    assert report["frozen_unchanged"] and report["trainable_changed"]
    assert {part["trainable"] for part in report["changed"].values()} == {True, False}
    assert report["disk"]["read_bytes_per_s"] > 1e6 and report["forward_over_read_once"] > 0
    on_nvme = 8 * 2048 * 512 * 2  # bytes of embeddings, output layer and the MLPs of two layers
    assert report["phases"]["build"]["written_bytes"] >= on_nvme
    assert report["phases"]["forward"]["read_bytes"] >= on_nvme
    assert 0.2e9 < report["host_peak_bytes"] < 16e9
    assert not (tmp_path / "nvme").exists(), "swap files are left"
    assert "forward pass" in done.output


@pytest.mark.slow
@pytest.mark.nvme
def test_an_interrupted_run_cleans_up(sample_dataset, tmp_path):
    process = launch(sample_dataset, tmp_path, "model.language.config.hidden_size=512", "model.climate.depth=8")
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("nvme/zero_stage_3/**/*.swp")):
        assert time.monotonic() < deadline and process.poll() is None, "it never wrote to NVMe"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    assert finish(process).status != 0
    deadline = time.monotonic() + 60  # the launcher may leave before its rank
    while (tmp_path / "nvme").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not (tmp_path / "nvme").exists() and not (tmp_path / "report.json").exists()


def plan_of(mini_dataset, tmp_path, config="zero3_nvme"):
    prepare_accelerator()
    return preflight(
        parse_arguments(
            [
                "--ds_config",
                str(DS_CONFIGS[config]),
                "--model",
                "tiny",
                "--data",
                str(mini_dataset),
                "--run",
                str(tmp_path),
            ]
        )
    )


@pytest.mark.nvme
def test_measuring_the_disk_compiles_nothing(mini_dataset, tmp_path, monkeypatch):
    """Nor do ds_io's workers, which are spawned."""
    plan = plan_of(mini_dataset, tmp_path / "run")  # what the ds_config needs is compiled then, and kept
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    disk = full_size.measure_disk(plan.ds_config.aio, plan.swap[0], "16M")
    assert set(disk) == {"read_bytes_per_s", "write_bytes_per_s"} and all(speed > 1e6 for speed in disk.values())
    assert not list(tmp_path.glob("compiled/**/*.o"))


def test_a_measurement_that_hangs_is_ended(tmp_path, monkeypatch):
    command = tmp_path / "python"
    command.write_text("#!/bin/sh\nexec sleep 60\n")
    command.chmod(0o755)
    monkeypatch.setattr(full_size.sys, "executable", str(command))
    monkeypatch.setattr(full_size, "_LONGEST_MEASUREMENT_S", 0.5)
    with pytest.raises(RuntimeError, match=r"ds_io did not end within 0\.5 s"):
        full_size.measure_disk(Aio(), tmp_path, "16M")


def test_room_is_checked_first(mini_dataset, tmp_path, monkeypatch):
    plan = plan_of(mini_dataset, tmp_path)
    assert full_size.check_room(plan, parameters=1000, trainable=100)["nvme_bytes"] == 3200
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(50e9))
    with pytest.raises(ConfigError, match=r"50\.0 GB free, 55\.\d GB needed.*ASTROBIO_NVME"):
        full_size.check_room(plan, parameters=17_263_926_008, trainable=1_618_050_360)
    with pytest.raises(ConfigError, match="GB of memory available"):
        plan.ds_config = plan.ds_config.changed({"zero_optimization.offload_optimizer.buffer_count": 10**6})
        full_size.check_room(plan, parameters=10**9, trainable=10**8)
    with pytest.raises(ConfigError, match="needs a ds_config that keeps parameters and optimizer on NVMe"):
        full_size.check_room(plan_of(mini_dataset, tmp_path, "zero3_offload"), parameters=1, trainable=1)
