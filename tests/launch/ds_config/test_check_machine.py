"""What of a ds_config is checked against the machine: disks, memory, compilers, drivers and cards."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
from mistakes import NVME, Z, changed
from project import DS_CONFIGS

from astrobio.config import load_preset
from launch import memory
from launch.ds_config import facts, machine, room
from launch.ds_config.check import check
from launch.ds_config.facts import ModelFacts
from launch.ds_config.read import read_ds_config

pytestmark = pytest.mark.usefixtures("accelerator")


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
    assert any("host memory" in line and "16.0 GB" in line and "cgroup" in line for line in found)
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
