"""Results are cached, and simulations that fail end."""

import contextlib
import dataclasses
import time

import psutil
import pytest
from project import DS_CONFIGS

from astrobio.config import ConfigError
from launch.planner.hardware import load_hardware
from launch.planner.job import make_job
from launch.planner.simulation import cache, pool
from launch.planner.simulation.spec import Result, Simulation

A5000 = load_hardware("a5000x2")
RESULT = Result([], [], [], {}, 1, 2, 3, 4, 5)


@pytest.fixture
def tiny() -> Simulation:
    return make_job("tiny", DS_CONFIGS["zero3"], A5000, changes={"gradient_accumulation_steps": 1}).simulation()


def test_a_result_is_cached_until_something_changes(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    simulated = []

    def simulate(simulations, timeout):
        simulated.extend(simulations)
        return dict.fromkeys(simulations, RESULT).items()

    monkeypatch.setattr(pool, "_simulate", simulate)
    other = dataclasses.replace(tiny, ranks=3)
    assert [pool.run(tiny), pool.run(tiny), pool.run(other)] == [RESULT] * 3 and len(simulated) == 2
    monkeypatch.setattr(cache, "_code", lambda: b"changed")
    pool.run(tiny)
    assert len(simulated) == 3
    elsewhere = dataclasses.replace(tiny, workload={"function": "careless:stack"})
    assert [pool.run(elsewhere), pool.run(elsewhere)] == [RESULT] * 2 and len(simulated) == 5


def test_a_broken_file_is_no_result(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    cache.store(tiny, RESULT)
    assert cache.load(tiny) == RESULT
    (file,) = tmp_path.glob("ghosts/*.ghost")
    file.write_bytes(file.read_bytes()[:20])
    assert cache.load(tiny) is None


def test_one_that_fails_says_why_and_the_others_are_cached(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    nowhere = dataclasses.replace(tiny, workload={"function": "nowhere:to_be_found"})
    with pytest.raises(ConfigError, match="(?s)the ghost run of bad failed: .*No module named 'nowhere'"):
        pool.run_all({"bad": nowhere, "good": tiny})
    assert cache.load(tiny).operators > 1000
    with pytest.raises(ConfigError, match="its process was killed, perhaps for want of memory"):
        pool.run(dataclasses.replace(tiny, workload={"function": "stacks:killed"}))


@pytest.mark.slow
def test_one_that_does_not_end_is_ended(tiny, tmp_path):
    pid = tmp_path / "pid"
    tiny.workload = {"function": "stacks:endless", "pid": str(pid)}
    with pytest.raises(ConfigError, match="did not end within 40 s"):
        pool.run(tiny, timeout=40)
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(pid.read_text()))
        deadline = time.monotonic() + 30  # a signal takes a moment
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.1)
