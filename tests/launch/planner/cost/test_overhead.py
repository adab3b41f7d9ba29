"""Memory beside the model's tensors, a process and its data workers; and predictions beside real runs."""

import sys

import pytest

from astrobio.config import ConfigError
from benchmarks import predicted
from launch.ds_config.config import DsConfig
from launch.experiments import idle_process
from launch.memory import peak_resident_bytes
from launch.options import TrainConfig
from launch.planner import assemble
from launch.planner.assemble import CUDA, PROCESS, WORKERS, HostMemory
from launch.planner.cost import overhead
from launch.planner.hardware import Hardware, load_hardware
from launch.planner.simulation.parts import BOTH, HOST
from launch.planner.simulation.spec import Peak, Phase, Result, Simulation

CPU, CARDS = load_hardware("cpu"), load_hardware("a5000x2")
BF16 = Simulation({"stack": {}}, DsConfig.parse({"bf16": {"enabled": True}}))


@pytest.fixture
def on_host(monkeypatch):
    """What the host of ``local`` ranks holds with 1000 bytes of tensors on a device, in processes of known sizes."""
    monkeypatch.setattr(assemble, "idle_bytes", lambda: (400, 30))
    monkeypatch.setattr(assemble, "process_bytes", lambda precision, hardware: {"bf16": 500}[precision])

    def host(device: str, hardware: Hardware, local: int) -> HostMemory:
        phase = Phase("forward", {device: Peak(1000, {"activations": 1000})}, {})
        result = Result([phase], [], [], {}, operators=0, parameters=1, trainable=1, tokens=1, accumulation=1)
        return assemble._host(result, BF16, hardware, local)

    return host


def test_every_rank_of_a_cpu_machine_counts(on_host):
    """Its tensors, its process, its data workers."""
    assert CPU.on_one_machine(4) == 4 and CARDS.on_one_machine(4) == 2
    found = on_host(BOTH, CPU, 4)
    assert TrainConfig.data_workers == 1
    assert found.peak_bytes == sum(found.parts.values()) == 4 * (1000 + 500 + 30)
    assert found.parts[PROCESS] == 2000 and found.parts[WORKERS] == 120
    assert found.phases["forward"] == found.training_bytes == found.peak_bytes


def test_cuda_takes_host_memory_in_every_rank(on_host):
    """Its process is not measured: the card computes, and the kernels of a CPU are never compiled."""
    found = on_host(HOST, CARDS, 2)
    assert found.parts[CUDA] == 2 * CARDS.context_host_bytes > 0
    assert found.peak_bytes == found.phases["forward"] == 2 * (1000 + 400 + 30 + CARDS.context_host_bytes)


def test_a_worker_holds_less_than_its_rank():
    """It shares with the rank what it does not change."""
    assert 1e6 < idle_process.worker_bytes() < peak_resident_bytes() / 2


def test_a_process_is_measured_once_for_each_precision(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(overhead, "measure", lambda precision, hardware: measured.append(precision) or len(measured))
    assert [overhead.process_bytes(name, CPU) for name in ("bf16", "fp16", "bf16")] == [1, 2, 1]
    assert measured == ["bf16", "fp16"]

    def fails(*_):
        raise ConfigError("no compiler")

    monkeypatch.setattr(overhead, "measure", fails)
    monkeypatch.setattr(overhead, "idle_bytes", lambda: (9, 1))
    assert overhead.process_bytes("fp32", CPU) == 9 and overhead.process_bytes("fp16", CPU) == 2
    assert "no compiler" in capsys.readouterr().err


def test_what_an_idle_process_holds_is_kept_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    monkeypatch.setattr(overhead, "measure", lambda *_: 3)
    imported, worker = overhead.idle_bytes()
    assert imported > 1e8 > worker > 1e6
    assert overhead.process_bytes("bf16", CPU) == 3
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert overhead.idle_bytes() == (imported, worker) and overhead.process_bytes("bf16", CPU) == 3
    next(tmp_path.glob("process-*.json")).unlink()
    with pytest.raises(ConfigError, match="failed"):
        overhead.idle_bytes()


def test_a_real_run_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        overhead.start(Simulation({"stack": {}}, DsConfig.parse({}))) as process,
        pytest.raises(ConfigError, match="a real run on this machine failed"),
    ):
        overhead.finish(process)


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize(
    "model, config", [("small", "zero3_offload_bf16"), ("small", "zero3_nvme"), ("wide", "zero2_offload")]
)
def test_predicted_beside_measured(model, config, tmp_path):
    row = predicted.compare(model, config, tmp_path)
    (said, was), (read, really_read) = row["host_peak"], row["read"]
    assert abs(said / was - 1) < 0.1
    assert abs(read - really_read) <= 0.01 * really_read and (really_read > 0) is ("nvme" in config)
    assert row["gathered"][0] == row["gathered"][1] and (row["gathered"][0] > 0) is ("zero3" in config)
