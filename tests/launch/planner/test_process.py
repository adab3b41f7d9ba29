"""Memory beside the model's tensors: a process, glibc's heap, data workers; and predictions beside real runs."""

import os
import subprocess
import sys

import pytest
import torch

from astrobio.config import ConfigError
from benchmarks import predicted
from launch.planner.cost import overhead as process
from launch.planner.cost import workers
from launch.planner.hardware.profile import load_hardware
from launch.planner.plan import CUDA, PROCESS, WORKERS, _host
from launch.planner.simulation import run as ghost
from launch.planner.simulation.recorder import BOTH, HOST, KEPT, Ledger, Peak, Phase
from launch.zero.accelerator import LARGE_BLOCK

CPU = load_hardware("cpu")


def test_glibc_keeps_small_blocks_that_are_freed_and_gives_large_ones_back():
    ledger, small, large = Ledger(HOST), LARGE_BLOCK // 4, 4 * LARGE_BLOCK

    def block(size):
        tensor = torch.empty(size, dtype=torch.uint8)
        ledger.add(tensor)
        return tensor

    held = [block(small), block(small), block(large)]
    assert ledger.live[BOTH] == 2 * small + large and not ledger.parts[HOST][KEPT]
    held.clear()
    assert ledger.live[BOTH] == ledger.parts[HOST][KEPT] == 2 * small
    held = [block(small)]
    assert ledger.live[BOTH] == 2 * small and ledger.parts[HOST][KEPT] == small
    held += [block(small), block(small)]
    assert ledger.live[BOTH] == 3 * small and not ledger.parts[HOST][KEPT]


def test_a_large_block_takes_memory_as_far_as_it_is_written():
    ledger = Ledger(HOST)
    buffer = torch.empty(2 * LARGE_BLOCK, dtype=torch.uint8)
    ledger.add(buffer, written=False)
    assert not ledger.live[BOTH]
    ledger.touch(buffer[200:300])
    ledger.touch(buffer[:100])
    assert ledger.live[BOTH] == ledger.peaks[BOTH].bytes == 300
    ledger.touch(buffer[-1:])
    assert ledger.live[BOTH] == 2 * LARGE_BLOCK
    del buffer
    assert not ledger.live[BOTH] and not ledger.parts[HOST][KEPT]


def test_every_rank_of_a_cpu_machine_counts():
    """Its tensors, its process, its data workers."""
    phase = Phase("forward", {BOTH: Peak(1000, {"activations": 1000})}, {})
    result = ghost.Result([phase], [], [], {}, 0, 1, 1, 1, 1)
    assert CPU.on_one_machine(4) == 4 and load_hardware("a5000x2").on_one_machine(4) == 2
    found = _host(result, CPU, 4, process=500, worker=30)
    assert found["peak_bytes"] == sum(found["parts"].values()) == 4 * (1000 + 500 + 30)
    assert found["parts"][PROCESS] == 2000 and found["parts"][WORKERS] == 120
    assert found["phases"]["forward"] == found["peak_bytes"]


def test_cuda_takes_host_memory_in_every_rank():
    cards = load_hardware("a5000x2")
    phase = Phase("forward", {HOST: Peak(1000, {"activations": 1000})}, {})
    result = ghost.Result([phase], [], [], {}, 0, 1, 1, 1, 1)
    found = _host(result, cards, 2, process=500, worker=30)
    assert found["parts"][CUDA] == 2 * cards.context_host_bytes > 0
    assert found["peak_bytes"] == found["phases"]["forward"] == 2 * (1000 + 500 + 30 + cards.context_host_bytes)


def test_a_worker_holds_less_than_its_rank():
    """It shares with the rank what it does not change."""
    assert 1e6 < workers.worker_bytes() < process.largest_resident() / 2


def test_a_process_is_measured_once_for_each_precision(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(process, "measure", lambda precision, machine: measured.append(precision) or len(measured))
    assert [process.process_bytes(name, CPU) for name in ("bf16", "fp16", "bf16")] == [1, 2, 1]
    assert measured == ["bf16", "fp16"]

    def fails(*_):
        raise ConfigError("no compiler")

    monkeypatch.setattr(process, "measure", fails)
    monkeypatch.setattr(process, "idle_bytes", lambda: (9, 1))
    assert process.process_bytes("fp32", CPU) == 9 and process.process_bytes("fp16", CPU) == 2
    assert "no compiler" in capsys.readouterr().err


def test_what_an_idle_process_holds_is_kept_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    monkeypatch.setattr(process, "measure", lambda *_: 3)
    imported, worker = process.idle_bytes()
    assert imported > 1e8 > worker > 1e6
    assert process.process_bytes("bf16", CPU) == 3
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert process.idle_bytes() == (imported, worker) and process.process_bytes("bf16", CPU) == 3
    next(tmp_path.glob("process-*.json")).unlink()
    with pytest.raises(ConfigError, match="failed"):
        process.idle_bytes()


SEEN = """
import os
import torch

def seen(job, mode):
    raise RuntimeError(f"cards {os.environ['CUDA_VISIBLE_DEVICES']!r}, "
                       f"threads {torch._C._is_multithreading_enabled()}")
"""
PREPARED = """
import importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("torch", "deepspeed"):
            print(name, repr(os.environ.get("CUDA_VISIBLE_DEVICES")))

sys.meta_path.insert(0, Watch())
from launch.planner.simulation import run as ghost
ghost.prepare()
print("measured with", ghost.environment(with_cards=True)["CUDA_VISIBLE_DEVICES"])
"""


def test_a_ghost_run_sees_no_card(tmp_path, monkeypatch):
    """A process forked after CUDA was asked for a card aborts in autograd's threads (pytorch #33248)."""
    (tmp_path / "looking.py").write_text(SEEN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match="cards '', threads False"):
        ghost.run(ghost.Job({"function": "looking:seen"}, {}), path=[str(tmp_path)])


def test_whoever_is_to_fork_sees_no_card_from_before_its_imports():
    done = subprocess.run([sys.executable, "-c", PREPARED], cwd=ghost.ROOT, text=True, capture_output=True, timeout=120,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": "3"})
    told = {line for line in done.stdout.splitlines() if line.startswith(("torch", "deepspeed", "measured"))}
    assert told == {"torch ''", "deepspeed ''", "measured with 3"}, done.stderr


def test_a_real_run_that_fails_says_why(monkeypatch):
    job = ghost.Job({"stack": {}}, {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with process.start(job) as run, pytest.raises(ConfigError, match="a real run on this machine failed"):
        process.finish(run)


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("model, config", [("small", "zero3_offload_bf16"), ("small", "zero3_nvme"),
                                           ("wide", "zero2_offload")])
def test_predicted_beside_measured(model, config, tmp_path):
    row = predicted.compare(model, config, tmp_path)
    (said, was), (read, really_read) = row["host_peak"], row["read"]
    assert abs(said / was - 1) < 0.1
    assert abs(read - really_read) <= 0.01 * really_read and (really_read > 0) is ("nvme" in config)
    assert row["gathered"][0] == row["gathered"][1] and (row["gathered"][0] > 0) is ("zero3" in config)
