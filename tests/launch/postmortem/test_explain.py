"""Runs are ended in every way there is, and what they leave behind must name it."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from breaking import flip
from launching import FAST, finish, ranks_of, run_script, start_training, wait_for_step

from launch import memory
from launch.cli import main
from launch.postmortem import blackbox
from launch.postmortem.blackbox import BlackBox, box_of, read_box
from launch.postmortem.explain import explain

QUIET = {"WANDB_MODE": "disabled"}
LIVELY = "ds_config.fp16.initial_scale_power=8"


def recorded(run: Path, end: str) -> subprocess.CompletedProcess:
    return run_script(Path(__file__).with_name("end_recorded.py"), run, end)


def test_a_killed_process_leaves_its_last_state_behind(tmp_path):
    done = recorded(tmp_path, "kill")
    assert done.returncode == -signal.SIGKILL
    box = read_box(box_of(tmp_path, 0))
    assert (box["phase"], box["collective"], box["collectives"], box["inside"]) == (
        "backward",
        "all_gather_into_tensor",
        1,
        True,
    )
    assert box["last"]["step"] == 7 and box["last"]["rss"] > 1e7 and "ended" not in box
    found = explain(tmp_path)
    assert (found.cause, found.rank) == ("killed", 0) and "phase 'backward' of step 8" in found.summary


def test_a_fault_in_compiled_code_leaves_its_stack(tmp_path):
    done = recorded(tmp_path, "fault")
    assert done.returncode == -signal.SIGSEGV
    found = explain(tmp_path)
    assert found.cause == "fault" and "Segmentation fault" in found.summary and "string_at" in found.evidence[0]


def test_an_abort_of_a_transfer_to_nvme_is_told_by_its_last_lines(tmp_path):
    """DeepSpeed's aio asserts; here a swap file is shorter than what is read of it."""
    (tmp_path / "short.swp").write_bytes(bytes(1 << 12))
    done = recorded(tmp_path, "short swap file")
    assert done.returncode == -signal.SIGABRT
    (tmp_path / "launch.log").write_text(done.stderr)
    found = explain(tmp_path)
    assert found.cause == "NVMe transfer" and "swap_in_tensors" in found.evidence[0]
    assert "file_offset" in found.evidence[1] and "shorter than what is read" in found.evidence[2]


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        ("no host memory", "host memory"),
        ("full disk", "disk full"),
        ("no device memory", "device memory"),
        ("minimum loss scale", "minimum loss scale"),
        ("a bug", "error"),
        ("at once", "finished"),
        ("after a sleep", "finished"),
    ],
)
def test_last_words(tmp_path, end, cause, capsys):
    recorded(tmp_path, end)
    assert main(["explain", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cause"] == cause and (found["cure"] or cause in ("error", "finished"))
    assert main(["explain", str(tmp_path)]) == 0
    assert cause in capsys.readouterr().out


def test_a_half_written_sample_is_not_read(tmp_path):
    """Of the two that are kept, the newer one is torn: the older one counts."""
    left_behind(tmp_path, 0)
    path = box_of(tmp_path, 0)
    whole = read_box(path)
    content = path.read_bytes()
    newer = max(
        (blackbox.FIRST_SLOT, blackbox.FIRST_SLOT + blackbox.SLOT_SIZE),
        key=lambda place: blackbox.SLOT.unpack_from(content, place)[0],
    )
    within = 40
    flip(path, newer + blackbox.SLOT.size + within)
    assert read_box(path)["last"]["time"] < whole["last"]["time"]


def test_no_sample_takes_the_place_of_the_last_words(tmp_path, monkeypatch):
    """One that the thread has begun when the rank ends."""
    monkeypatch.setenv(blackbox.TRACE, "0.001")
    for _ in range(20):
        box = BlackBox(tmp_path, 0, [])
        time.sleep(0.005)
        box.end(None)
        assert not box._thread.is_alive() and "ended" in read_box(box_of(tmp_path, 0))


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["explain", str(tmp_path)]) == 2
    assert "no rank has left anything" in capsys.readouterr().err


def left_behind(run: Path, rank: int, **changes) -> None:
    """A rank's file as it would be, of a process that is gone."""
    box = BlackBox(run, rank, [])
    box._done.set()
    box._thread.join()
    box._done.clear()
    box._fixed["pid"] = 2**22 + rank
    for name, value in changes.items():
        setattr(box, name, value)
    box._store_live()
    box.sample()


def test_a_rank_that_entered_fewer_collectives_fell_behind(tmp_path):
    long_ago = time.time() - 60
    left_behind(tmp_path, 0, _phase="forward", _collectives=51, _inside=True, _name=b"all_reduce", _begun=long_ago + 1)
    left_behind(tmp_path, 1, _phase="data", _collectives=50, _inside=False, _since=long_ago, _begun=long_ago)
    found = explain(tmp_path)
    assert (found.cause, found.rank) == ("a rank fell behind", 1)
    assert "phase 'data'" in found.summary and "rank 0 waits in all_reduce" in found.evidence[0]


def test_on_a_card_the_counters_tell_who_fell_behind(tmp_path, monkeypatch):
    """A collective there returns as soon as it is asked for: no rank is inside one, though the card waits."""
    monkeypatch.setattr(blackbox, "_device", lambda: {"device_bytes": 1 << 30, "device_total": 24 << 30})
    long_ago = time.time() - 60
    left_behind(tmp_path, 0, _phase="reduce", _collectives=53, _inside=False, _name=b"all_reduce", _begun=long_ago + 1)
    left_behind(tmp_path, 1, _phase="data", _collectives=50, _inside=False, _since=long_ago, _begun=long_ago)
    found = explain(tmp_path)
    assert (found.cause, found.rank) == ("a rank fell behind", 1)
    assert found.evidence[0] == "rank 0 has asked its card for 53, the last one all_reduce"


def test_a_watchdog_that_aborts_points_to_the_rank_it_waited_for(tmp_path):
    test_a_rank_that_entered_fewer_collectives_fell_behind(tmp_path)
    blackbox.fault_of(tmp_path, 0).write_text("Fatal Python error: Aborted\n\nCurrent thread 0x1:\n  File x\n")
    assert (explain(tmp_path).cause, explain(tmp_path).rank) == ("a rank fell behind", 1)


def test_memory_near_the_limit_of_the_control_group_explains_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "cgroup_memory", lambda: memory.CgroupMemory(99 << 20, 100 << 20))
    left_behind(tmp_path, 0, _phase="optimizer")
    found = explain(tmp_path)
    assert found.cause == "host memory" and any("0.10 of the 0.10 GB" in line for line in found.evidence)


# Real launches, really ended


@pytest.fixture
def running(mini_dataset, tmp_path):
    """A launch that has done its first step and would go on for long, and its run's folder."""
    run = tmp_path / "run"
    process = start_training("zero3_offload", mini_dataset, run, "--max_steps", 1000, *FAST, LIVELY, **QUIET)
    wait_for_step(run, 1)
    yield process, run
    end_all(process)


def end_all(process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


def rank(process, number: int) -> psutil.Process:
    return next(found for found in ranks_of(process) if f"--local_rank={number}" in found.cmdline())


@pytest.mark.slow
def test_kill_9_of_one_rank(running):
    process, run = running
    rank(process, 1).send_signal(signal.SIGKILL)
    done = finish(process)
    assert done.status != 0
    found = explain(run)
    assert (found.cause, found.rank) == ("killed", 1), found
    assert any("rank 0 lost it" in line for line in found.evidence), found


@pytest.mark.slow
def test_a_rank_that_stands_still(running):
    """Explained while the others wait for it, and once more when all are dead."""
    process, run = running
    one = rank(process, 1)
    one.send_signal(signal.SIGSTOP)
    time.sleep(9)
    alive = explain(run)
    assert (alive.cause, alive.rank) == ("a rank fell behind", 1), alive
    assert any("kill -CONT" in line for line in alive.evidence)
    end_all(process)
    dead = explain(run)
    assert (dead.cause, dead.rank) == ("a rank fell behind", 1), dead
    assert any("older than the others'" in line for line in dead.evidence)


@pytest.mark.slow
def test_an_address_space_that_is_too_small(running):
    process, run = running
    one = rank(process, 0)
    size = one.memory_info().vms + (1 << 20)
    one.rlimit(psutil.RLIMIT_AS, (size, size))
    finish(process)
    found = explain(run)
    assert (found.cause, found.rank) == ("host memory", 0), found
    assert any("ulimit -v" in line for line in found.evidence), found


@pytest.mark.slow
def test_the_minimum_loss_scale(mini_dataset, tmp_path):
    run = tmp_path / "run"
    finish(
        start_training(
            "zero3_offload",
            mini_dataset,
            run,
            "--max_steps",
            20,
            *FAST,
            "ds_config.fp16.hysteresis=1",
            "ds_config.fp16.initial_scale_power=40",
            f"ds_config.fp16.min_loss_scale={2**39}",
            **QUIET,
        ),
        timeout=120,
    )  # ranks that end by an error must not wait for their helpers
    found = explain(run)
    assert found.cause == "minimum loss scale" and all(rank["process"] is None for rank in found.ranks), found
    assert any("skipped for overflow" in line for line in found.evidence), found


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 48 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk(small_disk, mini_dataset):
    run = small_disk / "run"
    done = finish(
        start_training(
            "zero3_offload",
            mini_dataset,
            run,
            "--max_steps",
            8,
            *FAST,
            LIVELY,
            "train.checkpoint_every_steps=1",
            "train.keep_last=50",
            **QUIET,
        )
    )
    assert done.status != 0
    found = explain(run)
    assert found.cause == "disk full", found
    assert any(str(run) in line for line in found.evidence), found


@pytest.fixture
def control_group():
    """A memory control group of its own, by version 2 or 1: its folder, and the name of its limit."""
    for base, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        folder = base / f"astrobio-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / limit).exists():
            yield folder, folder / limit
            for _ in range(50):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    return
                time.sleep(0.2)
            return
        folder.rmdir()
    pytest.skip("no control group may be made here")


@pytest.mark.slow
def test_a_control_group_with_too_little_memory(control_group, mini_dataset, tmp_path):
    folder, limit = control_group
    run = tmp_path / "run"
    process = start_training(
        "zero3_offload", mini_dataset, run, "--max_steps", 1000, *FAST, LIVELY, "--model", "small", **QUIET
    )
    try:
        limit.write_text(str(psutil.virtual_memory().total // 2))  # a limit from the start, as in life
        (folder / "cgroup.procs").write_text(str(process.pid))
        use = folder / ("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (run / "ranks").exists():
            time.sleep(0.05)
        limit.write_text(str(int(use.read_text()) + (64 << 20)))
        finish(process)
    finally:
        end_all(process)
    found = explain(run)
    assert found.cause == "host memory", found
    assert any("for want of memory" in line or "control group used" in line for line in found.evidence), found
